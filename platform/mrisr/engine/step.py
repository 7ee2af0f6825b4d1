"""One update of one network. The result does not depend on how the global batch is split over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mrisr.engine.networks import Networks, clipped_weights
from mrisr.engine.objectives import CriticTerms, GeneratorObjective, PretrainObjective, at_least_float32
from mrisr.engine.schedule import Phase
from mrisr.engine.sharding import (
    accumulating,
    averaged_tensors,
    gather_rows,
    local,
    plain,
    rank,
    release,
    world_size,
)
from mrisr.engine.step_settings import StepConfig
from mrisr.models.batchnorm import frozen_statistics, shared_update


class NonFiniteError(RuntimeError):
    """A loss or a gradient norm is not finite on some rank; raised on every rank, before the update.

    value: `loss` or `gradient norm`. ranks: where it occurred (synchronised BatchNorm spreads a NaN to all ranks);
    empty for a gradient on several ranks, which is checked after averaging. terms: the objective's scalars of every
    micro-batch of the global batch, in its order, equal on every rank.
    """

    def __init__(
        self, step: int, phase: Phase, value: str, ranks: list[int], terms: list[dict[str, float]] | None = None
    ) -> None:
        super().__init__(f"step {step} ({phase}): the {value} is not finite {on_ranks(ranks)}; no weight was updated")
        self.step, self.phase, self.value, self.ranks, self.terms = step, phase, value, ranks, terms or []

    def __reduce__(self) -> tuple[type, tuple[int, Phase, str, list[int], list[dict[str, float]]]]:
        return type(self), (self.step, self.phase, self.value, self.ranks, self.terms)


def on_ranks(ranks: list[int]) -> str:
    if not ranks:
        return "in the average over the workers; every loss is finite, so that none of them can be named"
    return f"on rank {', '.join(map(str, ranks))}"


def interpolation_coefficients(seed: int, step: int, first: int, count: int) -> Tensor:
    """(count,) float32 in [0, 1) for global samples from `first` on, a function of (seed, step, sample) only.

    The constant 4 separates these draws from those of the stream (see mrisr.data.rows).
    """
    return torch.tensor(
        [np.random.default_rng([seed, 4, step, first + sample]).random() for sample in range(count)],
        dtype=torch.float32,
    )


@dataclass(frozen=True)
class MicroBatch:
    """Forward pass `index` of `count`, from patch `first` of the global batch: lr, hr (B, 1, P, P, P) float32."""

    step: int
    index: int
    count: int
    first: int
    lr: Tensor
    hr: Tensor


def generate(generator: nn.Module, lr: Tensor, precision: str) -> Tensor:
    """The generator's output for lr, computed in that precision and converted to float32."""
    with torch.autocast(lr.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return at_least_float32(generator(lr))


def pretrain_terms(networks: Networks, config: StepConfig, part: MicroBatch) -> dict[str, Tensor]:
    with shared_update(networks.generator, part.index, part.count):
        loss = PretrainObjective()(generate(networks.generator, part.lr, config.precision), part.hr)
    return {"loss": loss, "l1": loss}


def generator_terms(networks: Networks, config: StepConfig, part: MicroBatch) -> dict[str, Tensor]:
    assert networks.critic is not None
    with shared_update(networks.generator, part.index, part.count):
        fake = generate(networks.generator, part.lr, config.precision)
    # DistributedDataParallel would wait for gradients of its parameters, which this forward does not produce.
    scores = plain(networks.critic)(fake)
    return GeneratorObjective(config.adversarial_weight)(fake, part.hr, scores)._asdict()


def critic_terms(networks: Networks, config: StepConfig, part: MicroBatch) -> dict[str, Tensor]:
    assert networks.critic is not None
    # Training mode, as in the generator's own step: the critic must judge the fakes that the generator is updated on.
    # The running statistics stay: they follow the generator's updates, and this step does not update it.
    with torch.no_grad(), frozen_statistics(networks.generator):
        fake = generate(plain(networks.generator), part.lr, config.precision)
    coefficients = interpolation_coefficients(config.seed, part.step, part.first, part.lr.shape[0])
    terms = networks.critic(fake, part.hr, coefficients.to(part.hr))
    assert isinstance(terms, CriticTerms)
    return terms._asdict()


#: The scalars of a micro-batch by phase; `loss` carries the graph.
TERMS: dict[Phase, Callable[[Networks, StepConfig, MicroBatch], dict[str, Tensor]]] = {
    Phase.PRETRAIN: pretrain_terms,
    Phase.GENERATOR: generator_terms,
    Phase.CRITIC: critic_terms,
}
OPTIMIZERS = {Phase.PRETRAIN: "pretrain", Phase.GENERATOR: "adversarial", Phase.CRITIC: "critic"}


def set_learning_rate(networks: Networks, now: Phase, rate: float) -> None:
    for group in networks.optimizers[OPTIMIZERS[now]].param_groups:
        group["lr"] = rate


def train_step(
    networks: Networks, config: StepConfig, phase: Phase, step: int, lr: Tensor, hr: Tensor
) -> dict[str, float]:
    """Update the network that `phase` names, by the gradient of the mean over the global batch.

    lr, hr: (batch_size / world size, 1, P, P, P) float32, this rank's slice; the slices in rank order are the batch.
    Returns scalars averaged over the global batch, equal on all ranks: gradient_norm and the terms of the phase. Raises
    NonFiniteError on all ranks before the update, ValueError for a batch of another size.
    """
    local = config.local_batch(world_size())
    if lr.shape != hr.shape or lr.shape[0] != local:
        raise ValueError(
            f"a rank's batch is lr {tuple(lr.shape)} and hr {tuple(hr.shape)}; both need {local} patches "
            f"(training.batch_size {config.batch_size} over {world_size()} workers)"
        )
    if phase is not Phase.PRETRAIN and networks.critic is None:
        raise ValueError(f"step {step} is a {phase} step, but the networks were built without a critic")
    lr, hr = lr.to(networks.device, non_blocking=True), hr.to(networks.device, non_blocking=True)
    generator, critic = networks.generator, networks.critic
    module = generator if phase is not Phase.CRITIC or critic is None else critic
    generator.train()
    if critic is not None and phase is not Phase.PRETRAIN:
        critic.train()
    optimizer = networks.optimizers[OPTIMIZERS[phase]]
    optimizer.zero_grad(set_to_none=True)
    count = local // config.micro_batch
    parts: list[dict[str, Tensor]] = []
    for index in range(count):
        own = slice(index * config.micro_batch, (index + 1) * config.micro_batch)
        part = MicroBatch(step, index, count, rank() * local + own.start, lr[own], hr[own])
        with accumulating(module, last=index == count - 1):
            terms = TERMS[phase](networks, config, part)
            (terms["loss"] / count).backward()
        parts.append({name: value.detach().double() for name, value in terms.items()})
    for network in (networks.generator, networks.critic):
        if network is not None:
            release(network)
    metrics = _checked(parts, optimizer, networks, phase, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _after_update(networks, config, phase)
    return metrics


@torch.no_grad()
def _after_update(networks: Networks, config: StepConfig, phase: Phase) -> None:
    """Clip the critic or update the generator's average, on this rank's shards and without communication."""
    if phase is Phase.CRITIC:
        if config.weight_clip is not None and networks.critic is not None:
            for weight in clipped_weights(networks.critic).values():
                local(weight).clamp_(-config.weight_clip, config.weight_clip)
    elif config.ema_decay is not None:
        for name, tensor in averaged_tensors(networks.generator).items():
            local(networks.ema[name]).lerp_(local(tensor), 1 - config.ema_decay)


def _checked(
    parts: list[dict[str, Tensor]], optimizer: torch.optim.Adam, networks: Networks, phase: Phase, step: int
) -> dict[str, float]:
    """Metrics averaged over ranks and the gradient's norm, in one exchange. Raises NonFiniteError on all ranks."""
    squares = torch.zeros((), dtype=torch.float64, device=networks.device)
    sharded = False
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None:
                sharded |= isinstance(gradient, DTensor)
                squares += torch.linalg.vector_norm(local(gradient), dtype=torch.float64).square()
    names = list(parts[0])
    sums = [torch.stack([part[name] for part in parts]).sum() / len(parts) for name in names]
    rows = gather_rows(torch.stack([squares, *sums]).tolist(), networks.device)
    for column, value in ((1 + names.index("loss"), "loss"), (0, "gradient norm")):
        ranks = [index for index, row in enumerate(rows) if not math.isfinite(row[column])]
        if ranks:
            if value != "loss" and len(rows) > 1:
                ranks = []  # averaging spreads one rank's NaN to all
            optimizer.zero_grad(set_to_none=True)
            flat = torch.stack([part[name] for part in parts for name in names]).tolist()
            every = [number for row in gather_rows(flat, networks.device) for number in row]
            terms = [dict(zip(names, every[i : i + len(names)], strict=True)) for i in range(0, len(every), len(names))]
            raise NonFiniteError(step, phase, value, ranks, terms)
    means = {name: math.fsum(row[1 + index] for row in rows) / len(rows) for index, name in enumerate(names)}
    norm = math.sqrt(math.fsum(row[0] for row in rows)) if sharded else math.sqrt(rows[0][0])
    return means | {"gradient_norm": norm}
