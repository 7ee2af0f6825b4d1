"""Thick slices: what a 2D scan acquires along its slice direction, interpolated back onto the fine grid.

Along each chosen axis a volume x becomes S A x. A acquires: each row is the profile of one slice, a Gaussian whose full
width at half maximum is the distance between slices (contiguous slices, as in SMORE: Zhao et al. 2021,
doi:10.1109/TMI.2020.3037187). S interpolates with a cubic spline. A aliases, so it is not a spectral weight.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy  # scipy.interpolate loads when it is first used

from mrisr.degradation.parameters import FWHM, Degradation

# A cubic spline needs this many slices.
LEAST_SLICES = 4


def slices(volume: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Acquire slices 1 / (1 - f) voxels apart along each chosen axis and interpolate them. volume: (D, H, W) real, or a
    part that is whole along these axes; returns float32 of the same shape, float64 for float64.
    """
    out = np.asarray(volume, np.result_type(volume, np.float32))
    for axis, f in zip(degradation.axes, degradation.fractions(volume.shape), strict=True):
        if f > 0:
            acquire, interpolate, _, _ = _operators(volume.shape[axis], f)
            out = _along(axis, interpolate @ acquire, out)
    return out


def consistent_with_slices(estimate: np.ndarray, observed: np.ndarray, degradation: Degradation) -> np.ndarray:
    """The volume nearest to `estimate` whose slices are those of `observed` = slices(truth).

    It is the orthogonal projection x + A^+ (y - A x) onto all such volumes, the truth among them, so the squared error
    can only fall. Returns float32.
    """
    x, y = np.asarray(estimate, np.float32), np.asarray(observed, np.float32)
    bands = zip(degradation.axes, degradation.fractions(x.shape), strict=True)
    operators = [(axis, _operators(x.shape[axis], f)) for axis, f in bands if f > 0]
    for axis, (acquire, _, _, recover) in operators:
        x, y = _along(axis, acquire, x), _along(axis, recover, y)
    missing = y - x
    for axis, (_, _, spread, _) in operators:
        missing = _along(axis, spread, missing)
    return np.asarray(estimate, np.float32) + missing


def slice_centres(n: int, f: float) -> np.ndarray:
    """Centres of the slices along an axis of n voxels, in voxels; they lie symmetrically about the axis' middle."""
    spacing = 1.0 / (1.0 - f)
    count = int(n / spacing + 1e-9)
    if count < LEAST_SLICES:
        raise ValueError(
            f"degradation.fraction = {f:g}: {n} voxels give {count} slices of {spacing:g} voxels, and interpolation "
            f"needs {LEAST_SLICES}; use {1 - LEAST_SLICES / n:.3g} at most"
        )
    return (n - 1) / 2 + spacing * (np.arange(count) - (count - 1) / 2)


@lru_cache(maxsize=16)
def _operators(n: int, f: float) -> tuple[np.ndarray, ...]:
    """(A, S, A^+, S^+) for an axis of n voxels, float64: A (m, n), S (n, m) and their pseudo-inverses."""
    centres, voxels = slice_centres(n, f), np.arange(n)
    sigma = 1.0 / (1.0 - f) / FWHM
    profile = np.exp(-0.5 * ((voxels - centres[:, None]) / sigma) ** 2)
    acquire = profile / profile.sum(axis=1, keepdims=True)
    # Beyond the outer centres the spline stays at its last value.
    spline = scipy.interpolate.make_interp_spline(centres, np.eye(centres.size))
    interpolate = spline(np.clip(voxels, centres[0], centres[-1]))
    return acquire, interpolate, np.linalg.pinv(acquire), np.linalg.pinv(interpolate)


def _along(axis: int, matrix: np.ndarray, volume: np.ndarray) -> np.ndarray:
    product = np.tensordot(matrix.astype(volume.dtype), volume, axes=(1, axis))
    return np.ascontiguousarray(np.moveaxis(product, 0, axis))
