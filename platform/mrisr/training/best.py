"""The best weights of a run: by one score, which is the score of a trial where the run is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mrisr.config.validation import Validation
from mrisr.engine.checkpoint import refused_together
from mrisr.metrics import METRICS
from mrisr.training.checkpoints import best_weights


def score(figures: Mapping[str, Any], metric: str, main: str, protocols: tuple[str, ...]) -> float:
    """A metric's mean over protocols, of a validation's figures; `main` is the protocol without a prefix."""
    keys = [metric if protocol == main else f"{protocol}/{metric}" for protocol in protocols or (main,)]
    return sum(float(figures[key]) for key in keys) / len(keys)


class Best:
    """The best weights so far by the validation's score, kept on every rank's CPU and inside every checkpoint.

    step: after which they were validated, None before the first validation that counts; figures: of that validation;
    state: the generator's state dict, empty while step is None.
    """

    def __init__(self, validation: Validation) -> None:
        self.validation = validation
        self.step: int | None = None
        self.figures: dict[str, float] = {}
        self.state: dict[str, Tensor] = {}

    def offer(self, step: int, figures: dict[str, float], state: dict[str, Tensor]) -> bool:
        """Take the weights if they are better than all before; of equal ones the first stay."""
        counts = step > 0 or self.validation.start_counts
        better = counts and (self.step is None or self._beats(figures))
        if better:
            self.step, self.figures, self.state = step, dict(figures), state
        return better

    def _beats(self, figures: dict[str, float]) -> bool:
        v = self.validation
        now, before = (score(f, v.metric, v.protocol, v.mean_over) for f in (figures, self.figures))
        return METRICS[v.metric].improvement(now, before) > 0

    def progress(self) -> dict[str, Any]:
        return {"step": self.step, "figures": self.figures}

    def restore(self, progress: dict[str, Any], folder: Path) -> None:
        """Take what `progress` told, and the weights, from a checkpoint's folder; every rank must call it.

        Raises CheckpointError on every rank if the checkpoint's file is missing or damaged for any of them.
        """
        self.step, self.figures = progress["step"], progress["figures"]
        with refused_together():
            if self.step is not None:
                self.state = best_weights(folder)
