"""Image quality of a volume against its reference: a file per metric, and the table METRICS of all.

Pure numpy, scipy and scikit-image; it may import degradation. `data_range` is always explicit (1.0 for normalised
intensities): scikit-image's default for floats is 2.0, which inflates SSIM and adds 6 dB to PSNR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from mrisr.metrics import hfen, nrmse, psnr, ssim

# (reference, estimate, masks, data_range) -> one number per mask. reference, estimate: (D, H, W) float, finite.
# masks: bool (D, H, W) with at least one voxel, or None for the whole volume. What masks share is computed once.
Figure = Callable[[np.ndarray, np.ndarray, Sequence[np.ndarray | None], float], list[float]]

Value = TypeVar("Value", float, np.ndarray)
# Relative tolerance. Repeated float32 blends of one image differ by 1e-10 in PSNR and 1e-9 in SSIM.
ROUNDING = 1e-6


class Metric(NamedTuple):
    """name: in CSV columns, tags and MLflow; digits: after the point; label, unit and convention: for tables."""

    name: str
    function: Figure
    digits: int
    higher_is_better: bool
    label: str
    unit: str = ""
    convention: str = ""

    @property
    def heading(self) -> str:
        return f"{self.label} / {self.unit}" if self.unit else self.label

    def improvement(self, value: Value, baseline: Value) -> Value:
        """How much better `value` is than `baseline` (numbers or arrays); positive is better for every metric."""
        return value - baseline if self.higher_is_better else baseline - value

    def beats(self, value: float, baseline: float) -> bool:
        """Whether `value` is better by more than rounding errors."""
        return self.improvement(value, baseline) > ROUNDING * abs(baseline)

    def text(self, value: float, sign: str = "") -> str:
        """`40.91 dB`; with sign="+" a positive number has its sign."""
        return f"{value:{sign}.{self.digits}f} {self.unit}".rstrip()


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("ssim", ssim.ssim, 4, True, "SSIM", convention="window 7^3"),
        Metric("psnr", psnr.psnr, 2, True, "PSNR", "dB"),
        Metric("nrmse", nrmse.nrmse, 4, False, "NRMSE", convention="euclidean"),
        Metric("hfen", hfen.hfen, 4, False, "HFEN", convention="sigma 1.5 voxels"),
    )
}


def measure_regions(
    reference: np.ndarray, estimate: np.ndarray, regions: Mapping[str, np.ndarray | None], data_range: float = 1.0
) -> dict[str, dict[str, float]]:
    """Every metric of several regions: {region: {metric: value}}. 256x320x320 takes about 3 s, nearly all of it SSIM.

    reference, estimate: (D, H, W) float, normalised. regions: name -> mask, bool (D, H, W), or None for the whole
    volume. Raises ValueError for different shapes, a non-finite estimate, an empty mask.
    """
    check_pair(reference, estimate)
    for name, mask in regions.items():
        if mask is not None and (mask.shape != reference.shape or mask.dtype != np.bool_):
            raise ValueError(f"mask {name!r} must be bool {reference.shape}, found {mask.dtype} {mask.shape}")
        if mask is not None and not mask.any():
            raise ValueError(f"mask {name!r} is empty: there is no voxel to measure")
    masks = list(regions.values())
    columns = {name: metric.function(reference, estimate, masks, data_range) for name, metric in METRICS.items()}
    return {region: {name: column[i] for name, column in columns.items()} for i, region in enumerate(regions)}


def measure(
    reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray | None = None, data_range: float = 1.0
) -> dict[str, float]:
    """Every metric of one volume, or of the voxels of a mask: {metric: value}. See `measure_regions`."""
    return measure_regions(reference, estimate, {"region": mask}, data_range)["region"]


def check_pair(reference: np.ndarray, estimate: np.ndarray) -> None:
    """Raise ValueError unless both are volumes of one shape and the estimate is finite."""
    if reference.ndim != 3 or reference.shape != estimate.shape:
        raise ValueError(
            "reference and estimate must be volumes (D, H, W) of one shape, "
            f"found {reference.shape} and {estimate.shape}"
        )
    bad = estimate.size - int(np.count_nonzero(np.isfinite(estimate)))
    if bad:
        raise ValueError(f"estimate holds {bad} voxels that are not finite: the network that made it has diverged")
