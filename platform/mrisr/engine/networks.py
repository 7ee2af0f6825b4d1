"""The networks of a run with their optimizers, spread over the ranks, and the settings that steps share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mrisr.engine.objectives import CriticObjective
from mrisr.engine.sharding import average_batchnorm, averaged_tensors, full_state, plain, shard, world_size
from mrisr.models.mdcsrn import MDCSRN

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class StepConfig:
    """How a step is computed; all but seed, batch_size and the rates and weights leave its numbers alone up
    to rounding.

    batch_size: patches per step over all ranks. micro_batch: patches per forward on a rank. sync_batchnorm: on CUDA,
    where torch can, BatchNorm normalises over the forwards of all ranks together; see batchnorm_over, which is part of
    the numbers. precision: of the generator; critic and penalty are always float32.
    critic_samples: patches that the critic scores at a time, None for all. weight_clip: the critic's weights are cut
    to [-c, c] after each of its steps, as in the first Wasserstein GAN (arXiv 1701.07875). ema_decay: of a moving
    average of the generator's weights, None for none.
    Raises ValueError, naming the key.
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
    adam_eps: float = 1e-8
    precision: str = "fp32"
    channels_last: bool = True
    recompute: bool = False
    sync_batchnorm: bool = False
    critic_samples: int | None = 1
    weight_clip: float | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"training.precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        for name in ("batch_size", "micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it must be 1 or more")

    def local_batch(self, workers: int) -> int:
        """Patches per rank. Raises ValueError when batch_size is not a multiple of workers * micro_batch."""
        if self.batch_size % (workers * self.micro_batch):
            raise ValueError(
                f"training.batch_size is {self.batch_size}; with {workers} workers and micro_batch "
                f"{self.micro_batch} it must be a multiple of {workers * self.micro_batch}"
            )
        return self.batch_size // workers

    def batchnorm_over(self, workers: int, cuda: bool) -> int:
        """Patches that BatchNorm normalises over: the whole batch where it is synchronised, else micro_batch.

        It is synchronised with sync_batchnorm on CUDA (cuda) over several workers. Raises ValueError for accumulation
        then: a normalisation would span a micro-batch of every rank, patches that lie apart in the batch.
        """
        if not (self.sync_batchnorm and cuda and workers > 1):
            return self.micro_batch
        if self.batch_size != workers * self.micro_batch:
            raise ValueError(
                f"training.micro_batch is {self.micro_batch}: BatchNorm synchronised over {workers} workers needs all "
                f"{self.batch_size} patches of a step in one forward pass each; use {self.batch_size // workers}, or "
                "sync_batchnorm=False"
            )
        return self.batch_size


@dataclass
class Networks:
    """Generator and critic objective, each one sharded unit; optimizers pretrain, adversarial, critic.

    batchnorm_over: patches that a normalisation spans, see StepConfig. ema: the moving average of the generator's
    parameters by name, sharded as they are; empty when it is off.
    """

    generator: nn.Module
    critic: nn.Module | None
    optimizers: dict[str, torch.optim.Adam]
    device: torch.device
    strategy: str
    batchnorm_over: int
    ema: dict[str, Tensor] = field(default_factory=dict)


def build_networks(
    generator: MDCSRN,
    critic: nn.Module | None,
    config: StepConfig,
    device: torch.device,
    strategy: str = "fsdp",
) -> Networks:
    """Place and shard the networks and make their optimizers; `critic` None for a run that only pretrains.

    critic: (B, 1, P, P, P) -> (B,). Every rank must pass networks of equal weights. Raises ValueError for a
    batch size that the ranks cannot share, accumulation with synchronised BatchNorm, or an unknown strategy.
    """
    config.local_batch(world_size())
    over = config.batchnorm_over(world_size(), device.type == "cuda")
    generator.channels_last, generator.recompute = config.channels_last, config.recompute
    whole: nn.Module = generator
    if over != config.micro_batch:
        whole = nn.SyncBatchNorm.convert_sync_batchnorm(generator)
    sharded = shard(whole, strategy, device)
    objective = None
    if critic is not None:
        objective = shard(CriticObjective(critic, config.gp_weight, config.critic_samples), strategy, device)
    optimizers = {"pretrain": _adam(sharded, config.pretrain_lr, config)}
    if objective is not None:
        optimizers |= {
            "adversarial": _adam(sharded, config.generator_lr, config),
            "critic": _adam(objective, config.critic_lr, config),
        }
    ema = {}
    if config.ema_decay is not None:
        ema = {name: value.detach().clone() for name, value in averaged_tensors(sharded).items()}
    return Networks(sharded, objective, optimizers, device, strategy, over, ema)


def _adam(module: nn.Module, rate: float, config: StepConfig) -> torch.optim.Adam:
    """Fused Adam whose state exists from the start, so that a checkpoint has the same entries at every step."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, betas=config.adam_betas, eps=config.adam_eps, fused=True)
    for parameter in module.parameters():
        optimizer.state[parameter] = {
            # As Adam itself makes it: the fused step counts where the parameter lies.
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter).detach(),
            "exp_avg_sq": torch.zeros_like(parameter).detach(),
        }
    return optimizer


def average_statistics(networks: Networks) -> None:
    """average_batchnorm for the generator and for its moving average, which is as linear; every rank must call it."""
    average_batchnorm(networks.generator)
    if world_size() > 1 and networks.ema:
        for name, _ in plain(networks.generator).named_buffers():
            if name in networks.ema:
                dist.all_reduce(networks.ema[name])
                networks.ema[name] /= world_size()


def evaluated_state(networks: Networks) -> dict[str, Tensor]:
    """full_state of the generator, with the moving average in place of its parameters where one is kept."""
    state = full_state(networks.generator)
    for name, value in networks.ema.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        state[name] = whole.detach().to("cpu", copy=True)
    return state
