"""What a run has come to beside its networks: what `progress.json` of a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrisr.engine.networks import Networks
from mrisr.training.best import Best
from mrisr.training.window import Window


@dataclass
class RunState:
    """The same on every rank, but for the clock in `window`.

    step: steps done, which is the position in the stream as well, so that a checkpoint that knows its step knows its
    row; critic_norms: of the critic's gradient since its last picture; latest: figures of the last validation, and
    after which step: `validated`.
    """

    best: Best
    step: int = 0
    window: Window = field(default_factory=Window)
    critic_norms: list[float] = field(default_factory=list)
    latest: dict[str, float] = field(default_factory=dict)

    def progress(self, networks: Networks, precision: str) -> dict[str, Any]:
        """For a checkpoint's JSON; with it what depends on the hardware that the run began on, and must stay."""
        return {
            "step": self.step, "best": self.best.progress(), "window": self.window.progress(),
            "critic_norms": self.critic_norms, "latest": self.latest, "batchnorm_over": networks.batchnorm_over,
            "precision": precision,
        }  # fmt: skip

    def restore(self, progress: dict[str, Any], folder: Path) -> None:
        """Take what a checkpoint told, and the best weights from its folder; every rank must call it.

        Raises CheckpointError on every rank if those weights are missing or damaged for any of them.
        """
        self.best.restore(progress["best"], folder)
        self.step = progress["step"]
        self.window.restore(progress["window"])
        self.critic_norms, self.latest = progress["critic_norms"], progress["latest"]
