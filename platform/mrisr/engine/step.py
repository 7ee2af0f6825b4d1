"""One update of one network. Its numbers do not depend on how the global batch is spread over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mrisr.engine.networks import Networks, StepConfig, build_networks
from mrisr.engine.objectives import CriticTerms, GeneratorObjective, PretrainObjective, widened
from mrisr.engine.schedule import Phase
from mrisr.engine.sharding import (
    accumulating,
    averaged_tensors,
    gather_rows,
    is_sharded,
    local,
    plain,
    rank,
    release,
    world_size,
)
from mrisr.models.batchnorm import frozen_statistics, shared_update

__all__ = [
    "Networks",
    "NonFiniteError",
    "StepConfig",
    "build_networks",
    "interpolation_coefficients",
    "train_step",
]


class NonFiniteError(RuntimeError):
    """A loss or a gradient norm that is not finite on some rank; raised on every rank, before the update.

    step, phase: where; value: `loss` or `gradient norm`; ranks: on which ranks (synchronised BatchNorm carries a NaN to
    all), empty for a gradient of several, which is seen only once it is averaged; terms: the objective's scalars of
    every micro-batch of the global batch, in its order, equal on every rank.
    """

    def __init__(
        self, step: int, phase: Phase, value: str, ranks: list[int], terms: list[dict[str, float]] | None = None
    ) -> None:
        super().__init__(f"step {step} ({phase}): the {value} is not finite {on_ranks(ranks)}; no weight was updated")
        self.step, self.phase, self.value, self.ranks, self.terms = step, phase, value, ranks, terms or []

    def __reduce__(self) -> tuple[type, tuple[int, Phase, str, list[int], list[dict[str, float]]]]:
        return type(self), (self.step, self.phase, self.value, self.ranks, self.terms)


def on_ranks(ranks: list[int]) -> str:
    """Where a value was not finite, in words; `ranks` as NonFiniteError has them."""
    if not ranks:
        return "in the average over the workers; every loss is finite, so that none of them can be named"
    return f"on rank {', '.join(map(str, ranks))}"


def interpolation_coefficients(seed: int, step: int, first: int, count: int) -> Tensor:
    """(count,) float32 in [0, 1) for global samples from `first` on: of (seed, step, sample) alone.

    4 sets these draws apart from those of the stream (see mrisr.data.rows).
    """
    return torch.tensor(
        [np.random.default_rng([seed, 4, step, first + sample]).random() for sample in range(count)],
        dtype=torch.float32,
    )


def train_step(
    networks: Networks, config: StepConfig, phase: Phase, step: int, lr: Tensor, hr: Tensor
) -> dict[str, float]:
    """Update the network that `phase` names, by the gradient of the mean over the global batch.

    lr, hr: (batch_size / world size, 1, P, P, P) float32, this rank's slice: the ranks' slices in order are
    the batch. Returns scalars averaged over the global batch, equal on all ranks: loss and gradient_norm
    always; l1 for the generator, adversarial in the adversarial stage; wasserstein, penalty,
    interpolate_gradient_norm for the critic. Raises NonFiniteError on all ranks before the update, ValueError
    for a batch of another size.
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
    compute, module, optimizer = _parts(networks, config, phase, step)
    optimizer.zero_grad(set_to_none=True)
    count = local // config.micro_batch
    parts: list[dict[str, Tensor]] = []
    for index in range(count):
        part = slice(index * config.micro_batch, (index + 1) * config.micro_batch)
        with accumulating(module, last=index == count - 1):
            terms = compute(index, count, lr[part], hr[part])
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
    """Clip the critic, or move the generator's average; on this rank's shards alone, so that nothing travels."""
    if phase is Phase.CRITIC:
        if config.weight_clip is not None and networks.critic is not None:
            for parameter in networks.critic.parameters():
                local(parameter).clamp_(-config.weight_clip, config.weight_clip)
    elif config.ema_decay is not None:
        for name, tensor in averaged_tensors(networks.generator).items():
            local(networks.ema[name]).lerp_(local(tensor), 1 - config.ema_decay)


_Compute = Callable[[int, int, Tensor, Tensor], dict[str, Tensor]]


def _parts(
    networks: Networks, config: StepConfig, phase: Phase, step: int
) -> tuple[_Compute, nn.Module, torch.optim.Adam]:
    """The computation of a micro-batch's terms, the network that it updates, and the optimizer."""
    generator, critic = networks.generator, networks.critic
    pixel, adversarial = PretrainObjective(), GeneratorObjective(config.adversarial_weight)

    def generate(lr: Tensor, module: nn.Module = generator) -> Tensor:
        with torch.autocast(networks.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            return widened(module(lr))

    def pretrain(index: int, count: int, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        with shared_update(generator, index, count):
            loss = pixel(generate(lr), hr)
        return {"loss": loss, "l1": loss}

    def train_generator(index: int, count: int, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        assert critic is not None
        with shared_update(generator, index, count):
            fake = generate(lr)
        # DistributedDataParallel expects gradients of its own parameters after every forward: none come here.
        return adversarial(fake, hr, plain(critic)(fake))._asdict()

    def train_critic(index: int, count: int, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        assert critic is not None
        # Training mode, as in the generator's own step: the critic must judge the fakes that the generator is
        # updated on. Its statistics stay: they follow the generator's updates, and a step that leaves it
        # alone says nothing new.
        with torch.no_grad(), frozen_statistics(generator):
            fake = generate(lr, plain(generator))
        first = rank() * config.local_batch(world_size()) + index * config.micro_batch
        coefficients = interpolation_coefficients(config.seed, step, first, lr.shape[0]).to(hr)
        terms = critic(fake, hr, coefficients)
        assert isinstance(terms, CriticTerms)
        return terms._asdict()

    generator.train()
    if phase is Phase.PRETRAIN:
        return pretrain, generator, networks.optimizers["pretrain"]
    assert critic is not None
    critic.train()
    if phase is Phase.GENERATOR:
        return train_generator, generator, networks.optimizers["adversarial"]
    return train_critic, critic, networks.optimizers["critic"]


def _checked(
    parts: list[dict[str, Tensor]], optimizer: torch.optim.Adam, networks: Networks, phase: Phase, step: int
) -> dict[str, float]:
    """Metrics averaged over ranks and the gradient's norm, in one exchange; or NonFiniteError everywhere."""
    squares = torch.zeros((), dtype=torch.float64, device=networks.device)
    sharded = False
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None:
                sharded |= is_sharded(gradient)
                squares += torch.linalg.vector_norm(local(gradient), dtype=torch.float64).square()
    names = list(parts[0])
    sums = [torch.stack([part[name] for part in parts]).sum() / len(parts) for name in names]
    rows = gather_rows(torch.stack([squares, *sums]).tolist(), networks.device)
    for column, value in ((1 + names.index("loss"), "loss"), (0, "gradient norm")):
        ranks = [index for index, row in enumerate(rows) if not math.isfinite(row[column])]
        if ranks:
            if value != "loss" and len(rows) > 1:
                ranks = []  # of averages, or shards of them: one rank's NaN is in all
            optimizer.zero_grad(set_to_none=True)
            flat = torch.stack([part[name] for part in parts for name in names]).tolist()
            every = [number for row in gather_rows(flat, networks.device) for number in row]
            terms = [dict(zip(names, every[i : i + len(names)], strict=True)) for i in range(0, len(every), len(names))]
            raise NonFiniteError(step, phase, value, ranks, terms)
    means = {name: math.fsum(row[1 + index] for row in rows) / len(rows) for index, name in enumerate(names)}
    norm = math.sqrt(math.fsum(row[0] for row in rows)) if sharded else math.sqrt(rows[0][0])
    return means | {"gradient_norm": norm}
