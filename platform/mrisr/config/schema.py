"""The pydantic models behind an experiment file. Field descriptions are the reference that `--help` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mrisr.config.fields import AbsolutePath, CountInterval, Interval, NonNegative, Positive, Rate
from mrisr.config.tuning_keys import Protocol, Tuning
from mrisr.degradation import KINDS, PROTOCOLS, DegradationRange, check
from mrisr.training.schedule import Schedule


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


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


class DegradationSection(Section):
    kind: Literal["truncate", "box", "shift", "shift_fft_shift", "mixed", "gaussian", "report_literal"] = Field(
        "truncate", description="what is zeroed in k-space; `mrisr preview --gallery` draws every kind"
    )
    axes: tuple[NonNegative, ...] = Field((1, 2), description="zeroed axes: 0 left-right, 1 post-ant, 2 inf-sup")
    fraction: Interval = Field((0.5, 0.5), description="zeroed share f of each axis, 0 to 1, drawn from [low, high]")
    voxels: CountInterval | None = Field(
        None, description="zeroed width in k-space samples, both sides together; replaces fraction"
    )
    mix: Interval = Field((0.0, 1.0), description="mixed: share of the weight zeroed about DC, drawn from [low, high]")
    sigma: Interval = Field((0.0, 0.0), description="gaussian: blur, standard deviation in voxels, from [low, high]")
    base: Literal["box", "truncate"] = Field("box", description="gaussian: the hard weight under the blur")
    apodisation: Literal["none", "tukey", "hamming"] = Field("none", description="taper of the acquired band")
    taper: Interval = Field((0.0, 0.0), description="tukey: tapered share of the band, drawn from [low, high]")
    slice_axis: NonNegative | None = Field(None, description="axis of thick slices; null: none are thick")
    slice_thickness: Interval = Field(
        (0.0, 0.0), description="Gaussian slice profile, full width at half maximum in voxels, drawn from [low, high]"
    )
    noise: Interval = Field(
        (0.0, 0.0),
        description="Rician noise: standard deviation of either channel, in normalised intensity, from [low, high]",
    )

    def range(self) -> DegradationRange:
        return DegradationRange(**{name: getattr(self, name) for name in DegradationRange._fields})

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        assert self.kind in KINDS
        r = self.range()
        for end in (0, 1):
            check(r.end(end)._replace(voxels=None))
        widest = self.fraction[1] if self.voxels is None else self.voxels[1]
        acquired = self.apodisation != "none" or self.slice_thickness[1] > 0 or self.noise[1] > 0
        if widest <= 0 and not acquired:
            key = "fraction" if self.voxels is None else "voxels"
            raise ValueError(f"degradation.{key} zeroes nothing at its widest ({widest}); give it a band above 0")
        if self.apodisation == "tukey" and self.taper[1] <= 0:
            raise ValueError(f"degradation.taper = {list(self.taper)} tapers nothing; give tukey a share above 0")
        return self


class Stream(Section):
    patch_size: Positive = Field(64, description="edge of the cubic training patches, voxels")
    patches_per_row: Positive = Field(16, description="patches cut from one degraded volume: spreads one FFT")
    interleave_rows: Positive = Field(2, description="volumes whose patches are mixed within one lane of the batch")
    min_foreground: float = Field(0.3, ge=0, le=1, description="least share of foreground in a training patch")
    cpus_per_task: float = Field(1.0, gt=0, description="logical CPUs that one data task reserves")
    rounds: Positive = Field(1, description="groups of interleaved volumes per lane that are computed ahead at a time")


class Generator(Section):
    growth_rate: Positive = Field(16, description="channels that each dense unit adds")
    blocks: Positive = Field(4, description="dense blocks")
    units: Positive = Field(4, description="dense units per block")
    residual: bool = Field(False, description="output = input + network, last layer initialised to zero")
    recompute: bool = Field(
        True, description="recompute dense blocks in the backward pass: half the memory, same numbers"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="evaluate and register a moving average of the weights, 0.999 say; null: off"
    )
    init_from: str | None = Field(
        None, description="start from: state_dict file (.pt, .safetensors), run folder, or models:/NAME@ALIAS"
    )


class Critic(Section):
    kind: Literal["full", "pointwise", "separable"] = Field("separable", description="architecture (design: 4.5)")
    samples_at_once: Positive | None = Field(
        1, description="patches the critic scores at a time: memory, same numbers; null: a whole forward pass"
    )
    weight_clip: float | None = Field(
        None, gt=0, description="clip weights to [-c, c] after each step; then set training.gp_weight=0; null: off"
    )


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
        None, description="patches per forward pass and worker, gradients accumulate; null: all of a worker's"
    )
    pretrain_lr: Rate = Field(1e-4, description="Adam learning rate of the L1 stage")
    generator_lr: Rate = Field(5e-6, description="Adam learning rate of the generator in the adversarial stage")
    critic_lr: Rate = Field(5e-6, description="Adam learning rate of the critic")
    adversarial_weight: float = Field(1e-3, ge=0, description="weight of the adversarial term beside L1")
    gp_weight: float = Field(10.0, ge=0, description="gradient-penalty weight")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="autocast of the generator; the critic is fp32")
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


class Validation(Section):
    protocol: Protocol = Field(
        "chen2018", description="the fixed degradation that figures are measured under; training never changes it"
    )
    further_protocols: tuple[Protocol, ...] = Field(
        (), description="measured beside it; they decide nothing in training"
    )
    split: str = Field("validation", description="split that chooses the best weights and the champion")
    every: Positive = Field(2000, description="steps between validations")
    patch_size: Positive = Field(64, description="edge of the cubes validated during training, voxels")
    patches_per_subject: Positive = Field(4, description="cubes per subject; the same ones for ever")
    max_subjects: Positive | None = Field(None, description="first N subjects of the split only; null: all")
    overlap: float = Field(0.25, ge=0, lt=1, description="share of a patch's edge that overlaps on whole volumes")
    metric: Literal["psnr", "ssim"] = Field("psnr", description="figure that decides, psnr in dB; higher is better")


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

    @property
    def run_folder(self) -> Path:
        return self.output / self.name

    @property
    def micro_batch(self) -> int:
        """Patches per forward pass, which BatchNorm normalises over: the same for every number of workers."""
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
        assert self.validation.protocol in PROTOCOLS
        return self
