"""One update of one network. Its numbers do not depend on how the global batch is spread over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mrisr.models.batchnorm import frozen_statistics, shared_update
from mrisr.models.mdcsrn import MDCSRN
from mrisr.objectives import CriticObjective, CriticTerms, GeneratorObjective, PretrainObjective
from mrisr.training.schedule import Phase
from mrisr.training.sharding import (
    accumulating,
    gather_rows,
    plain,
    rank,
    release,
    shard,
    synchronise_batchnorm,
    world_size,
)

PRECISIONS = ("fp32", "bf16")


class NonFiniteError(RuntimeError):
    """A loss or a gradient norm that is not finite on some rank; raised on every rank, before the update.

    step, phase: where; value: `loss` or `gradient norm`; ranks: on which ranks.
    """

    def __init__(self, step: int, phase: Phase, value: str, ranks: list[int]) -> None:
        super().__init__(f"step {step} ({phase}): the {value} is not finite on rank {', '.join(map(str, ranks))}; nothing was "
                         "updated. Resume from the last checkpoint with a smaller learning rate or precision fp32")
        self.step, self.phase, self.value, self.ranks = step, phase, value, ranks

    def __reduce__(self) -> tuple[type, tuple[int, Phase, str, list[int]]]:
        return type(self), (self.step, self.phase, self.value, self.ranks)


@dataclass(frozen=True)
class StepConfig:
    """How a step is computed; all but seed, batch_size and the rates and weights leave its numbers alone up to rounding.

    batch_size: patches per step over all ranks. micro_batch: patches per forward on a rank, over which BatchNorm
    normalises (so it is part of the numbers too). precision: of the generator; critic and penalty are always float32.
    sync_batchnorm: SyncBatchNorm on CUDA, whose numbers do depend on the world size. Raises ValueError, naming the key.
    """

    seed: int = 0
    batch_size: int = 2
    micro_batch: int = 1
    pretrain_lr: float = 1e-4
    generator_lr: float = 5e-6
    critic_lr: float = 5e-6
    adversarial_weight: float = 1e-3
    gp_weight: float = 10.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    precision: str = "fp32"
    channels_last: bool = True
    recompute: bool = False
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"training.precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        for name in ("batch_size", "micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it must be 1 or more")

    def local_batch(self, workers: int) -> int:
        """Patches per rank. Raises ValueError when batch_size is not a multiple of workers * micro_batch."""
        if self.batch_size % (workers * self.micro_batch):
            raise ValueError(f"training.batch_size is {self.batch_size}; with {workers} workers and micro_batch "
                             f"{self.micro_batch} it must be a multiple of {workers * self.micro_batch}")
        return self.batch_size // workers


@dataclass
class Networks:
    """Generator and critic objective, each one sharded unit, and their optimizers (pretrain, adversarial, critic)."""

    generator: nn.Module
    critic: nn.Module | None
    optimizers: dict[str, torch.optim.Adam]
    device: torch.device
    strategy: str


def build_networks(generator: MDCSRN, critic: nn.Module | None, config: StepConfig, device: torch.device,
                   strategy: str = "fsdp") -> Networks:
    """Place and shard the networks and make their optimizers; `critic` None for a run that only pretrains.

    critic: (B, 1, P, P, P) -> (B,). Every rank must pass networks of equal weights. Raises ValueError for a batch size
    that the ranks cannot share or an unknown strategy.
    """
    config.local_batch(world_size())
    generator.channels_last, generator.recompute = config.channels_last, config.recompute
    whole: nn.Module = synchronise_batchnorm(generator, device) if config.sync_batchnorm else generator
    sharded = shard(whole, strategy, device)
    objective = None if critic is None else shard(CriticObjective(critic, config.gp_weight), strategy, device)
    optimizers = {"pretrain": _adam(sharded, config.pretrain_lr, config)}
    if objective is not None:
        optimizers |= {"adversarial": _adam(sharded, config.generator_lr, config),
                       "critic": _adam(objective, config.critic_lr, config)}
    return Networks(sharded, objective, optimizers, device, strategy)


def _adam(module: nn.Module, rate: float, config: StepConfig) -> torch.optim.Adam:
    """Adam whose state exists from the start: a checkpoint then has the same entries at every step, used yet or not."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, betas=config.adam_betas)
    for parameter in module.parameters():
        optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter).detach(),
                                      "exp_avg_sq": torch.zeros_like(parameter).detach()}
    return optimizer


def interpolation_coefficients(seed: int, step: int, first: int, count: int) -> Tensor:
    """(count,) float32 in [0, 1) for the global samples first ... first + count - 1: of (seed, step, sample) alone."""
    return torch.tensor([np.random.default_rng([seed, step, first + sample]).random() for sample in range(count)],
                        dtype=torch.float32)


def train_step(networks: Networks, config: StepConfig, phase: Phase, step: int, lr: Tensor, hr: Tensor) -> dict[str, float]:
    """Update the network that `phase` names, by the gradient of the mean over the global batch.

    lr, hr: (batch_size / world size, 1, P, P, P) float32, this rank's slice: the ranks' slices in order are the batch.
    Returns scalars averaged over the global batch, equal on all ranks: loss and gradient_norm always; l1 for the
    generator, adversarial in the adversarial stage; wasserstein, penalty, interpolate_gradient_norm for the critic.
    Raises NonFiniteError on all ranks before the update, ValueError for a batch of another size.
    """
    local = config.local_batch(world_size())
    if lr.shape != hr.shape or lr.shape[0] != local:
        raise ValueError(f"a rank's batch is lr {tuple(lr.shape)} and hr {tuple(hr.shape)}; both need {local} patches "
                         f"(training.batch_size {config.batch_size} over {world_size()} workers)")
    if phase is not Phase.PRETRAIN and networks.critic is None:
        raise ValueError(f"step {step} is a {phase} step, but the networks were built without a critic")
    lr, hr = lr.to(networks.device, non_blocking=True), hr.to(networks.device, non_blocking=True)
    compute, module, optimizer = _parts(networks, config, phase, step)
    optimizer.zero_grad(set_to_none=True)
    count = local // config.micro_batch
    sums: dict[str, Tensor] = {}
    for index in range(count):
        part = slice(index * config.micro_batch, (index + 1) * config.micro_batch)
        with accumulating(module, last=index == count - 1):
            terms = compute(index, count, lr[part], hr[part])
            (terms["loss"] / count).backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.detach().double() / count
    for network in (networks.generator, networks.critic):
        if network is not None:
            release(network)
    metrics = _checked(sums, optimizer, networks, phase, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return metrics


_Compute = Callable[[int, int, Tensor, Tensor], dict[str, Tensor]]


def _parts(networks: Networks, config: StepConfig, phase: Phase, step: int
           ) -> tuple[_Compute, nn.Module, torch.optim.Adam]:
    """The computation of a micro-batch's terms, the network that it updates, and the optimizer."""
    generator, critic = networks.generator, networks.critic
    pixel, adversarial = PretrainObjective(), GeneratorObjective(config.adversarial_weight)

    def generate(lr: Tensor, module: nn.Module = generator) -> Tensor:
        with torch.autocast(networks.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            return module(lr).float()

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
        # Training mode, as in the generator's own step: the critic must judge the fakes that the generator is updated on.
        # Its statistics stay: they follow the generator's updates, and a step that leaves it alone says nothing new.
        with torch.no_grad(), frozen_statistics(generator):
            fake = generate(lr, plain(generator))
        first = rank() * config.local_batch(world_size()) + index * config.micro_batch
        coefficients = interpolation_coefficients(config.seed, step, first, lr.shape[0]).to(lr.device)
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


def _checked(sums: dict[str, Tensor], optimizer: torch.optim.Adam, networks: Networks, phase: Phase, step: int
             ) -> dict[str, float]:
    """The metrics' means over ranks and the gradient's norm, in one exchange; raises NonFiniteError on every rank."""
    squares = torch.zeros((), dtype=torch.float64, device=networks.device)
    sharded = False
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if isinstance(gradient, DTensor):
                sharded, gradient = True, gradient.to_local()
            if gradient is not None:
                squares += gradient.double().square().sum()
    names = list(sums)
    rows = gather_rows(torch.stack([squares, *sums.values()]).tolist(), networks.device)
    for column, value in ((1 + names.index("loss"), "loss"), (0, "gradient norm")):
        ranks = [index for index, row in enumerate(rows) if not math.isfinite(row[column])]
        if ranks:
            optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(step, phase, value, ranks)
    means = {name: math.fsum(row[1 + index] for row in rows) / len(rows) for index, name in enumerate(names)}
    norm = math.sqrt(math.fsum(row[0] for row in rows)) if sharded else math.sqrt(rows[0][0])
    return means | {"gradient_norm": norm}
