"""How a run, or one of its groups of workers, ends before the last step."""

from __future__ import annotations


class TrainingStopped(RuntimeError):
    """Training stopped, and new workers would fail in the same way. The message contains the remedy."""


class StorageStopped(TrainingStopped):
    """A run could not write to its folder; raised on every rank. The next start resumes from the newest checkpoint."""


class TrackingUnreachable(TrainingStopped):
    """MLflow could not register a new run. The run's settings are not the cause."""


class StoreChanged(TrainingStopped):
    """The store differs from the one that the run began with, or cannot be opened; raised on every rank."""


class SubjectAtFault(TrainingStopped):
    """A subject of the store that no run can use; raised only on the rank that read it."""


# Causes outside a run's settings. Another run of the same store on the same machines would stop too.
OUTSIDE_CAUSES = (StorageStopped, TrackingUnreachable, StoreChanged, SubjectAtFault, OSError)


class Terminated(RuntimeError):
    """SIGTERM stopped a run, after a checkpoint or while it had no workers."""


class TerminatedWithoutData(Terminated):
    """SIGTERM stopped a run while a rank waited for its data tasks; raised only on that rank."""


class RoomForMore(RuntimeError):
    """A group of workers saved a checkpoint and ended, because a larger group can continue."""


# Why all workers of a group ended together; None at the end of the schedule. Workers return it, because Ray logs an
# exception of a worker as a failure and ends the group.
Ending = TrainingStopped | Terminated | RoomForMore | None


def reason(error: BaseException) -> str:
    """The error of a worker in one line, without Ray's wrapping."""
    cause = next(iter(getattr(error, "worker_failures", {}).values()), error)
    if isinstance(inner := getattr(cause, "cause", None), BaseException):
        cause = inner  # the text of Ray's own error holds escape codes and memory addresses
    text = str(cause).strip()
    if isinstance(cause, TrainingStopped):
        return text
    if "Traceback (most recent call last)" in text:  # of a task; it ends with `package.module.Class: message`
        name, colon, message = text.splitlines()[-1].partition(": ")
        return f"{name.rsplit('.', 1)[-1]}{colon}{message}"[:400]
    return f"{type(cause).__name__}: {text}".splitlines()[0][:400]
