"""What a trial stores in its run's folder: its validations, and why it failed or was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mrisr.metrics import METRICS

VALIDATIONS, FAILURE, INTERRUPTION = "validations.jsonl", "failure.txt", "interruption.txt"


class TrialHistory:
    """The validations of one run in the order of steps, also after several kills."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder
        self.entries: list[dict[str, Any]] = []
        for line in (self._read(VALIDATIONS) or "").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # a kill cut this line off; the validation is repeated
            if entry["step"] > self.step:
                self.entries.append(entry)

    @property
    def step(self) -> int:
        return int(self.entries[-1]["step"]) if self.entries else 0

    @property
    def failure(self) -> str | None:
        return self._read(FAILURE)

    @property
    def interruption(self) -> str | None:
        """The external cause of an interruption, e.g. a full disk. The trial has not failed and can resume."""
        return self._read(INTERRUPTION)

    def add(self, step: int, figures: dict[str, float]) -> bool:
        """Append a validation. Returns False if it is known: a resumed run repeats some validations."""
        if step <= self.step:
            return False
        self.entries.append({"step": step, "figures": figures})
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / VALIDATIONS).open("a") as file:
            file.write("\n" + json.dumps(self.entries[-1]))
        return True

    def fail(self, why: str) -> None:
        self._write(FAILURE, why)

    def interrupt(self, why: str) -> None:
        self._write(INTERRUPTION, why)

    def resume(self) -> None:
        (self.folder / INTERRUPTION).unlink(missing_ok=True)

    def results(self, metrics: tuple[str, ...]) -> list[dict[str, Any]]:
        """The reports to Tune, one per validation: its step, and the best figures so far by the first metric."""
        results, best, first = [], None, metrics[0]
        for entry in self.entries:
            if best is None or METRICS[first].improvement(entry["figures"][first], best["figures"][first]) > 0:
                best = entry
            figures = {metric: best["figures"][metric] for metric in metrics}
            results.append({"step": entry["step"], "best_step": best["step"], **figures})
        return results

    def _read(self, name: str) -> str | None:
        file = self.folder / name
        return file.read_text() if file.exists() else None

    def _write(self, name: str, why: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(why)
