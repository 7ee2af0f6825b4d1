"""One rank of a run: what every Ray Train worker does, from the newest checkpoint to the end of the schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import ray.train
import torch
from torch import Tensor

from mrisr import cluster
from mrisr.data.stream import Batch, StreamError, StreamLimits, rank_batches
from mrisr.data.training_subjects import trained_on
from mrisr.engine import checkpoint
from mrisr.engine.networks import average_statistics, clipped_weights, evaluated_state
from mrisr.engine.schedule import Phase, phase
from mrisr.engine.sharding import device_for_worker, full_state, gather_texts, largest
from mrisr.engine.step import NonFiniteError, set_learning_rate, train_step
from mrisr.evaluation.pictures import critic_figure
from mrisr.metrics import METRICS
from mrisr.models import build_generator
from mrisr.models.weights import serialised
from mrisr.tracking.outbox import LAST_DELIVERY_S, LAST_DELIVERY_WHEN_TERMINATED_S, Outbox
from mrisr.training import failed_step
from mrisr.training.build import initial_networks, patch_maker, step_config
from mrisr.training.checkpoints import LAST_WEIGHTS
from mrisr.training.critic_watch import CriticWatch
from mrisr.training.data_wait import DataWait
from mrisr.training.memory import memory_advice, out_of_memory
from mrisr.training.outcome import (
    Ending,
    RoomForMore,
    StorageStopped,
    StoreChanged,
    SubjectAtFault,
    Terminated,
    TerminatedWithoutData,
    TrainingStopped,
)
from mrisr.training.precision import resolve_precision
from mrisr.training.progress import ProgressLog
from mrisr.training.run_folder import RunFolder
from mrisr.training.state import RunState, Window
from mrisr.training.stopping import Request, Requests
from mrisr.training.validation import validate, validators
from mrisr.training.worker_settings import WorkerSettings
from voxelstore import StoreError, VolumeStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# MLflow's import takes 2 s of a core. The first steps have it to themselves.
FIRST_DELIVERY_S = 6.0


def train_worker(settings: WorkerSettings) -> Ending:
    """Train one rank. Returns why all ranks end before the end of the schedule.

    Raises SubjectAtFault, TerminatedWithoutData, and TrainingStopped if memory is too small. These end this rank only.
    """
    cluster.quiet()
    try:
        return _train_rank(settings)
    except Exception as error:
        if not out_of_memory(error):
            raise
        advice = memory_advice(RunFolder.of(settings.experiment).as_recorded(settings.experiment), error)
    raise TrainingStopped(advice)


def _train_rank(settings: WorkerSettings) -> Ending:
    rank: Rank | None = None
    ending: Ending = None
    try:
        rank = Rank(settings)
        rank.train()
    except (SubjectAtFault, TerminatedWithoutData):
        raise
    except (TrainingStopped, Terminated, RoomForMore) as error:
        ending = error
    if rank is not None and rank.outbox is not None:
        at_most = LAST_DELIVERY_WHEN_TERMINATED_S if isinstance(ending, (Terminated, RoomForMore)) else math.inf
        rank.outbox.close(LAST_DELIVERY_S, at_most)
    return ending


class Rank:
    """One rank's part of a run. Raises TrainingStopped on every rank if the checkpoint cannot be loaded."""

    def __init__(self, settings: WorkerSettings) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        experiment, share = settings.experiment, settings.share
        self.device = device_for_worker(share.gpu, experiment.training.tf32)
        if self.device.type == "cpu":
            threads = experiment.resources.threads_per_worker
            torch.set_num_threads(threads or max(1, settings.node_cpus // context.get_local_world_size()))

        self.folder = RunFolder.of(experiment)
        self.log = ProgressLog(self.folder.progress, f"rank-{self.rank}")
        newest = self.folder.agreed_checkpoint(self.log.note)
        self.experiment = experiment = resolve_precision(experiment, self.device, self.log.note)
        self.schedule, self.config = experiment.schedule, step_config(experiment, self.device)
        self.networks = initial_networks(experiment, settings.initial_weights, self.device, self.log.note)
        self.evaluated = build_generator(experiment.generator.architecture)
        self.evaluated.channels_last = self.config.channels_last
        self.evaluated.to(self.device).eval()
        self.state = RunState.of(experiment)
        if newest is not None:
            self._resume(newest)
        if self.rank == 0:
            self._tell_group()

        store = agreed_store(experiment.data.store, settings.dataset, self.folder)
        self.trained_on = trained_on(store, settings.initial_weights)
        self.validators = validators(experiment.validation, store, self.rank, self.world)
        self.outbox: Outbox | None = None
        if self.rank == 0:
            tracked = settings.tracking_uri, settings.mlflow_run_id
            self.outbox = Outbox(*tracked, self.folder.outbox, self.log.note, FIRST_DELIVERY_S)
        self.requests, self.critic_watch = Requests(self.folder, self.device), CriticWatch()
        self.maker = patch_maker(experiment, store.subjects("train"), settings.dataset)
        # The present cluster: after the loss of a node there are fewer workers and fewer CPUs.
        cpus = cluster.available()[0] / settings.runs - settings.driver_cpus
        task = experiment.stream.cpus_per_task
        self.limits = StreamLimits(
            task, cluster.data_share(cpus, share.cpus, self.world, task), experiment.stream.rounds
        )

    def _tell_group(self) -> None:
        """Rank 0 tells how many workers there are, and where they begin."""
        step, most = self.state.step, self.experiment.resources.workers
        self.log.record("workers", workers=self.world, step=step)
        if self.experiment.resources.min_workers is not None:
            self.log.note(
                f"{self.world} of {most} workers from step {step:,} on, each with "
                f"{self.config.local_batch(self.world)} of the {self.config.batch_size} patches of a step"
            )
        elif step:
            self.log.note(f"going on after step {step:,} of {self.schedule.total_steps:,}")

    def _resume(self, newest: Path) -> None:
        try:
            self.state.restore(checkpoint.load(newest, self.networks), newest)
        except checkpoint.CheckpointError as error:
            raise TrainingStopped(str(error)) from error
        self._report()  # the previous group may have died between writing and reporting it

    def train(self) -> None:
        """Train to the end of the schedule.

        Raises on every rank Terminated, RoomForMore, StorageStopped, and TrainingStopped for non-finite values; on one
        rank SubjectAtFault for a row that cannot be made, and TerminatedWithoutData.
        """
        total = self.schedule.total_steps
        waiting = DataWait(self.folder, self.limits.cpus_per_task, self.log.note)
        batches = rank_batches(self.maker, self.rank, self.world, self.state.step, total, self.limits, waiting)
        try:
            if self.state.step == 0:
                self._validate()
            while self.state.step < total:
                self._step(batches)
        finally:
            batches.close()

    def _step(self, batches: Iterator[Batch]) -> None:
        state, t = self.state, self.experiment.training
        started = time.perf_counter()
        batch = self._next(batches)
        waited = time.perf_counter() - started
        now, rate = phase(self.schedule, state.step), self.config.learning_rate(self.schedule, state.step)
        set_learning_rate(self.networks, now, rate)
        try:
            metrics = train_step(self.networks, self.config, now, state.step, *_tensors(batch))
        except NonFiniteError as error:
            raise TrainingStopped(self._recorded(batch, error)) from None
        state.step += 1
        if self.rank == 0:
            self.log.position(state.step, now)
        state.window.add(now, metrics, rate, waited, time.perf_counter() - started)
        if "interpolate_gradient_norm" in metrics:
            norm = metrics["interpolate_gradient_norm"]
            state.critic_norms.append(norm)
            if (dead := self.critic_watch.after_step(norm, state.step)) is not None and self.rank == 0:
                self.log.note(dead)

        last = state.step == self.schedule.total_steps
        if state.step % t.log_every == 0 or last:
            self._log(now)
        if state.step % self.experiment.validation.every == 0 or last:
            self._validate()
        request = self.requests.after_step()
        if state.step % t.checkpoint_every == 0 or last or request is not Request.NOTHING:
            self._save()
        if request is Request.RESIZE and not last:
            raise RoomForMore
        if request is Request.STOP and not last:
            raise Terminated(f"stopped by SIGTERM after step {state.step:,}, which is checkpointed")

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except StreamError as error:
            # The other ranks wait in the step's collectives. They end when this worker ends.
            raise SubjectAtFault(
                f"{error}. Another store needs a new run, which can start from this run's weights: name=... "
                f"generator.init_from={self.folder.path}"
            ) from None

    def _recorded(self, batch: Batch, error: NonFiniteError) -> str:
        try:
            record = failed_step.record(self.folder, self.networks, self.config, self.maker, batch, error)
        except StorageStopped as full:
            return f"{error}. It is not recorded for replay: {full}"
        return f"{error}. To see it again: mrisr replay {record}"

    def _log(self, now: Phase) -> None:
        state = self.state
        record, state.window = state.window.record(self.config.batch_size), Window()
        # One waiting rank delays all ranks: the others wait in the step's collectives.
        share = "throughput/data_wait_share"
        record[share] = largest(record.get(share, 0.0), self.device)
        if self.outbox is not None:
            self.outbox.metrics(state.step, record)
            self.log.record("metrics", step=state.step, phase=now, values=record)

    def _validate(self) -> None:
        state, networks = self.state, self.networks
        if self.rank == 0:
            self.log.position(state.step, "validation", now=True)
        average_statistics(networks)
        weights = evaluated_state(networks)
        self.evaluated.load_state_dict(weights)
        figures, picture = validate(self.validators, self.evaluated, self.device, self.config.precision)
        require_finite(figures, state.step, self.folder)
        state.latest = {**figures, "validated": state.step}
        better = state.offer(figures, weights)
        trained = networks.critic is not None and state.step > self.schedule.pretrain_steps
        critic = full_state(networks.critic) if networks.critic is not None and trained else None  # by all ranks
        if self.outbox is not None:
            self._log_validation(self.outbox, figures, picture, critic)
            shown = None if picture is None else str(self.folder.picture)
            self.log.record("validation", step=state.step, figures=figures, best=better, picture=shown)
        if trained:
            state.critic_norms.clear()

    def _log_validation(
        self, outbox: Outbox, figures: dict[str, float], picture: Figure | None, critic: dict[str, Tensor] | None
    ) -> None:
        step = self.state.step
        outbox.metrics(step, {f"validation/{key}": value for key, value in figures.items()})
        if picture is not None:
            outbox.figure(step, "validation", picture, copy=self.folder.picture)
        if critic is not None and self.networks.critic is not None:
            # Unclipped weights would hide the clipped ones.
            shown = clipped_weights(self.networks.critic) if self.config.weight_clip is not None else critic
            weights = {name: critic[name].numpy() for name in shown}
            histogram, spread = critic_figure(weights, self.state.critic_norms, self.config.weight_clip)
            outbox.figure(step, "critic", histogram)
            outbox.metrics(step, {f"critic_weights/{key}": value for key, value in spread.items()})

    def _save(self) -> None:
        average_statistics(self.networks)
        state, config = self.state, self.experiment.generator.architecture
        weights = state.weights() | {LAST_WEIGHTS: evaluated_state(self.networks)}
        about = self.trained_on, self.experiment.validation.protocol
        files = {n: serialised(config, one, *about) for n, one in weights.items()} if self.rank == 0 else {}
        progress = state.progress(self.networks, self.config.precision)
        self.folder.write_checkpoint(state.step, self.networks, progress, files)
        self._report()
        if self.rank == 0:
            self.log.record("checkpoint", step=state.step)
            self.folder.remove_old_checkpoints(self.experiment.training.keep_checkpoints)

    def _report(self) -> None:
        """Report the last validation to a search. Every rank must call it."""
        ray.train.report({"step": self.state.step, **self.state.latest})


def agreed_store(path: Path, fingerprint: str, folder: RunFolder) -> VolumeStore:
    """The store; every rank must call it. Raises StoreChanged on every rank if one finds it changed or missing."""
    problem = ""
    try:
        store = VolumeStore.open(path)
        if store.fingerprint() != fingerprint:
            problem = folder.other_data(path)
    except (StoreError, OSError) as error:
        problem = f"data.store = {path}: {error}; the same command goes on when the store is there"
    if problems := [text for text in gather_texts(problem) if text]:
        raise StoreChanged(problems[0])
    return store


def require_finite(figures: dict[str, float], step: int, folder: RunFolder) -> None:
    """Raise TrainingStopped if validation figures are not finite. The figures are the same on every rank."""
    measured = {key: value for key, value in figures.items() if key.rpartition("/")[2] in METRICS}
    if not all(math.isfinite(value) for value in measured.values()):
        raise TrainingStopped(
            f"after step {step} the validation figures are not finite: {measured}; start a new run from the best "
            f"weights with a smaller learning rate: name=... generator.init_from={folder.path}"
        )


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """(lr, hr) as float32 tensors. The stream delivers float16."""
    return torch.from_numpy(batch.lr).float(), torch.from_numpy(batch.hr).float()
