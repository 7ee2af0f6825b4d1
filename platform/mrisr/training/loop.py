"""The loop of one rank: step after step, with records, validations and checkpoints between them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray.train
import torch
from ray.train import CheckpointUploadMode
from torch import Tensor

from mrisr.config import Experiment
from mrisr.data.stream import Batch, PatchMaker, StreamError
from mrisr.engine.networks import Networks, StepConfig, average_statistics, evaluated_state
from mrisr.engine.schedule import Phase, Schedule, phase
from mrisr.engine.sharding import full_state, largest
from mrisr.engine.step import NonFiniteError, train_step
from mrisr.evaluation.pictures import critic_figure
from mrisr.metrics import METRICS
from mrisr.models import MDCSRN
from mrisr.tracking.outbox import Outbox
from mrisr.training import failed_step
from mrisr.training.build import generator_config
from mrisr.training.checkpoints import BEST_WEIGHTS, LAST_WEIGHTS
from mrisr.training.outcome import FiguresNotFinite, StorageStopped, SubjectAtFault
from mrisr.training.run_folder import RunFolder
from mrisr.training.state import RunState
from mrisr.training.stopping import Request, Requests
from mrisr.training.validation import Validator, describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Why a run ends before its last step, which starting the workers again would not mend: kind and message.
Stopped = list[str]


@dataclass
class Loop:
    """One rank's part of a run, from `state` to the end of the schedule; every rank runs it in step with the others.

    evaluated: a whole copy of the generator, for validation; validators: by protocol; outbox: to MLflow, of rank 0.
    """

    experiment: Experiment
    schedule: Schedule
    config: StepConfig
    networks: Networks
    evaluated: MDCSRN
    state: RunState
    validators: Mapping[str, Validator]
    maker: PatchMaker
    batches: Iterator[Batch]
    requests: Requests
    outbox: Outbox | None

    def run(self) -> Stopped | None:
        """None at the end of the schedule, else why it ends before: `terminated`, `non-finite` or `storage`.

        Raises SubjectAtFault, on the rank alone whose row cannot be made.
        """
        try:
            if self.state.step == 0:
                self._validate()
            while self.state.step < self.schedule.total_steps:
                if (stopped := self._next()) is not None:
                    return stopped
        except StorageStopped as error:
            return ["storage", str(error)]
        except FiguresNotFinite as error:
            return ["non-finite", str(error)]
        return None

    def _next(self) -> Stopped | None:
        """A step, and what is due after it."""
        state, t = self.state, self.experiment.training
        started = time.perf_counter()
        batch = self._batch()
        waited = time.perf_counter() - started
        now = phase(self.schedule, state.step)
        try:
            metrics = train_step(self.networks, self.config, now, state.step, *_tensors(batch))
        except NonFiniteError as error:
            return self._not_finite(batch, error)
        state.step += 1
        state.window.add(now, metrics, waited, time.perf_counter() - started)
        if "interpolate_gradient_norm" in metrics:
            state.critic_norms.append(metrics["interpolate_gradient_norm"])

        last = state.step == self.schedule.total_steps
        if state.step % t.log_every == 0 or last:
            self._log(now)
        if state.step % self.experiment.validation.every == 0 or last:
            self._validate()
        request = self.requests.after_step()
        if state.step % t.checkpoint_every == 0 or last or request is not Request.NOTHING:
            self._save()
        if request is Request.STOP and not last:
            return ["terminated", f"stopped by SIGTERM after step {state.step:,}, which is checkpointed"]
        return None

    def _batch(self) -> Batch:
        try:
            return next(self.batches)
        except StreamError as error:
            # The other ranks have their batches: they are in the step's collectives, and end with this worker.
            raise SubjectAtFault(
                f"{error}. Another store needs a new run, which may begin at this one's weights: name=... "
                f"generator.init_from={self.experiment.run_folder}"
            ) from None

    def _not_finite(self, batch: Batch, error: NonFiniteError) -> Stopped:
        folder = self.experiment.run_folder
        try:
            recorded = failed_step.record(folder, self.networks, self.config, self.maker, batch, error)
        except StorageStopped as full:
            return ["non-finite", f"{error}. It is not recorded for replay: {full}"]
        return ["non-finite", f"{error}. To see it again: mrisr replay {recorded}"]

    def _log(self, now: Phase) -> None:
        state, window = self.state, self.state.window
        record = window.close(self.config, batch_size=self.experiment.training.batch_size)
        # One rank that waits holds up all: the others' time for it passes in the step's collectives.
        share = "throughput/data_wait_share"
        record[share] = largest(record.get(share, 0.0), self.networks.device)
        if self.outbox is not None:
            self.outbox.metrics(state.step, record)
            print(window.line(state.step, self.schedule.total_steps, now, record), flush=True)

    def _validate(self) -> None:
        state, v = self.state, self.experiment.validation
        average_statistics(self.networks)
        weights = evaluated_state(self.networks)
        self.evaluated.load_state_dict(weights)
        figures, picture = self._figures(v.protocol)
        for protocol in list(self.validators)[1:]:
            figures |= {f"{protocol}/{key}": value for key, value in self._figures(protocol)[0].items()}
        if not all(math.isfinite(value) for key, value in figures.items() if key.rpartition("/")[2] in METRICS):
            raise FiguresNotFinite(
                f"after step {state.step} the validation figures are not finite: {figures}; start a new run from the "
                f"best weights with a smaller learning rate: name=... generator.init_from={self.experiment.run_folder}"
            )
        state.latest = {**figures, "validated": state.step}
        better = state.best.offer(state.step, figures, weights)
        # All ranks take part in gathering the critic's weights.
        networks, trained = self.networks, state.step > self.schedule.pretrain_steps
        critic = full_state(networks.critic) if networks.critic is not None and trained else None
        if self.outbox is not None:
            self._log_validation(self.outbox, figures, picture, critic)
            print(
                f"step {state.step:>7,} validation  {describe(figures)}{'  best so far' if better else ''}",
                flush=True,
            )
        if critic is not None:
            state.critic_norms.clear()

    def _figures(self, protocol: str) -> tuple[dict[str, float], Figure | None]:
        return self.validators[protocol].run(self.evaluated, self.networks.device, self.config.precision)

    def _log_validation(
        self, outbox: Outbox, figures: dict[str, float], picture: Figure | None, critic: dict[str, Tensor] | None
    ) -> None:
        step = self.state.step
        outbox.metrics(step, {f"validation/{key}": value for key, value in figures.items()})
        if picture is not None:
            outbox.figure(step, "validation", picture)
        if critic is not None:
            weights = {name: value.numpy() for name, value in critic.items()}
            histogram, spread = critic_figure(weights, self.state.critic_norms, self.config.weight_clip)
            outbox.figure(step, "critic", histogram)
            outbox.metrics(step, {f"critic_weights/{key}": value for key, value in spread.items()})

    def _save(self) -> None:
        average_statistics(self.networks)
        state, best = self.state, self.state.best
        weights = {LAST_WEIGHTS: evaluated_state(self.networks)} | ({BEST_WEIGHTS: best.state} if best.state else {})
        progress = state.progress(self.networks, self.config.precision)
        folder = RunFolder.of(self.experiment).write_checkpoint(
            state.step, self.networks, progress, weights, generator_config(self.experiment)
        )
        report(folder, state)


def report(folder: Path, state: RunState) -> None:
    """Tell Ray of a checkpoint that lies in its place; every rank must call it."""
    ray.train.report(
        {"step": state.step, **state.latest},
        checkpoint=ray.train.Checkpoint(str(folder)),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """(lr, hr) float32; float16 is only how patches travel."""
    return torch.from_numpy(batch.lr).float(), torch.from_numpy(batch.hr).float()
