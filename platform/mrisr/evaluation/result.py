"""What an evaluation found: one table, tidy rows, pictures, and whether the model beats its input."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrisr.files import write_atomic
from mrisr.metrics import METRICS
from mrisr.metrics.bootstrap import Interval, bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

INPUT, CUBIC, MODEL, CONSISTENT = "zero-filled", "cubic spline", "model", "model + data consistency"
# A method's name in tables and CSV files, and in MLflow metrics.
METHODS = {INPUT: "input", CUBIC: "cubic", MODEL: "model", CONSISTENT: "consistent"}
REGIONS = ("whole", "foreground")
# Relative. float32 blends of one and the same image differ by 1e-10 in PSNR and 1e-9 in SSIM.
ROUNDING = 1e-6

Scores = dict[str, dict[str, float]]  # region -> metric -> figure


@dataclass(frozen=True)
class SubjectResult:
    """One subject: scores[method][region][metric], and the central axial slices (H, D) of all methods and of `high`.

    seconds: in total; model_seconds: the network's share.
    """

    subject: str
    scores: dict[str, Scores]
    slices: dict[str, np.ndarray] = field(repr=False)
    seconds: float
    model_seconds: float

    def describe(self) -> str:
        """One line: subject, seconds, PSNR of the whole volume by method."""
        psnr = METRICS["psnr"]
        values = ", ".join(f"{method} {psnr.text(score['whole']['psnr'])}" for method, score in self.scores.items())
        return f"{self.subject}: {self.seconds:.1f} s ({self.model_seconds:.1f} s network); {psnr.label} {values}"

    def picture(self) -> Figure:
        """Low | super-resolved (the spline without a model) | high | error, with whole-volume figures."""
        from mrisr.evaluation.pictures import validation_figure

        best = next(method for method in (MODEL, CUBIC, INPUT) if method in self.scores)
        figures = {"low": self.scores[INPUT]["whole"], "super-resolved": self.scores[best]["whole"]}
        shown = (self.slices[name] for name in (INPUT, best, "high"))
        return validation_figure(*shown, title=f"{self.subject} ({best})", figures=figures)


@dataclass(frozen=True)
class EvaluationResult:
    """All subjects of a split under one protocol. fingerprint: of the split's subjects, from the store."""

    protocol: str
    degradation: str
    split: str
    fingerprint: str
    subjects: tuple[SubjectResult, ...]

    @property
    def methods(self) -> list[str]:
        return list(self.subjects[0].scores)

    def values(self, method: str, region: str, metric: str) -> np.ndarray:
        """One figure per subject. Raises ValueError for a method that was not evaluated."""
        if method not in self.methods:
            raise ValueError(f"method {method!r} was not evaluated; there are {self.methods}")
        return np.array([subject.scores[method][region][metric] for subject in self.subjects])

    def mean(self, method: str, region: str, metric: str) -> float:
        """The mean over subjects."""
        return float(self.values(method, region, metric).mean())

    def gain(self, metric: str = "psnr", region: str = "whole", method: str = MODEL, seed: int = 0) -> Interval:
        """Mean improvement over the zero-filled input, with its 95 % bootstrap interval; positive is better."""
        own, zero_filled = (self.values(each, region, metric) for each in (method, INPUT))
        return bootstrap_interval(METRICS[metric].improvement(own, zero_filled), seed)

    def beats_input(self, metric: str = "psnr", region: str = "whole", method: str = MODEL) -> bool:
        """Whether the method's mean is better than the zero-filled input's, by more than rounding errors."""
        own, zero_filled = (self.mean(each, region, metric) for each in (method, INPUT))
        return METRICS[metric].improvement(own, zero_filled) > ROUNDING * abs(zero_filled)

    def figures(self) -> dict[str, float]:
        """The model's means over whole volumes, as a registered version's tags name them: {"val_psnr": ..., ...}."""
        return {f"val_{metric}": self.mean(MODEL, "whole", metric) for metric in METRICS}

    def as_metrics(self) -> dict[str, float]:
        """Every mean, and the seconds per subject, under names such as `model/foreground/psnr`."""
        means = {
            f"{METHODS[method]}/{region}/{metric}": self.mean(method, region, metric)
            for method in self.methods
            for region in REGIONS
            for metric in METRICS
        }
        return means | {"seconds_per_subject": float(np.mean([subject.seconds for subject in self.subjects]))}

    def table(self, per_subject: bool = False) -> Table:
        """Mean ± standard deviation over subjects, by region and method; with `per_subject` also their own rows."""
        from rich.table import Table

        table = Table(
            title=f"{self.protocol} ({self.degradation}), {self.split}: {len(self.subjects)} subjects",
            caption=self._caption(),
        )
        for name in ("region", "method", "subject"):
            table.add_column(name)
        for metric in METRICS.values():
            table.add_column(metric.heading, justify="right")
        for region in REGIONS:
            for method in self.methods:
                columns = [(self.values(method, region, name), metric.digits) for name, metric in METRICS.items()]
                if per_subject:
                    for index, subject in enumerate(self.subjects):
                        cells = (f"{values[index]:.{digits}f}" for values, digits in columns)
                        table.add_row(region, method, subject.subject, *cells)
                table.add_row(region, method, "mean", *(_spread(values, digits) for values, digits in columns))
            table.add_section()
        return table

    def _caption(self) -> str:
        conventions = (f"{metric.label} {metric.convention}" for metric in METRICS.values() if metric.convention)
        text = ", ".join(["normalised intensity", "data range 1", *conventions])
        # Identical images have an infinite PSNR, and no gain.
        if MODEL in self.methods and np.isfinite(self.values(INPUT, "whole", "psnr")).all():
            mean, low, high = (METRICS["psnr"].text(value, "+") for value in self.gain())
            verdict = "beats" if self.beats_input() else "does NOT beat"
            text += f"; the model {verdict} its input: {mean} [{low}, {high}]"
        return text

    def rows(self) -> Iterator[dict[str, str | float]]:
        """Tidy rows, one per subject, method and region."""
        for subject in self.subjects:
            for method, regions in subject.scores.items():
                for region, scores in regions.items():
                    yield {
                        "protocol": self.protocol,
                        "split": self.split,
                        "subject": subject.subject,
                        "method": method,
                        "region": region,
                        **scores,
                        "seconds": round(subject.seconds, 3),
                    }

    def write_csv(self, path: Path) -> Path:
        """Write `rows`; the file appears whole or not at all."""
        rows, text = list(self.rows()), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.getvalue())
        return path

    def write_pictures(self, folder: Path) -> list[Path]:
        """One PNG per subject, <subject>.png."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for subject in self.subjects:
            paths.append(folder / f"{subject.subject}.png")
            subject.picture().savefig(paths[-1], dpi=100)
        return paths


def _spread(values: np.ndarray, digits: int) -> str:
    text = f"{values.mean():.{digits}f}"
    return text + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 and np.isfinite(values).all() else "")
