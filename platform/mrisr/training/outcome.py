"""How a run, or a group of its workers, ends before the last step."""

from __future__ import annotations


class TrainingStopped(RuntimeError):
    """New workers would fail again: values that are not finite, a full disk, too little memory. The message says the
    remedy."""


class StorageStopped(TrainingStopped):
    """A run could not write to its folder; raised on every rank. What was there before is untouched, and the next start
    continues from it."""


class TrackingUnreachable(TrainingStopped):
    """A run could not be begun in MLflow. Its settings are not at fault."""


class SubjectAtFault(TrainingStopped):
    """A subject of the store that no run can use; raised on the rank that read it, and on no other."""


# What stops a run and would stop another run of the same store on the same machines as well.
SURROUNDINGS = (StorageStopped, TrackingUnreachable, SubjectAtFault, OSError)


class Terminated(RuntimeError):
    """SIGTERM stopped a run: after a checkpoint, or while it had no workers."""


class RoomForMore(RuntimeError):
    """A group of workers saved a checkpoint and ended, because a larger one can go on."""


# Why all workers of a group ended together; None at the end of the schedule. Workers return it: what a worker raises
# instead ends its whole group, and Ray logs it as a failure.
Ending = TrainingStopped | Terminated | RoomForMore | None
