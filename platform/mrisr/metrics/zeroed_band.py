"""Sharpness in k-space: the estimate's energy in the band that the degradation zeroed.

PSNR prefers missing detail to slightly wrong detail, so it cannot tell a blurred estimate from a sharp one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy

from mrisr.degradation import Degradation, describe
from mrisr.degradation.spectrum import spectral_weight


class ZeroedBand(NamedTuple):
    """energy: the estimate's in the zeroed band over the reference's: 0 for the input, 1 for the reference's sharpness.

    correlation of the two spectra in that band, -1 to 1: 1 for the reference's own detail, 0 for unrelated detail or
    none.
    """

    energy: float
    correlation: float


def zeroed_band(reference: np.ndarray, estimate: np.ndarray, degradation: Degradation) -> ZeroedBand:
    """Compare two whole volumes in the part of the spectrum that `degradation` sets to zero.

    reference, estimate: (D, H, W) real, on one intensity scale; not cut-outs, whose spectrum leaks into the zeroed
    band. Raises ValueError for different shapes, a degradation that zeroes nothing or has no spectral weight, and a
    reference without energy in the band.
    """
    if reference.shape != estimate.shape:
        raise ValueError(f"reference and estimate differ in shape: {reference.shape} and {estimate.shape}")
    band = spectral_weight(reference.shape, degradation) == 0
    if not band.any():
        raise ValueError(
            f"degradation {describe(degradation)} zeroes no part of the spectrum: there is no band to measure"
        )
    axes = degradation.transform_axes
    count = _samples(reference.shape[axes[-1]])
    weight = band * count.reshape([-1 if axis == axes[-1] else 1 for axis in range(reference.ndim)])
    truth, made = (scipy.fft.rfftn(np.asarray(volume, np.float32), axes=axes) for volume in (reference, estimate))

    def product(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sum(weight * (a * b.conj()).real, dtype=np.float64))

    wanted, found = product(truth, truth), product(made, made)
    if wanted == 0:
        raise ValueError("the reference has no energy in the zeroed band: nothing was taken from it")
    correlation = product(truth, made) / (wanted * found) ** 0.5 if found > 0 else 0.0
    return ZeroedBand(found / wanted, correlation)


def _samples(length: int) -> np.ndarray:
    """How many samples of the full spectrum each column of `rfft` stands for: one for k = 0 and Nyquist, else two."""
    count = np.full(length // 2 + 1, 2.0, np.float32)
    count[0] = 1.0
    if length % 2 == 0:
        count[-1] = 1.0
    return count
