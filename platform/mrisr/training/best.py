"""The best weights of a run so far, and the file of every checkpoint that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mrisr.training.checkpoint import REMEDY, CheckpointError

BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"


class Best:
    """The best weights so far by the validation figure, kept on every rank's CPU and inside every checkpoint."""

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
        """Raises CheckpointError if the checkpoint's file is missing or damaged."""
        self.step, self.figures = progress["step"], progress["figures"]
        if self.step is not None:
            self.state = best_weights(folder)


def best_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The best weights that a checkpoint holds, plain CPU tensors. Raises CheckpointError that names the folder."""
    try:
        return load_file(checkpoint / BEST_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {BEST_WEIGHTS}: {error}; {REMEDY}") from error


def sound_weights(checkpoint: Path) -> bool:
    """Whether the weights files that a checkpoint has are as long as their headers say; a cut one is not."""
    for name in (BEST_WEIGHTS, LAST_WEIGHTS):
        if (checkpoint / name).exists():
            try:
                with safe_open(checkpoint / name, framework="pt"):
                    pass
            except (OSError, SafetensorError):
                return False
    return True
