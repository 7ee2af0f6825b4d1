"""Shows a search: a table of its trials that changes in place in a terminal, else a line per event."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from mrisr.metrics import METRICS
from mrisr.screen import Screen
from mrisr.training.progress import ProgressReader
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.plan import SearchPlan, short
from mrisr.tuning.summary import SearchSummary


@dataclass
class TrialRow:
    """What is known of a trial. reader: of its run's progress while it runs, else None."""

    values: str
    state: str
    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    reader: ProgressReader | None = None


class SearchDisplay:
    """Tune's callback tells it what happens to trials; it follows the runs of trials by their folders."""

    def __init__(self, plan: SearchPlan, earlier: SearchSummary, console: Console) -> None:
        self.name, self.trials, self.steps = plan.folder.name, plan.trials, plan.trial_steps
        self.folder, self.metrics = plan.trials_folder, plan.base.tuning.metrics
        self.screen = Screen(self, console, keeps_block=False)  # the search ends with a table of its own
        ended = [one for one in earlier.trials if one.ended]
        self.rows = {one.run: TrialRow(_values(one.values), one.state, one.step, one.figures) for one in ended}

    @property
    def done(self) -> int:
        return sum(row.reader is None for row in self.rows.values())

    def started(self, run: str, values: Mapping[str, Any]) -> None:
        text = _values(values)
        with self.screen.lock:
            reader = ProgressReader(RunFolder(self.folder / run).progress, from_now=True)
            self.rows[run] = TrialRow(text, "starting", reader=reader)
        self._event(f"{run} starts: {text}")

    def validated(self, run: str, step: int, figures: Mapping[str, float]) -> None:
        with self.screen.lock:
            row = self.rows[run]
            row.step, row.figures = step, dict(figures)
        told = ", ".join(f"{metric} {value:.4f}" for metric, value in figures.items())
        self._event(f"{run} step {step:,}/{self.steps:,}: best {told}")

    def ended(self, run: str, state: str, why: str = "") -> None:
        """state: finished, stopped early or failed; why: of a failure."""
        with self.screen.lock:
            row = self.rows.setdefault(run, TrialRow("", state))  # its process may have failed before it started
            self._notes()
            row.state, row.reader = state, None
        at = f" at step {row.step:,}" if state == "stopped early" else ""
        (self.screen.say if why else self._event)(
            f"{run} {state}{at}{why and ': '}{why}; {self.done} of {self.trials} trials done"
        )

    def _event(self, text: str) -> None:
        if not self.screen.in_terminal:  # the table shows it
            self.screen.say(text)

    def shown(self) -> AbstractContextManager[None]:
        """In the block, show the search. At the end, notes of all trials are shown, also those of killed ones."""
        return self.screen.shown(self.look)

    def look(self) -> None:
        """Read what the runs of trials have recorded."""
        with self.screen.lock:
            self._notes()
            for row in self.rows.values():
                if row.reader is not None and (position := row.reader.position()) is not None:
                    row.state, row.step = position.doing, max(row.step, position.step)

    def _notes(self) -> None:
        for run, row in self.rows.items():
            for record in row.reader.new() if row.reader is not None else ():
                if record["kind"] == "note":
                    self.screen.say(f"{run}: {record['text']}")

    def __rich__(self) -> Table:
        """Running trials first, then ended ones, best first; as many as the terminal has lines for."""
        title = f"{self.name}: {self.done} of {self.trials} trials done"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("trial", "state", "step", *(METRICS[metric].label for metric in self.metrics)):
            table.add_column(name, no_wrap=True, justify="left" if name in ("trial", "state") else "right")
        table.add_column("values", no_wrap=True, overflow="ellipsis")
        shown = sorted(self.rows.items(), key=self._place)[: max(3, self.screen.console.height - 6)]
        for run, row in shown:
            figures = (METRICS[m].text(row.figures[m]) if m in row.figures else "" for m in self.metrics)
            table.add_row(run, row.state, f"{row.step:,}/{self.steps:,}", *figures, row.values)
        return table

    def _place(self, item: tuple[str, TrialRow]) -> tuple[bool, bool, float, str]:
        run, row = item
        metric = METRICS[self.metrics[0]]
        behind = metric.improvement(0.0, row.figures.get(metric.name, 0.0))
        return row.reader is None, not row.figures, behind, run


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={short(value)}" for key, value in values.items())
