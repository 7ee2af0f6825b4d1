"""What a run's progress records say to a person: one line each, or one block that changes in place."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mrisr.config import Experiment
from mrisr.engine.schedule import Phase, Schedule
from mrisr.metrics import METRICS
from mrisr.training.progress import Position

RATE_OVER_S = 120.0  # the time left follows from the speed in these last seconds, validations included


def line(record: Mapping[str, Any], total: int) -> str | None:
    """A record as a line without a prefix; None for one that only the block shows."""
    if record["kind"] == "note":
        return str(record["text"])
    if record["kind"] == "metrics":
        values = record["values"]
        left = clock((total - record["step"]) / values["throughput/steps_per_second"])
        return f"step {record['step']:>7,}/{total:,}  {losses(values)}  {speed(values)}  {left} left"
    if record["kind"] == "validation":
        best = "  best so far" if record["best"] else ""
        return f"step {record['step']:>7,} validation  {describe(record['figures'])}{best}"
    return None


def losses(values: Mapping[str, float]) -> str:
    return ", ".join(f"{phase} loss {values[f'{phase}/loss']:.5f}" for phase in Phase if f"{phase}/loss" in values)


def describe(figures: Mapping[str, float]) -> str:
    """`Validator.run`'s figures as text: `PSNR 30.02 dB (+0.45 dB), ... against the ... input`."""
    parts = (
        f"{metric.label} {metric.text(figures[name])} ({metric.text(figures[f'{name}_gain'], '+')})"
        for name, metric in METRICS.items()
    )
    return f"{', '.join(parts)} against the gain-corrected input"


def speed(values: Mapping[str, float]) -> str:
    patches, waiting = values["throughput/patches_per_second"], values["throughput/data_wait_share"]
    return f"{patches:.1f} patches/s  data wait {waiting:.0%}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, from a day on as `2 d 3:04:05`."""
    days, rest = divmod(int(seconds), 86400)
    text = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {text}" if days else text


class Status:
    """The newest of everything about one run, drawn as a block. It keeps what it is given and asks nobody."""

    def __init__(self, experiment: Experiment) -> None:
        self.name, self.schedule = experiment.name, experiment.schedule
        self.total = experiment.schedule.total_steps
        self.doing, self.step, self.ended = "starting", 0, False
        self.newest: dict[str, dict[str, Any]] = {}  # by kind of record
        self.best: dict[str, Any] | None = None
        self.picture = ""
        self._positions: deque[Position] = deque()
        self._seen = 0.0  # by this machine's clock: when the last position came

    def take(self, record: dict[str, Any]) -> None:
        self.newest[record["kind"]] = record
        if record["kind"] == "workers":
            self._positions.clear()  # another group, another speed
        if record["kind"] == "validation":
            self.best = record if record["best"] else self.best
            self.picture = record["picture"] or self.picture
        self.step = record.get("step", self.step)

    def at(self, position: Position | None) -> None:
        if position is None or (self._positions and position.time <= self._positions[-1].time):
            return
        self.doing, self.step = position.doing, position.step
        self._positions.append(position)
        self._seen = time.monotonic()
        while position.time - self._positions[0].time > RATE_OVER_S:
            self._positions.popleft()

    @property
    def seconds_left(self) -> float | None:
        """By the speed since RATE_OVER_S seconds; None before two positions are known, and when the run has ended."""
        if len(self._positions) < 2 or self.ended:
            return None
        first, last = self._positions[0], self._positions[-1]
        steps, seconds = last.step - first.step, last.time - first.time
        if steps <= 0:
            return None
        return max(0.0, (self.total - last.step) * seconds / steps - (time.monotonic() - self._seen))

    def __rich__(self) -> RenderableType:
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        bar = ProgressBar(total=self.total, completed=self.step)
        head.add_row(Text(self.name, "bold"), bar, f"step {self.step:,} of {self.total:,}")
        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True, style="dim")
        rows.add_column(overflow="fold")
        for label, text in self._rows():
            rows.add_row(label, text)
        return Group(head, rows)

    def _rows(self) -> Iterator[tuple[str, RenderableType]]:
        workers, left = self.newest.get("workers", {}).get("workers"), self.seconds_left
        now = "ended" if self.ended else self.doing + (f" on {workers} workers" if workers else "")
        yield (
            "stage",
            f"{stage(self.schedule, self.step)}: {now}{f', about {clock(left)} left' if left is not None else ''}",
        )
        if (metrics := self.newest.get("metrics")) is not None:
            yield "speed", speed(metrics["values"])
            yield "losses", losses(metrics["values"])
        if (validation := self.newest.get("validation")) is not None:
            yield "validation", self._figures(validation)
        if self.picture:
            yield "picture", self.picture
        if (checkpoint := self.newest.get("checkpoint")) is not None:
            yield "checkpoint", f"of step {checkpoint['step']:,}"

    def _figures(self, validation: dict[str, Any]) -> Table:
        """The last and the best figures, each followed by its difference to the gain-corrected input's."""
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        for _ in METRICS:
            table.add_column(justify="right", no_wrap=True)
        table.add_row("", *(metric.label for metric in METRICS.values()))
        # Of a resumed run, the best validation may have been before this start, which only its checkpoint knows.
        shown = [("best", self.best)] if self.best is not None else []
        for which, one in shown if self.best is validation else [("last", validation), *shown]:
            figures = one["figures"]
            own = (metric.text(figures[name]) for name, metric in METRICS.items())
            table.add_row(f"{which}, step {one['step']:,}", *own)
            gains = (metric.text(figures[f"{name}_gain"], "+") for name, metric in METRICS.items())
            table.add_row("  over its input", *gains, style="dim")
        return table


def stage(schedule: Schedule, step: int) -> str:
    return "L1" if step < schedule.pretrain_steps else "WGAN-GP"
