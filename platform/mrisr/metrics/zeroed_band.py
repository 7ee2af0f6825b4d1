"""Sharpness as k-space tells it: what an estimate has in the band that the degradation zeroed.

PSNR prefers no detail to detail that is a little off, so that it cannot tell a blurred estimate from a sharp one. The
zeroed band is empty in the input; whatever an estimate has there it has made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft

from mrisr.degradation import Degradation
from mrisr.degradation.spectrum import spectral_weight


class ZeroedBand(NamedTuple):
    """energy: the estimate's in the zeroed band over the reference's: 0 as the input, 1 as sharp as the reference.

    correlation: of the two spectra in that band, in [-1, 1]: 1 for the reference's own detail, 0 for unrelated detail
    or none at all.
    """

    energy: float
    correlation: float


def zeroed_band(reference: np.ndarray, estimate: np.ndarray, degradation: Degradation) -> ZeroedBand:
    """Compare two whole volumes where `degradation` leaves nothing of the spectrum.

    reference, estimate: (D, H, W) real, on one intensity scale. A cut-out will not do: its spectrum leaks from the kept
    band into the zeroed one. Raises ValueError for shapes that differ, a degradation that zeroes nothing or that is no
    spectral weight, and a reference without energy in the band.
    """
    if reference.shape != estimate.shape:
        raise ValueError(f"reference and estimate differ in shape: {reference.shape} and {estimate.shape}")
    band = spectral_weight(reference.shape, degradation) == 0
    if not band.any():
        raise ValueError(
            f"degradation {degradation.describe()} zeroes no part of the spectrum: there is no band to measure"
        )
    axes = degradation.transform_axes
    # The half spectrum of a real volume: all columns but the first and, for an even length, the last stand for two.
    count = np.full(reference.shape[axes[-1]] // 2 + 1, 2.0, np.float32)
    count[0] = 1.0
    if reference.shape[axes[-1]] % 2 == 0:
        count[-1] = 1.0
    weight = band * count.reshape([-1 if axis == axes[-1] else 1 for axis in range(reference.ndim)])
    truth, made = (fft.rfftn(np.asarray(volume, np.float32), axes=axes) for volume in (reference, estimate))

    def product(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sum(weight * (a * b.conj()).real, dtype=np.float64))

    wanted, found = product(truth, truth), product(made, made)
    if wanted == 0:
        raise ValueError("the reference has no energy in the zeroed band: nothing was taken from it")
    correlation = product(truth, made) / (wanted * found) ** 0.5 if found > 0 else 0.0
    return ZeroedBand(found / wanted, correlation)
