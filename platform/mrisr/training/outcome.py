"""How a run ends when it does not reach its last step."""

from __future__ import annotations


class TrainingStopped(RuntimeError):
    """A run that new workers would not mend: values that are not finite, a full disk, too little memory. The message
    says the remedy."""


class StorageStopped(TrainingStopped):
    """A run whose checkpoint could not be written. It goes on from the one before, and says nothing of its settings."""


class Terminated(RuntimeError):
    """A run that SIGTERM stopped: after a checkpoint, or while it had no workers."""


class FiguresNotFinite(ArithmeticError):
    """Validation figures that are NaN or infinite; equal on every rank, so every rank raises it."""
