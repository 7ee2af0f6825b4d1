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
REGIONS = ("whole", "foreground")
# Relative: float32 blends of the very same image differ by some 1e-10 in PSNR and 1e-9 in SSIM.
ROUNDING = 1e-6
_SLUGS = {INPUT: "input", CUBIC: "cubic", MODEL: "model", CONSISTENT: "consistent"}

Scores = dict[str, dict[str, float]]  # region -> metric -> figure


@dataclass(frozen=True)
class SubjectResult:
    """One subject: scores[method][region][metric], and the central axial slices (H, D) of all methods and
    `high`.

    seconds: all of it; model_seconds: the network's share.
    """

    subject: str
    scores: dict[str, Scores]
    slices: dict[str, np.ndarray] = field(repr=False)
    seconds: float
    model_seconds: float

    def describe(self) -> str:
        """One line: subject, seconds, PSNR of the whole volume by method."""
        psnr = ", ".join(f"{method} {score['whole']['psnr']:.2f}" for method, score in self.scores.items())
        return f"{self.subject}: {self.seconds:.1f} s ({self.model_seconds:.1f} s network); PSNR {psnr} dB"

    def picture(self) -> Figure:
        """Low | super-resolved (the spline without a model) | high | error, with whole-volume figures."""
        from mrisr.evaluation.pictures import validation_figure

        best = next(method for method in (MODEL, CUBIC, INPUT) if method in self.scores)
        figures = {"low": self.scores[INPUT]["whole"], "super-resolved": self.scores[best]["whole"]}
        return validation_figure(
            self.slices[INPUT],
            self.slices[best],
            self.slices["high"],
            title=f"{self.subject} ({best})",
            figures=figures,
        )


@dataclass(frozen=True)
class EvaluationResult:
    """All subjects of a split under one protocol. fingerprint: of the split's subjects, as the store gives
    it."""

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
        """Mean improvement over the zero-filled input, subject by subject, with its 95 % bootstrap interval.

        Positive is better, for NRMSE too.
        """
        difference = self.values(method, region, metric) - self.values(INPUT, region, metric)
        return bootstrap_interval(difference if METRICS[metric].higher_is_better else -difference, seed)

    def beats_input(self, metric: str = "psnr", region: str = "whole", method: str = MODEL) -> bool:
        """Whether the method's mean figure is better than the zero-filled input's by more than rounding makes, as in a
        network that is still the identity: the least to ask of a model."""
        own, zero_filled = (self.mean(each, region, metric) for each in (method, INPUT))
        return METRICS[metric].improvement(own, zero_filled) > ROUNDING * abs(zero_filled)

    def figures(self, prefix: str = "val_", method: str = MODEL, region: str = "whole") -> dict[str, float]:
        """Mean figures of one method for tags and logs: {"val_ssim": ..., "val_psnr": ..., "val_nrmse":
        ...}."""
        return {f"{prefix}{metric}": self.mean(method, region, metric) for metric in METRICS}

    def as_metrics(self) -> dict[str, float]:
        """Every mean, and the seconds per subject, under names such as `model/foreground/psnr`."""
        means = {
            f"{_SLUGS[method]}/{region}/{metric}": self.mean(method, region, metric)
            for method in self.methods
            for region in REGIONS
            for metric in METRICS
        }
        return means | {"seconds_per_subject": float(np.mean([subject.seconds for subject in self.subjects]))}

    def table(self, per_subject: bool = False) -> Table:
        """Mean +- standard deviation over subjects, by region and method; with `per_subject` their own rows
        as well."""
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
        text = "normalised intensity, data range 1, SSIM window 7^3, NRMSE euclidean"
        # Identical images have an infinite PSNR, and no gain.
        if MODEL in self.methods and np.isfinite(self.values(INPUT, "whole", "psnr")).all():
            gain = self.gain()
            verdict = "beats" if self.beats_input() else "does NOT beat"
            text += f"; the model {verdict} its input: {gain.mean:+.2f} dB [{gain.low:+.2f}, {gain.high:+.2f}]"
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
        """Write `rows`, whole or not at all."""
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
