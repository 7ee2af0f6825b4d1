"""The settings of a step: those that a user can set, and the complete ones that the computation uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mrisr.engine.learning_rate import LR_SCHEDULES, lr_factor
from mrisr.engine.precision import COMPUTED, PRECISIONS
from mrisr.engine.schedule import Phase, Schedule, phase
from mrisr.settings import check_bounds, one_of, setting

# How parameters are spread over the ranks; see sharding.shard.
STRATEGIES = ("fsdp", "ddp", "single")


@dataclass(frozen=True)
class StepSettings:
    """The keys of the `training` section that the computation of a step depends on."""

    batch_size: int = setting(2, "patches per step over all workers", gt=0)
    micro_batch: int | None = setting(
        None, "patches per forward pass and BatchNorm; null: a worker's, BatchNorm on GPUs over the batch", gt=0
    )
    pretrain_lr: float = setting(1e-4, "Adam learning rate of the L1 stage", gt=0, le=1)
    generator_lr: float = setting(5e-6, "Adam learning rate of the generator in the adversarial stage", gt=0, le=1)
    critic_lr: float = setting(5e-6, "Adam learning rate of the critic", gt=0, le=1)
    lr_schedule: Annotated[str, one_of(LR_SCHEDULES, "learning-rate schedule")] = setting(
        "constant", "course of each learning rate over its own updates; cosine: short rise, then a fall to 0"
    )
    adversarial_weight: float = setting(1e-3, "weight of the adversarial term beside L1", ge=0)
    gp_weight: float = setting(10.0, "gradient-penalty weight", ge=0)
    precision: Annotated[str, one_of(PRECISIONS, "precision")] = setting(
        "auto", "autocast of the generator; auto: bf16 where every worker's device is made for it"
    )
    tf32: bool = setting(False, "GPU: float32 convolutions (all of the critic's) in TF32: faster, 10 bits")
    channels_last: bool = setting(True, "channels_last_3d memory format")


@dataclass(frozen=True)
class StepConfig(StepSettings):
    """StepSettings with all values decided, and settings from other sections, which are off by default.

    micro_batch: per rank. precision: of the generator; critic and penalty are always float32. sync_batchnorm: see
    batchnorm_over. critic_samples: patches per pass of the critic, None for all. weight_clip: the bound c; after each
    critic step the weights of its convolutions are clipped to [-c, c] (Wasserstein GAN, arXiv 1701.07875). Precision,
    memory format, recompute and critic_samples change results by rounding only. Raises ValueError that names the key.
    """

    micro_batch: int = setting(1, "patches per forward pass on a rank", gt=0)
    precision: str = "fp32"
    seed: int = 0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    recompute: bool = False
    sync_batchnorm: bool = False
    critic_samples: int | None = None
    weight_clip: float | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if self.precision not in COMPUTED:
            raise ValueError(f"training.precision is {self.precision!r}; choose one of {', '.join(COMPUTED)}")
        if self.lr_schedule not in LR_SCHEDULES:
            raise ValueError(f"training.lr_schedule is {self.lr_schedule!r}; choose one of {', '.join(LR_SCHEDULES)}")
        check_bounds(self, "training")

    def learning_rate(self, schedule: Schedule, step: int) -> float:
        """The learning rate of the network that `step` updates."""
        rates = {Phase.PRETRAIN: self.pretrain_lr, Phase.CRITIC: self.critic_lr, Phase.GENERATOR: self.generator_lr}
        return rates[phase(schedule, step)] * lr_factor(self.lr_schedule, schedule, step)

    def local_batch(self, workers: int) -> int:
        """Patches per rank. Raises ValueError if batch_size is not a multiple of workers * micro_batch."""
        if self.batch_size % (workers * self.micro_batch):
            raise ValueError(
                f"training.batch_size is {self.batch_size}; with {workers} workers and micro_batch "
                f"{self.micro_batch} it must be a multiple of {workers * self.micro_batch}"
            )
        return self.batch_size // workers

    def batchnorm_over(self, workers: int, cuda: bool) -> int:
        """Patches that BatchNorm normalises over: the whole batch if it is synchronised, else micro_batch.

        It is synchronised on CUDA over several workers. Raises ValueError if it is combined with several micro-batches.
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
