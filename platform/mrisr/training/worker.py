"""What every Ray Train worker runs: the loop from the first step, or the last checkpoint, to the end."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.util import get_current_placement_group
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrisr import cluster
from mrisr.config import Experiment
from mrisr.metrics import METRICS
from mrisr.models import MDCSRN, build_critic
from mrisr.stream import Batch, PatchMaker, RowPlan, StreamLimits, rank_batches
from mrisr.tracking import RunLogger
from mrisr.training import checkpoint
from mrisr.training.networks import Networks, StepConfig, build_networks
from mrisr.training.schedule import Schedule, phase
from mrisr.training.sharding import average_batchnorm, device_for_worker, full_state
from mrisr.training.step import train_step
from mrisr.training.validation import Validator
from mrisr.training.window import Window
from voxelstore import VolumeStore

BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"


def generator_config(experiment: Experiment) -> dict[str, Any]:
    """The architecture alone: what `MDCSRN(**...)` takes and a registered model carries."""
    return experiment.generator.model_dump(include={"growth_rate", "blocks", "units", "residual"})


def schedule_of(experiment: Experiment) -> Schedule:
    return Schedule(**experiment.schedule.model_dump())


def step_config(experiment: Experiment) -> StepConfig:
    t = experiment.training
    return StepConfig(
        seed=experiment.seed,
        batch_size=t.batch_size,
        micro_batch=t.micro_batch or t.batch_size // experiment.resources.workers,
        pretrain_lr=t.pretrain_lr,
        generator_lr=t.generator_lr,
        critic_lr=t.critic_lr,
        adversarial_weight=t.adversarial_weight,
        gp_weight=t.gp_weight,
        precision=t.precision,
        channels_last=t.channels_last,
        recompute=experiment.generator.recompute,
        sync_batchnorm=t.micro_batch is None,
    )


def patch_maker(experiment: Experiment, subjects: list[str]) -> PatchMaker:
    stream = experiment.stream
    plan = RowPlan(
        tuple(subjects), experiment.seed, stream.patches_per_row, stream.interleave_rows, experiment.training.batch_size
    )
    degradation = experiment.degradation.range()
    return PatchMaker(experiment.data.store, plan, degradation, stream.patch_size, stream.min_foreground)


def initial_networks(experiment: Experiment, initial: Path | None, device: torch.device) -> Networks:
    """Networks with the experiment's seeded initial weights, or a file's for the generator; sharded."""
    generator = MDCSRN(**generator_config(experiment), seed=experiment.seed)
    critic = None
    if schedule_of(experiment).needs_critic:
        critic = build_critic(experiment.critic.kind, experiment.stream.patch_size, seed=experiment.seed)
    if initial is not None:
        generator.load_state_dict(load_file(initial))
    return build_networks(generator, critic, step_config(experiment), device, experiment.training.strategy)


class Best:
    """The best weights so far by the validation figure, kept on rank 0's CPU and inside every checkpoint."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.step: int | None = None
        self.figures: dict[str, float] = {}
        self.state: dict[str, Tensor] = {}

    def offer(self, step: int, figures: dict[str, float], state: dict[str, Tensor]) -> bool:
        better = self.step is None or figures[self.metric] > self.figures[self.metric]
        if better:
            self.step, self.figures, self.state = step, dict(figures), state
        return better

    def progress(self) -> dict[str, Any]:
        return {"step": self.step, "figures": self.figures}

    def restore(self, progress: dict[str, Any], folder: Path) -> None:
        self.step, self.figures = progress["step"], progress["figures"]
        if self.step is not None:
            self.state = load_file(folder / BEST_WEIGHTS)


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One rank of a run. settings: experiment (JSON), tracking_uri, mlflow_run_id, initial weights, data_cpus."""
    cluster.quiet()
    experiment = Experiment.model_validate(settings["experiment"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = device_for_worker()
    if device.type == "cpu":
        threads = experiment.resources.threads_per_worker
        torch.set_num_threads(threads or max(1, settings["node_cpus"] // context.get_local_world_size()))

    store = VolumeStore.open(experiment.data.store)
    schedule, config = schedule_of(experiment), step_config(experiment)
    initial = Path(settings["initial"]) if settings["initial"] else None
    networks = initial_networks(experiment, initial, device)
    evaluated = MDCSRN(**generator_config(experiment)).to(device).eval()

    # The position in the stream is the step, so a checkpoint that knows its step knows its row.
    step, best, window = 0, Best(experiment.validation.metric), Window()
    if (found := ray.train.get_checkpoint()) is not None:
        with found.as_directory() as folder:
            progress = checkpoint.load(Path(folder), networks)
            best.restore(progress["best"], Path(folder))
        step = progress["step"]
        window.restore(progress["window"])

    v = experiment.validation
    subjects = store.subjects(v.split)[: v.max_subjects]
    validators = {
        protocol: Validator(store, subjects, protocol, v.patch_size, v.patches_per_subject, rank, world)
        for protocol in dict.fromkeys((v.protocol, *v.further_protocols))
    }
    latest: dict[str, float] = {}
    placement = get_current_placement_group()
    group = None if placement is None else placement.id.hex()
    logger = RunLogger(settings["tracking_uri"], settings["mlflow_run_id"]) if rank == 0 else None
    maker = patch_maker(experiment, store.subjects("train"))
    limits = StreamLimits(experiment.stream.cpus_per_task, settings["data_cpus"], experiment.stream.rounds)
    batches = rank_batches(maker, rank, world, step, schedule.total_steps, limits)

    def validate() -> None:
        average_batchnorm(networks.generator)
        state = full_state(networks.generator)
        evaluated.load_state_dict(state)
        figures, picture = validators[v.protocol].run(evaluated, device)
        for protocol in list(validators)[1:]:
            others, _ = validators[protocol].run(evaluated, device)
            figures |= {f"{protocol}/{key}": value for key, value in others.items()}
        if not all(math.isfinite(figures[metric]) for metric in METRICS):
            raise ArithmeticError(
                f"step {step}: the validation figures are not finite: {figures}; lower the learning rate"
            )
        latest.clear()
        latest.update(figures, validated=step)
        better = best.offer(step, figures, state)
        if logger is not None:
            logger.metrics(step, {f"validation/{key}": value for key, value in figures.items()})
            if picture is not None:
                logger.figure(step, "validation", picture)
            print(
                f"step {step:>7,} validation  psnr {figures['psnr']:.3f} dB "
                f"({figures['psnr_gain']:+.3f} over the input)  "
                f"ssim {figures['ssim']:.4f} ({figures['ssim_gain']:+.4f}){'  best so far' if better else ''}",
                flush=True,
            )

    def save() -> None:
        average_batchnorm(networks.generator)
        state = full_state(networks.generator)
        progress = {"step": step, "best": best.progress(), "window": window.progress()}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), networks, progress)
            if rank == 0:
                save_file(state, Path(folder) / LAST_WEIGHTS)
                if best.state:
                    save_file(best.state, Path(folder) / BEST_WEIGHTS)
            ray.train.report(
                {"step": step, **latest, "placement_group": group},
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"checkpoint_{step:08d}",
            )

    if step == 0:
        validate()
    t = experiment.training
    while step < schedule.total_steps:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        now = phase(schedule, step)
        metrics = train_step(networks, config, now, step, *_tensors(batch))
        step += 1
        window.add(now, metrics, waited, time.perf_counter() - started)

        last = step == schedule.total_steps
        if step % t.log_every == 0 or last:
            record = window.close(config, batch_size=t.batch_size)
            if logger is not None:
                logger.metrics(step, record)
                print(window.line(step, schedule.total_steps, now, record), flush=True)
        if step % experiment.validation.every == 0 or last:
            validate()
        if step % t.checkpoint_every == 0 or last:
            save()
    batches.close()
    return {"step": step, "best": best.progress()}


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """(lr, hr) float32; float16 is only how patches travel."""
    return torch.from_numpy(batch.lr).float(), torch.from_numpy(batch.hr).float()
