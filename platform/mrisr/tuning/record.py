"""What a trial leaves in its run's folder: a line per validation, and why it failed, if it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mrisr.metrics import METRICS

VALIDATIONS, FAILURE, INTERRUPTION = "validations.jsonl", "failure.txt", "interruption.txt"


class Record:
    """The validations of one run, in order of steps, whatever was killed in between."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, Any]] = []
        file = folder / VALIDATIONS
        for line in file.read_text().splitlines() if file.exists() else []:
            try:
                self._take(json.loads(line))
            except json.JSONDecodeError:
                continue  # The line that a kill cut off: its validation is made again.

    @property
    def step(self) -> int:
        return int(self.entries[-1]["step"]) if self.entries else 0

    @property
    def failure(self) -> str | None:
        file = self.folder / FAILURE
        return file.read_text() if file.exists() else None

    def _take(self, entry: dict[str, Any]) -> bool:
        new = entry["step"] > self.step
        if new:
            self.entries.append(entry)
        return new

    def add(self, step: int, figures: dict[str, float]) -> bool:
        """Store a validation; one that is there already (made again after a resumption) is left out: False."""
        entry = {"step": step, "figures": figures}
        new = self._take(entry)
        if new:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / VALIDATIONS).open("a") as file:
                file.write("\n" + json.dumps(entry))
        return new

    def fail(self, why: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / FAILURE).write_text(why)

    @property
    def interruption(self) -> str | None:
        """What around the trial stopped it, which says nothing about the trial: it goes on once that is mended."""
        file = self.folder / INTERRUPTION
        return file.read_text() if file.exists() else None

    def interrupt(self, why: str | None) -> None:
        """Note what stopped the trial; None: it goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if why is None:
            (self.folder / INTERRUPTION).unlink(missing_ok=True)
        else:
            (self.folder / INTERRUPTION).write_text(why)

    def results(self, metrics: tuple[str, ...]) -> list[dict[str, Any]]:
        """What Tune is told after each validation: the step, and the figures of the best validation up to then.

        Best is by the first metric, as the best weights of the run are, so that the figures belong to one network.
        """
        told, best, first = [], None, metrics[0]
        for entry in self.entries:
            if best is None or METRICS[first].improvement(entry["figures"][first], best["figures"][first]) > 0:
                best = entry
            told.append({"step": entry["step"], "best_step": best["step"]} | {m: best["figures"][m] for m in metrics})
        return told
