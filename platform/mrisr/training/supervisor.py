"""The driver's loop around Ray Train: it starts one group of workers after another until the run ends.

A group is one `TorchTrainer.fit()` with a fixed number of workers. It starts from the newest checkpoint in the run's
folder and keeps no other state. So Ray's own restarts, scaling and list of checkpoints are not used.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.placement_group import placement_group, remove_placement_group

from mrisr import cluster
from mrisr.training.launcher import start_launcher
from mrisr.training.outcome import Ending, RoomForMore, Terminated, TrainingStopped, reason
from mrisr.training.placement_groups import release_groups
from mrisr.training.progress import Tell
from mrisr.training.run_folder import RunFolder
from mrisr.training.sigterm import stop_on_sigterm
from mrisr.training.worker_settings import WorkerSettings

LOOK_EVERY_S = 0.5
# Seconds to wait before a smaller group is tried. Workers of the previous group may still be ending.
LARGEST_GROUP_S, SMALLER_GROUP_S = 5.0, 1.0
LONGEST_PAUSE_S = 30.0


class Supervisor:
    """Trains one run. callbacks: for Ray Train; tell: takes what the user must know; launcher: one that has started."""

    def __init__(
        self, settings: WorkerSettings, callbacks: tuple[Any, ...] = (), tell: Tell = print, launcher: Any = None
    ) -> None:
        self.settings, self.callbacks, self.tell, self.launcher = settings, callbacks, tell, launcher
        self.experiment, self.share = settings.experiment, settings.share
        self.folder, self.counts = RunFolder.of(self.experiment), self.experiment.worker_counts
        self.failures = Failures(self.experiment.training.max_failures, self.folder, settings.runs > 1, tell)

    def run(self) -> None:
        """Train to the end of the schedule.

        Raises TrainingStopped if new workers would fail again, Terminated after SIGTERM, KeyboardInterrupt immediately,
        and Ray's error after training.max_failures.
        """
        try:
            with stop_on_sigterm(self.folder):
                while True:
                    workers = self._wait_for_room()
                    try:
                        ending = self._train(workers)
                    except (TrainingFailedError, RayActorError) as error:
                        self._pause(self.failures.add(error))
                        continue
                    if ending is None:
                        return
                    if not isinstance(ending, RoomForMore):
                        raise ending
        finally:
            self._end_group()

    def _train(self, workers: int) -> Ending:
        self.folder.resize_request.unlink(missing_ok=True)
        storage, every = self.folder.ray, self.experiment.resources.resize_every_s
        shutil.rmtree(storage, ignore_errors=True)
        if self.launcher is None:
            self.launcher = start_launcher()
        ended = self.launcher.fit.remote(workers, self.settings, storage, self.callbacks)
        look_at, stopping = time.monotonic() + every, False
        while not ray.wait([ended], timeout=LOOK_EVERY_S)[0]:
            if not stopping and (stopping := self.folder.stop_request.exists()):
                self.tell("SIGTERM: the workers write a checkpoint and stop")
            if workers < self.counts[0] and time.monotonic() > look_at:
                self._grow(workers)
                look_at = time.monotonic() + every
        try:
            ending, error = ray.get(ended)
        except RayActorError:
            self._end_group()
            raise
        if error is not None:
            raise error
        return cast(Ending, ending)

    def _end_group(self) -> None:
        if self.launcher is not None:
            ray.kill(self.launcher)
            self.launcher = None
            release_groups(self.folder.path, now=True)
        shutil.rmtree(self.folder.ray, ignore_errors=True)

    def _fitting(self) -> list[int]:
        """The group sizes that the living nodes can hold together with a data task, largest first."""
        nodes, task = cluster.nodes(), self.experiment.stream.cpus_per_task
        return [n for n in self.counts if cluster.fits(nodes, n, self.share.cpus, self.share.gpu, task)]

    def _wait_for_room(self) -> int:
        """Wait until a group can be placed. Returns its number of workers. Raises Terminated after SIGTERM."""
        self._look_for_sigterm()
        if self.settings.runs > 1 and len(self.counts) == 1:
            return self.counts[0]  # the search has kept room for it
        reported = False
        while True:
            fitting = self._fitting()
            for workers in fitting or self.counts[-1:]:
                patience = LARGEST_GROUP_S if workers == max(fitting, default=0) else SMALLER_GROUP_S
                if self._placed(workers, fitting, patience):
                    return workers
            if not reported and self._fitting() == fitting:
                self.tell(
                    f"waiting for nodes: no room for {self.counts[-1]} workers and a data task; add a node, or end "
                    "other jobs of this cluster"
                )
                reported = True

    def _placed(self, workers: int, fitting: list[int], seconds: float) -> bool:
        """Whether a group can be placed within `seconds` and before the nodes change."""
        end = time.monotonic() + seconds
        with reserved(workers, self.share) as group:
            while time.monotonic() < end and self._fitting() == fitting:
                self._look_for_sigterm()
                if workers not in fitting:  # an autoscaler, if there is one, sees what is missing
                    time.sleep(LOOK_EVERY_S)
                elif group.wait(LOOK_EVERY_S):
                    return True
        return False

    def _grow(self, workers: int) -> None:
        for more in self._fitting():
            if more <= workers:
                return
            with reserved(more - workers, self.share) as group:
                if not group.wait(SMALLER_GROUP_S):
                    continue
            with suppress(OSError):  # a full disk; the group then stays as it is
                self.folder.resize_request.touch()
            return

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.folder.stop_request.exists() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_EVERY_S))

    def _look_for_sigterm(self) -> None:
        if self.folder.stop_request.exists():
            raise Terminated(f"stopped by SIGTERM while no worker ran; {self.folder.last_checkpoint}")


class Failures:
    """Counts failures since the newest checkpoint. most: how many are followed by a new group; -1: no limit.

    in_search: if workers cannot be placed, this counts as a failure: the search has reserved their resources.
    """

    def __init__(self, most: int, folder: RunFolder, in_search: bool = False, tell: Tell = print) -> None:
        self.most, self.folder, self.in_search, self.tell = most, folder, in_search, tell
        self.newest: Path | None = None
        self.count = 0
        self.pause = 1.0

    def add(self, error: Exception) -> float:
        """Seconds until the next group may start. Raises TrainingStopped or the error if there is no next group."""
        if (stopped := stopped_by(error)) is not None:
            raise stopped from None
        newest = self.folder.newest()
        if newest != self.newest:
            self.newest, self.count, self.pause = newest, 0, 1.0
        if not self.in_search and _not_placed(error):
            return 0.0  # another job took the room: wait for it again
        self.count += not was_announced(error)
        since = newest.name if newest else "the start"
        if 0 <= self.most < self.count:
            self.tell(
                f"the workers failed and are given up: training.max_failures = {self.most} restarts since {since} did "
                "not help"
            )
            raise error
        self.tell(f"the workers failed ({reason(error)}); they are started again from {since}")
        if isinstance(error, WorkerGroupError) or was_announced(error):
            return 0.0
        # The group did not start or its process died. Ray notices a dead node only after some time.
        pause, self.pause = self.pause, min(2 * self.pause, LONGEST_PAUSE_S)
        return pause


@contextmanager
def reserved(workers: int, share: cluster.Share) -> Iterator[Any]:
    """A placement group of that many workers, removed at the end. It shows whether they can be placed now."""
    group = placement_group([share.bundle] * workers)
    try:
        yield group
    finally:
        remove_placement_group(group)


def was_announced(error: Exception) -> bool:
    """Whether Ray had announced the loss of the node. Such a failure does not count."""
    causes = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    preempted = getattr(ray.train, "PreemptionError", ())  # since Ray 2.60
    return isinstance(error, preempted) or any(getattr(cause, "preempted", False) for cause in causes)


def stopped_by(error: BaseException) -> TrainingStopped | Terminated | None:
    """The error of a worker that new workers would raise again, else None."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return next((failure for failure in failures if isinstance(failure, (TrainingStopped, Terminated))), None)


def _not_placed(error: Exception) -> bool:
    """Whether a group's workers could not be placed within Ray's time limit. Only the name of Ray's class is known."""
    cause = error.controller_failure if isinstance(error, ControllerError) else None
    return type(cause).__name__ == "WorkerGroupStartupTimeoutError"
