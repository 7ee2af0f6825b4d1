"""How a run, or a group of its workers, ends before the last step."""

from __future__ import annotations


class TrainingStopped(RuntimeError):
    """New workers would fail again; the message says the remedy."""


class StorageStopped(TrainingStopped):
    """A run could not write to its folder; raised on every rank. The next start continues from what is there."""


class TrackingUnreachable(TrainingStopped):
    """A run could not be begun in MLflow. Its settings are not at fault."""


class StoreChanged(TrainingStopped):
    """The store is not the one that the run began with, or cannot be opened any more; raised on every rank."""


class SubjectAtFault(TrainingStopped):
    """A subject of the store that no run can use; raised on the rank that read it, and on no other."""


# These are not the fault of a run's settings: another run of the same store on the same machines would stop too.
OUTSIDE_CAUSES = (StorageStopped, TrackingUnreachable, StoreChanged, SubjectAtFault, OSError)


class Terminated(RuntimeError):
    """SIGTERM stopped a run: after a checkpoint, or while it had no workers."""


class RoomForMore(RuntimeError):
    """A group of workers saved a checkpoint and ended, because a larger one can go on."""


# Why all workers of a group ended together; None at the end of the schedule. Workers return it: what a worker raises
# instead ends its whole group, and Ray logs it as a failure.
Ending = TrainingStopped | Terminated | RoomForMore | None


def reason(error: BaseException) -> str:
    """One line: what a worker raised, without Ray's wrapping, or the error itself."""
    cause = next(iter(getattr(error, "worker_failures", {}).values()), error)
    text = str(cause).strip()
    if isinstance(cause, TrainingStopped):
        return text
    if "Traceback (most recent call last)" in text:  # of a task; it ends with `package.module.Class: message`
        name, colon, message = text.splitlines()[-1].partition(": ")
        return f"{name.rsplit('.', 1)[-1]}{colon}{message}"[:400]
    return f"{type(cause).__name__}: {text}".splitlines()[0][:400]
