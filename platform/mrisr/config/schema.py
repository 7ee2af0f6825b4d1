"""The pydantic models behind an experiment file. Field descriptions are the reference that `--help` prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mrisr.config.degradation import DegradationSection
from mrisr.config.fields import AbsolutePath, NonNegative, Positive, Rate, Section
from mrisr.config.networks import Critic, Generator
from mrisr.config.reference import checked, set_key
from mrisr.config.tuning import Tuning
from mrisr.config.validation import Validation
from mrisr.engine.precision import Precision
from mrisr.engine.schedule import Schedule


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
        "*", min_length=1, description="which files to convert: a glob on the name ('*T1w*') or, with a /, on the path"
    )


class Stream(Section):
    patch_size: Positive = Field(64, description="edge of the cubic training patches, voxels")
    patches_per_row: Positive = Field(16, description="patches cut from one degraded volume: spreads one FFT")
    interleave_rows: Positive = Field(2, description="volumes whose patches are mixed within one lane of the batch")
    min_foreground: float = Field(0.3, ge=0, le=1, description="least share of foreground in a training patch")
    cpus_per_task: float = Field(1.0, gt=0, description="logical CPUs that one data task reserves")
    rounds: Positive = Field(1, description="groups of interleaved volumes per lane that are computed ahead at a time")


class ScheduleSection(Section):
    total_steps: Positive = Field(750_000, description="length of the run; a step is one update of one network")
    pretrain_steps: NonNegative = Field(250_000, description="L1 steps of the generator before the adversarial stage")
    critic_warmup_steps: NonNegative = Field(10_000, description="critic steps before the generator moves again")
    critic_per_generator: Positive = Field(7, description="critic steps for each adversarial generator step")
    boost_every: Positive = Field(500, description="after this many alternating steps ...")
    boost_steps: NonNegative = Field(200, description="... come this many steps of the critic alone")


class Training(Section):
    batch_size: Positive = Field(2, description="patches per step over all workers")
    micro_batch: Positive | None = Field(
        None, description="patches per forward pass and BatchNorm; null: a worker's, BatchNorm on GPUs over the batch"
    )
    pretrain_lr: Rate = Field(1e-4, description="Adam learning rate of the L1 stage")
    generator_lr: Rate = Field(5e-6, description="Adam learning rate of the generator in the adversarial stage")
    critic_lr: Rate = Field(5e-6, description="Adam learning rate of the critic")
    adversarial_weight: float = Field(1e-3, ge=0, description="weight of the adversarial term beside L1")
    gp_weight: float = Field(10.0, ge=0, description="gradient-penalty weight")
    precision: Precision = Field(
        "auto",
        description="autocast of the generator; auto: bf16 where every worker's device is made for it",
    )
    tf32: bool = Field(False, description="GPU: float32 convolutions (all of the critic's) in TF32: faster, 10 bits")
    channels_last: bool = Field(True, description="channels_last_3d memory format")
    compile: bool = Field(
        False, description="torch.compile the generator's units, if that gives eager's gradients; never the critic"
    )
    strategy: Literal["fsdp", "ddp", "single"] = Field("fsdp", description="how parameters are sharded")
    log_every: Positive = Field(50, description="steps between metric records")
    checkpoint_every: Positive = Field(1000, description="steps between checkpoints")
    keep_checkpoints: Positive = Field(2, description="newest checkpoints that are kept")
    max_failures: int = Field(
        3, ge=-1, description="restarts after lost workers with no newer checkpoint between; -1: no limit"
    )


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
    """A whole experiment: data, networks, schedule, resources, tracking."""

    name: str = Field("mdcsrn", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="run name; a second start resumes")
    seed: NonNegative = Field(0, description="seed of every random draw")
    output: AbsolutePath = Field(Path("$MRISR_HOME/runs"), description="folder of runs: output/name holds checkpoints")
    data: Data = Field(default_factory=Data)
    degradation: DegradationSection = Field(default_factory=DegradationSection)
    stream: Stream = Field(default_factory=Stream)
    generator: Generator = Field(default_factory=Generator)
    critic: Critic = Field(default_factory=Critic)
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    training: Training = Field(default_factory=Training)
    validation: Validation = Field(default_factory=Validation)
    resources: Resources = Field(default_factory=Resources)
    tracking: Tracking = Field(default_factory=Tracking)
    tuning: Tuning = Field(default_factory=Tuning)

    def changed(self, changes: Mapping[str, Any]) -> Experiment:
        """A checked copy with other values at dotted keys, e.g. `{"training.precision": "bf16"}`.

        A whole section may be given as a mapping; `{}` stands for its defaults. Raises ConfigError naming the key.
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
        """Patches per forward pass, the same for every number of workers; BatchNorm: StepConfig.batchnorm_over."""
        return self.training.micro_batch or self.training.batch_size // self.resources.workers

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers that the run may go on with, largest first: they share the batch evenly."""
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
        schedule = Schedule(**self.schedule.model_dump())
        patch, kind = self.stream.patch_size, self.critic.kind
        if schedule.needs_critic and (patch < 16 or (kind != "separable" and patch % 16)):
            raise ValueError(
                f"stream.patch_size = {patch} does not suit critic.kind = {kind!r}, which halves patches 4 times: use "
                f"{'16 or more' if kind == 'separable' else 'a multiple of 16, or the separable critic'}"
            )
        for key, size in (("stream", self.stream.patch_size), ("validation", self.validation.patch_size)):
            if size > self.data.min_size:
                raise ValueError(
                    f"{key}.patch_size = {size} is larger than data.min_size = {self.data.min_size}: volumes that "
                    "small may be in the store; raise data.min_size or choose a smaller patch"
                )
        return self
