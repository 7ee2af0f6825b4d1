"""When a group of workers is started, started again and given up: what Ray decides, with this project's rules.

Ray 2.60 counts failures over the whole run and never starts anew; it takes a node that is away for an error after a
minute, or asks again without a word; and it lets Ctrl-C wait for it. Its public hooks only listen. So the two policies
that it makes before a run, and its handler of Ctrl-C, are replaced in one place, `SupervisedTrainer`, which refuses to
work with another Ray (the project pins its release).
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray.train import ControllerError, FailureConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    FixedScalingPolicy,
    NoopDecision,
    ScalingDecision,
    ScalingPolicy,
)

from mrisr import cluster
from mrisr.training.outcome import TrainingStopped
from mrisr.training.run_folder import RunFolder
from mrisr.training.stopping import STOP_FILE

LOOK_EVERY_S = 0.5
LONGEST_PAUSE_S = 30.0
ABORT_S = 5.0  # for the controller to end its workers after Ctrl-C; it answers nothing while it waits for nodes


class StopRequested(TrainingFailedError):
    """SIGTERM came while no worker ran that could have listened to it."""


class Waiting:
    """What a run does while it has no workers: it says once that it waits, and ends if it is told to."""

    def __init__(self, run_folder: Path) -> None:
        self._run_folder = run_folder
        self._told = False

    def asked_to_stop(self) -> bool:
        """Whether the driver has received SIGTERM."""
        return (self._run_folder / STOP_FILE).exists()

    def look(self) -> None:
        """Raises StopRequested if the driver has received SIGTERM."""
        if self.asked_to_stop():
            newest = RunFolder(self._run_folder).newest()
            kept = f"{newest.name} is the last checkpoint" if newest else "there is no checkpoint yet"
            raise StopRequested(f"stopped by SIGTERM while no worker ran; {kept}")

    def go_on(self, what: str) -> None:
        """Sleep until the next look; `what` is missing."""
        if not self._told:
            print(f"waiting for nodes: no room for {what}", flush=True)
        self._told = True
        time.sleep(LOOK_EVERY_S)

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the run is told to end."""
        end = time.monotonic() + seconds
        while not self.asked_to_stop() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_EVERY_S))

    def over(self) -> None:
        self._told = False


class WholeGroupPolicy(FixedScalingPolicy):
    """Ray's policy for a group of one size, which here waits until the living nodes can hold all of it."""

    def __init__(self, scaling_config: ScalingConfig, task_cpus: float, run_folder: Path) -> None:
        super().__init__(scaling_config)
        self._task_cpus, self._waiting = task_cpus, Waiting(run_folder)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._waiting.look()
        need, workers = self.scaling_config._resources_per_worker_not_none, self.scaling_config.num_workers
        if not cluster.fits(cluster.nodes(), workers, need["CPU"], bool(need.get("GPU")), self._task_cpus):
            self._maybe_send_resource_request()  # an autoscaler, if there is one, shall hear of it
            self._waiting.go_on(f"{workers} workers and a data task")
            return NoopDecision()
        self._waiting.over()
        return super().make_decision_for_non_running_worker_group()


class ProgressPolicy(DefaultFailurePolicy):
    """Ray's failure policy, which here counts failures only while no newer checkpoint appears.

    patient: a group for which there is no room now is waited for, and no failure.
    """

    def __init__(self, failure_config: FailureConfig, run_folder: Path, patient: bool) -> None:
        super().__init__(failure_config)
        self._run_folder, self._patient = run_folder, patient
        self._waiting = Waiting(run_folder)
        self._newest: str | None = None
        self._pause = 1.0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        error = training_failed_error
        if isinstance(error, StopRequested) or stopped_by(error):
            return FailureDecision.RAISE
        found = RunFolder(self._run_folder).newest()
        newest = None if found is None else found.name
        if newest != self._newest:
            self._newest, self._pause = newest, 1.0
            super().__init__(self.failure_config)  # counts from zero
        cause = error.controller_failure if isinstance(error, ControllerError) else None
        if self._patient and isinstance(cause, WorkerGroupStartupTimeoutError):
            print(f"waiting for room: {cause.num_workers} workers could not be placed yet", flush=True)
            return FailureDecision.RETRY
        decision = super().make_decision(error)
        since = newest or "the start"
        if decision is FailureDecision.RETRY:
            print(f"the workers failed ({_reason(error)}); they are started again from {since}", flush=True)
            if cause is not None:
                self._waiting.pause(self._pause)  # a node that has just died is missed only after a while
                self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        elif isinstance(error, WorkerGroupError):
            most = self.failure_config.max_failures
            print(f"the workers failed and are given up: training.max_failures = {most} restarts since {since} "
                  "were of no use", flush=True)  # fmt: skip
        return decision


class SupervisedTrainer(TorchTrainer):
    """A TorchTrainer that starts and gives up its workers by policies of this project, and ends them upon Ctrl-C.

    scaling: made for the same scaling_config; None for Ray's own. patient: see ProgressPolicy.
    """

    def __init__(
        self, *args: Any, run_folder: Path, scaling: ScalingPolicy | None, patient: bool, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._policies: dict[str, Any] = {
            "failure_policy": ProgressPolicy(options["run_config"].failure_config, run_folder, patient)
        }
        if scaling is not None:
            self._policies["scaling_policy"] = scaling

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        return super()._initialize_and_run_controller(**replaced(options, self._policies))

    def _register_sigint_handler(self, controller: Any) -> None:
        signal.signal(signal.SIGINT, lambda number, frame: abort_run(controller))


def abort_run(controller: Any) -> NoReturn:
    """Upon Ctrl-C in the driver: the controller ends its workers and itself, or is ended; raises KeyboardInterrupt.

    Ray's own handler waits for the controller's answer without limit, and a controller that waits for nodes, or for
    workers to be placed, gives none. Its workers die with it; their room is given back when the driver has ended.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C waits for nothing
    try:
        ray.get(controller.abort.remote(), timeout=ABORT_S)
    except ray.exceptions.RayActorError:
        pass  # what an abort ends with
    except (ray.exceptions.RayError, KeyboardInterrupt):
        ray.kill(controller)
    raise KeyboardInterrupt


def replaced(options: dict[str, Any], policies: dict[str, Any]) -> dict[str, Any]:
    """Ray's options with these policies. Raises RuntimeError if Ray has none of that name, of a class of theirs."""
    for name, policy in policies.items():
        if name not in options or not isinstance(policy, type(options[name])):
            found = type(options[name]).__name__ if name in options else "nothing"
            raise RuntimeError(
                f"Ray {ray.__version__} has {found} where this project replaces its {name} by a "
                f"{type(policy).__name__}; install the release that ci/constraints.txt names"
            )
    return options | policies


def stopped_by(error: BaseException) -> TrainingStopped | None:
    """What a worker raised that starting it again would not mend, behind Ray's error; None for anything else."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return next((failure for failure in failures if isinstance(failure, TrainingStopped)), None)


def _reason(error: TrainingFailedError) -> str:
    causes = error.worker_failures.values() if isinstance(error, WorkerGroupError) else [error]
    cause = next(iter(causes), error)
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:200]
