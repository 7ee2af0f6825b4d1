"""How a run ends when it does not reach its last step."""

from __future__ import annotations


class TrainingStopped(RuntimeError):
    """A run that new workers would not mend: values that are not finite, a full disk, too little memory. The message
    says the remedy."""


class StorageStopped(TrainingStopped):
    """A run that could not write to its folder; raised on every rank. What was there before is untouched, and the next
    start continues from it."""


class TrackingUnreachable(TrainingStopped):
    """A run that could not be begun in MLflow, which says nothing of its settings."""


class SubjectAtFault(TrainingStopped):
    """A run that has come to a subject of the store that no run can use."""


# What stops a run and would stop another one of the same store and the same machines as well.
SURROUNDINGS = (StorageStopped, TrackingUnreachable, SubjectAtFault, OSError)


class Terminated(RuntimeError):
    """A run that SIGTERM stopped: after a checkpoint, or while it had no workers."""


class FiguresNotFinite(ArithmeticError):
    """Validation figures that are NaN or infinite; equal on every rank, so every rank raises it."""
