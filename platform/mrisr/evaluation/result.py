"""The result of an evaluation: table, tidy rows, pictures, and whether the model beats its baseline."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrisr.files import write_atomic
from mrisr.metrics import METRICS
from mrisr.metrics.bootstrap import Interval, bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group, RenderableType

INPUT, CORRECTED, CUBIC, MODEL = "zero-filled", "gain-corrected", "cubic spline", "model"
CONSISTENT = "model + data consistency"
# A method's name in tables and CSV files, and in MLflow metrics.
METHODS = {INPUT: "input", CORRECTED: "gain_corrected", CUBIC: "cubic", MODEL: "model", CONSISTENT: "consistent"}
REGIONS = ("whole", "foreground")
FEWEST_FOR_INTERVAL = 3  # subjects; an interval of one or two is meaningless

Scores = dict[str, dict[str, float]]  # region -> metric -> figure


@dataclass(frozen=True)
class SubjectResult:
    """One subject: scores[method][region][metric]; central axial slices (H, D) by method, also of `high`; seconds."""

    subject: str
    scores: dict[str, Scores]
    slices: dict[str, np.ndarray] = field(repr=False)
    seconds: float
    model_seconds: float

    def describe(self) -> str:
        psnr = METRICS["psnr"]
        values = ", ".join(f"{method} {psnr.text(score['whole']['psnr'])}" for method, score in self.scores.items())
        return f"{self.subject}: {self.seconds:.1f} s ({self.model_seconds:.1f} s network); {psnr.label} {values}"

    def picture(self) -> Figure:
        """Low | super-resolved (the spline if there is no model) | high | error, with whole-volume figures."""
        from mrisr.evaluation.pictures import validation_figure

        best = next(method for method in (MODEL, CUBIC, INPUT) if method in self.scores)
        figures = {"low": self.scores[INPUT]["whole"], "super-resolved": self.scores[best]["whole"]}
        shown = (self.slices[name] for name in (INPUT, best, "high"))
        return validation_figure(*shown, title=f"{self.subject} ({best})", figures=figures)


@dataclass(frozen=True)
class EvaluationResult:
    """All subjects of a split under one protocol, with the fingerprint of the split's subjects in the store."""

    protocol: str
    degradation: str
    split: str
    fingerprint: str
    subjects: tuple[SubjectResult, ...]
    trained_on: tuple[str, ...] = ()

    @property
    def methods(self) -> list[str]:
        return list(self.subjects[0].scores)

    def values(self, method: str, region: str, metric: str) -> np.ndarray:
        """One figure per subject. Raises ValueError for a method that was not evaluated."""
        if method not in self.methods:
            raise ValueError(f"method {method!r} was not evaluated; there are {self.methods}")
        return np.array([subject.scores[method][region][metric] for subject in self.subjects])

    def mean(self, method: str, region: str, metric: str) -> float:
        return float(self.values(method, region, metric).mean())

    def gain(self, metric: str = "psnr", region: str = "whole", method: str = MODEL, seed: int = 0) -> Interval:
        """Mean improvement over the gain-corrected input, with its 95 % bootstrap interval; positive is better."""
        own, baseline = (self.values(each, region, metric) for each in (method, CORRECTED))
        return bootstrap_interval(METRICS[metric].improvement(own, baseline), seed)

    def beats_input(self, metric: str = "psnr", region: str = "whole", method: str = MODEL) -> bool:
        """Whether the mean is better than the gain-corrected input's by more than rounding errors."""
        return METRICS[metric].beats(*(self.mean(each, region, metric) for each in (method, CORRECTED)))

    def figures(self) -> dict[str, float]:
        """Whole-volume means for a version's tags: `val_psnr`, ... and `baseline_psnr`, ... of the gain-corrected
        input.
        """
        own = {f"val_{metric}": self.mean(MODEL, "whole", metric) for metric in METRICS}
        return own | {f"baseline_{metric}": self.mean(CORRECTED, "whole", metric) for metric in METRICS}

    def as_metrics(self) -> dict[str, float]:
        """Every mean, and the seconds per subject, under names such as `model/foreground/psnr`."""
        means = {
            f"{METHODS[method]}/{region}/{metric}": self.mean(method, region, metric)
            for method in self.methods
            for region in REGIONS
            for metric in METRICS
        }
        return means | {"seconds_per_subject": float(np.mean([subject.seconds for subject in self.subjects]))}

    def table(self, per_subject: bool = False) -> Group:
        """Mean ± standard deviation over subjects: a block per region, a row per method; fits 80 columns."""
        from rich.console import Group
        from rich.text import Text

        title = f"{self.protocol} ({self.degradation}), {self.split}: {len(self.subjects)} subjects"
        blocks: list[RenderableType] = [Text(title, "bold")]
        for region in REGIONS:
            blocks.append(self._block(f"{region}, mean", [(m, self._spreads(m, region)) for m in self.methods]))
            for subject in self.subjects if per_subject else ():
                scores = [(method, regions[region]) for method, regions in subject.scores.items()]
                rows = [(m, [f"{s[k]:.{metric.digits}f}" for k, metric in METRICS.items()]) for m, s in scores]
                blocks.append(self._block(f"{region}, {subject.subject}{self._mark(subject.subject)}", rows))
        return Group(*blocks, *(Text(line) for line in self._notes()))

    def _spreads(self, method: str, region: str) -> list[str]:
        return [_spread(self.values(method, region, name), metric.digits) for name, metric in METRICS.items()]

    @staticmethod
    def _block(title: str, rows: list[tuple[str, list[str]]]) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("", overflow="fold")
        for metric in METRICS.values():
            table.add_column(metric.heading, justify="right", overflow="fold")
        for method, cells in rows:
            label = method.replace("data consistency", "DC")
            table.add_row(label if label.startswith("model +") else label.removeprefix("model "), *cells)
        return Group(Text(f"\n{title}", overflow="fold"), table)

    def _mark(self, subject: str) -> str:
        return " (trained on)" if subject in self.trained_on else ""

    def _notes(self) -> Iterator[str]:
        conventions = (f"{metric.label} {metric.convention}" for metric in METRICS.values() if metric.convention)
        yield "\n" + ", ".join(["normalised intensity", "data range 1", *conventions])
        yield f"{CORRECTED}: the input times its best single gain, the baseline"
        if any(method.endswith("data consistency") for method in self.methods):
            yield "DC: data consistency, the acquired band of k-space put back"
        if self.trained_on:
            yield (
                f"{len(self.trained_on)} of {len(self.subjects)} subjects are among the model's training subjects: "
                "these figures say nothing about other people"
            )
        # Identical images have an infinite PSNR; their gain is not defined.
        if np.isfinite(self.values(CORRECTED, "whole", "psnr")).all():
            yield from (self._verdict(m) for m in self.methods if m.startswith(MODEL) and "+" not in m)

    def _verdict(self, method: str) -> str:
        mean, low, high = (METRICS["psnr"].text(value, "+") for value in self.gain(method=method))
        verdict = "beats" if self.beats_input(method=method) else "does NOT beat"
        interval = f" [{low}, {high}]" if len(self.subjects) >= FEWEST_FOR_INTERVAL else ""
        return f"the {method} {verdict} its input: {mean}{interval}"

    def rows(self) -> Iterator[dict[str, str | float]]:
        for subject in self.subjects:
            for method, regions in subject.scores.items():
                for region, scores in regions.items():
                    yield {
                        "protocol": self.protocol,
                        "split": self.split,
                        "subject": subject.subject,
                        "trained_on": "yes" if subject.subject in self.trained_on else "no",
                        "method": method,
                        "region": region,
                        **scores,
                        "seconds": round(subject.seconds, 3),
                    }

    def write_csv(self, path: Path) -> Path:
        rows, text = list(self.rows()), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.getvalue())
        return path

    def write_pictures(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for subject in self.subjects:
            paths.append(folder / f"{subject.subject}.png")
            subject.picture().savefig(paths[-1], dpi=100)
        return paths


def combined(results: Mapping[str, EvaluationResult]) -> EvaluationResult:
    """Results of several models on the same subjects as one, for a table: `model` of each becomes `model NAME`."""
    first, *others = results.values()
    if not others:
        return first
    subjects = []
    for same in zip(*(result.subjects for result in results.values()), strict=True):
        scores = {method: score for method, score in same[0].scores.items() if method not in (MODEL, CONSISTENT)}
        for name, subject in zip(results, same, strict=True):
            for method in (MODEL, CONSISTENT):
                if method in subject.scores:
                    scores[method.replace(MODEL, f"{MODEL} {name}")] = subject.scores[method]
        subjects.append(replace(same[0], scores=scores))
    return replace(first, subjects=tuple(subjects))


def _spread(values: np.ndarray, digits: int) -> str:
    text = f"{values.mean():.{digits}f}"
    return text + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 and np.isfinite(values).all() else "")
