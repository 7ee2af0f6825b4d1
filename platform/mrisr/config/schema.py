"""The pydantic models behind an experiment file. Field descriptions are the reference that `mrisr keys` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from mrisr.augmentation import Augmentation
from mrisr.config.fields import AbsolutePath, NonNegative, Positive, Section
from mrisr.config.networks import Critic, Generator
from mrisr.config.reference import checked, set_key
from mrisr.config.tuning import Tuning
from mrisr.config.validation import Validation
from mrisr.degradation import DegradationRange
from mrisr.engine.schedule import Schedule
from mrisr.engine.step_settings import STRATEGIES, StepSettings
from mrisr.settings import one_of, setting


class Data(Section):
    store: AbsolutePath = Field(
        Path("$MRISR_HOME/store.zarr"), description="Zarr volume store, made by `mrisr convert`"
    )
    splits: dict[str, float] | None = Field(
        None,
        description="people per split, decided at conversion: fractions (sum <= 1) or counts; null: as the store has "
        "them, for a new one {train: 0.8, validation: 0.1, test: 0.1}",
    )
    split_seed: int | None = Field(None, description="seed of the split; null: as the store has it, for a new one 0")
    min_size: Positive = Field(64, description="volumes with a shorter axis are left out at conversion, voxels")
    pattern: str = Field(
        "*",
        min_length=1,
        description="which files to convert: bids:T1w, or a glob on the name ('*_T1w.*') or, with a /, on the path",
    )


class Stream(Section):
    patch_size: Positive = Field(64, description="edge of the cubic training patches, voxels")
    patches_per_row: Positive = Field(16, description="patches cut from one degraded volume: spreads one FFT")
    interleave_rows: Positive = Field(2, description="volumes whose patches are mixed within one lane of the batch")
    min_foreground: float = Field(0.3, ge=0, le=1, description="least share of foreground in a training patch")
    cpus_per_task: float = Field(1.0, gt=0, description="logical CPUs that one data task reserves")
    rounds: Positive = Field(1, description="groups of interleaved volumes per lane that are computed ahead at a time")


@dataclass(frozen=True)
class Training(StepSettings):
    __pydantic_config__ = ConfigDict(extra="forbid")

    compile: bool = setting(
        False, "torch.compile the generator's units, if that gives eager's gradients; never the critic"
    )
    strategy: Annotated[str, one_of(STRATEGIES, "strategy")] = setting("fsdp", "how parameters are sharded")
    log_every: int = setting(50, "steps between metric records", gt=0)
    checkpoint_every: int = setting(1000, "steps between checkpoints", gt=0)
    keep_checkpoints: int = setting(2, "newest checkpoints that are kept", gt=0)
    max_failures: int = setting(3, "restarts after lost workers with no newer checkpoint between; -1: no limit", ge=-1)


class Resources(Section):
    workers: Positive = Field(1, description="training workers (ranks)")
    min_workers: Positive | None = Field(
        None, description="go on with as few workers as this while nodes are away; null: wait for all of them"
    )
    resize_every_s: float = Field(60.0, gt=0, description="with min_workers: seconds between looks for room to grow")
    gpus: bool | None = Field(None, description="one GPU per worker; null: if the cluster has enough")
    cpus_per_worker: float | None = Field(
        None, gt=0, description="logical CPUs a worker reserves; null: what leaves room for the data tasks"
    )
    threads_per_worker: Positive | None = Field(None, description="CPU threads per worker; null: its share of cores")


class Tracking(Section):
    uri: str | None = Field(
        None, description="MLflow tracking URI; null: $MLFLOW_TRACKING_URI, else sqlite in $MRISR_HOME/mlflow.db"
    )
    experiment: str = Field("mrisr", min_length=1, description="MLflow experiment")
    model: str = Field("mdcsrn", min_length=1, description="name in the model registry")


class Experiment(Section):
    name: str = Field("mdcsrn", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="run name; a second start resumes")
    seed: NonNegative = Field(0, description="seed of every random draw")
    output: AbsolutePath = Field(Path("$MRISR_HOME/runs"), description="folder of runs: output/name holds checkpoints")
    data: Data = Field(default_factory=Data)
    degradation: DegradationRange = Field(default_factory=DegradationRange)
    augmentation: Augmentation = Field(default_factory=Augmentation)
    stream: Stream = Field(default_factory=Stream)
    generator: Generator = Field(default_factory=Generator)
    critic: Critic = Field(default_factory=Critic)
    schedule: Schedule = Field(default_factory=Schedule)
    training: Training = Field(default_factory=Training)
    validation: Validation = Field(default_factory=Validation)
    resources: Resources = Field(default_factory=Resources)
    tracking: Tracking = Field(default_factory=Tracking)
    tuning: Tuning = Field(default_factory=Tuning)

    def changed(self, changes: Mapping[str, Any]) -> Experiment:
        """A checked copy with other values at dotted keys, e.g. `{"training.precision": "bf16"}`, or whole sections as
        mappings (`{}`: the defaults). Raises ConfigError naming the key.
        """
        raw = self.model_dump()
        for key, value in changes.items():
            set_key(raw, key, value)
        return checked(Experiment, raw)

    @property
    def run_folder(self) -> Path:
        return self.output / self.name

    @property
    def micro_batch(self) -> int:
        """Patches per forward pass, equal for every number of workers; for BatchNorm see StepConfig.batchnorm_over."""
        return self.training.micro_batch or self.training.batch_size // self.resources.workers

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers that the run may use, largest first: those that divide the batch."""
        most, batch = self.resources.workers, self.training.batch_size
        least = self.resources.min_workers or most
        return tuple(n for n in range(most, least - 1, -1) if batch % (n * self.micro_batch) == 0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        batch, workers = self.training.batch_size, self.resources.workers
        if batch % workers:
            raise ValueError(
                f"training.batch_size = {batch} does not divide among resources.workers = {workers}; "
                f"use a multiple of {workers}, e.g. {workers * max(1, batch // workers)}"
            )
        micro = self.training.micro_batch
        if micro is not None and (batch // workers) % micro:
            raise ValueError(
                f"training.micro_batch = {micro} does not divide a worker's share of the batch, {batch // workers}; "
                f"use a divisor of {batch // workers}, or null"
            )
        least = self.resources.min_workers
        if least is not None and least > workers:
            raise ValueError(
                f"resources.min_workers = {least} is more than resources.workers = {workers}, the most; lower it"
            )
        if self.training.strategy == "single" and workers > 1:
            raise ValueError(f"training.strategy = 'single' is for one worker, not resources.workers = {workers}")
        if self.schedule.pretrain_steps > self.schedule.total_steps:
            raise ValueError(
                f"schedule.pretrain_steps = {self.schedule.pretrain_steps} is more than "
                f"schedule.total_steps = {self.schedule.total_steps}; raise total_steps"
            )
        patch, kind = self.stream.patch_size, self.critic.kind
        rule = self.critic.unmet_patch_rule(patch)
        if self.schedule.needs_critic and rule is not None:
            raise ValueError(
                f"stream.patch_size = {patch} does not suit critic.kind = {kind!r}: use {rule}, or another critic"
            )
        for key, size in (("stream", self.stream.patch_size), ("validation", self.validation.patch_size)):
            if size > self.data.min_size:
                raise ValueError(
                    f"{key}.patch_size = {size} is larger than data.min_size = {self.data.min_size}: volumes that "
                    "small may be in the store; raise data.min_size or choose a smaller patch"
                )
        return self
