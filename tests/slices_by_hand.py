"""Thick slices, one by one: what `mrisr.degradation.slices` is compared with."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline


def one_by_one(hr: np.ndarray, axis: int, spacing: float) -> np.ndarray:
    """Slices as a loop: a Gaussian profile of FWHM = spacing at each centre, then scipy's cubic spline in float64."""
    lines, n = np.moveaxis(hr.astype(np.float64), axis, 0), hr.shape[axis]
    count = int(n / spacing)
    centres = [(n - 1) / 2 + spacing * (j - (count - 1) / 2) for j in range(count)]
    acquired = []
    for centre in centres:
        weights = np.array([2.0 ** -((2 * (x - centre) / spacing) ** 2) for x in range(n)])
        acquired.append(np.tensordot(weights / weights.sum(), lines, axes=1))
    places = np.clip(np.arange(n), centres[0], centres[-1])
    return np.moveaxis(CubicSpline(centres, np.stack(acquired))(places), 0, axis)
