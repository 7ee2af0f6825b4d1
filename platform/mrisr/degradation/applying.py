"""Applying a degradation to a whole volume, and data consistency."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy

from mrisr.degradation.checks import check
from mrisr.degradation.kinds import KINDS
from mrisr.degradation.parameters import Degradation
from mrisr.degradation.spectrum import kept_band, noise_weight, spectral_weight

# Voxels that are transformed at a time where slices are independent: 1.3 MB of float32, which stays in a core's cache.
SLAB_VOXELS = 5 * 2**16


def apply_weight(
    volume: np.ndarray, weight: np.ndarray, axes: tuple[int, ...], dtype: type[np.floating] = np.float32
) -> np.ndarray:
    """`irfftn(rfftn(volume) * weight)` over `axes`. volume: real, any shape; returns `dtype` of the same shape.

    weight: as from `spectral_weight`. dtype: of the computation, float32 or float64. To save time, columns of the half
    spectrum beyond the last one that the weight keeps are skipped, and an axis that is not transformed is processed
    slab by slab; the result is the same.
    """
    volume = np.asarray(volume, dtype=dtype)
    free = [axis for axis in range(volume.ndim) if axis not in axes]
    if not free or volume.size <= SLAB_VOXELS:
        return _apply(volume, weight, axes)
    out = np.empty(volume.shape, dtype)
    axis = free[0]
    step = max(1, SLAB_VOXELS * volume.shape[axis] // max(1, volume.size))
    for start in range(0, volume.shape[axis], step):
        slab = (slice(None),) * axis + (slice(start, start + step),)
        out[slab] = _apply(volume[slab], weight, axes)
    return out


def _apply(volume: np.ndarray, weight: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    *others, last = axes
    spectrum = scipy.fft.rfft(volume, axis=last)
    if weight.shape[last] > 1:
        kept = np.flatnonzero(weight.any(axis=tuple(a for a in range(weight.ndim) if a != last)))
        count = int(kept.max(initial=0)) + 1
    else:
        count = spectrum.shape[last]
    before = (slice(None),) * last
    columns, weight = spectrum[(*before, slice(count))], weight[(*before, slice(count))]
    columns = scipy.fft.fftn(columns, axes=others, overwrite_x=True) if others else columns
    # Multiplying real and imaginary parts by a real factor is half the work of a complex product.
    parts = columns.view(volume.dtype)
    parts *= weight if weight.shape[-1] == 1 else np.repeat(weight, 2, axis=-1)
    columns = scipy.fft.ifftn(columns, axes=others, overwrite_x=True) if others else columns
    if not np.may_share_memory(columns, spectrum):
        spectrum[(*before, slice(count))] = columns
    spectrum[(*before, slice(count, None))] = 0
    return scipy.fft.irfft(spectrum, n=volume.shape[last], axis=last, overwrite_x=True)


def degrade(
    volume: np.ndarray, degradation: Degradation, dtype: type[np.floating] = np.float32, no_signal: float = 0.0
) -> np.ndarray:
    """The low-resolution version of a whole volume on the same grid, zero-filled in k-space.

    volume: (D, H, W), any real dtype and intensity scale, not a patch: the k-space of a patch is not the patch of the
    k-space. Returns (D, H, W) `dtype` on the same scale: float32, or float64 where the last bits matter;
    `report_literal` always gives float32. no_signal: with noise, the intensity of a signal of 0
    (`IntensityMap.no_signal`), from which the magnitude is counted. Noise is drawn from `noise_seed`, so this is a pure
    function. Raises ValueError for invalid parameters.
    """
    return degrader(volume.shape, degradation, dtype, no_signal)(volume)


def degrader(
    shape: tuple[int, ...], degradation: Degradation, dtype: type[np.floating] = np.float32, no_signal: float = 0.0
) -> Callable[[np.ndarray], np.ndarray]:
    """`degrade` for parts of one volume of `shape`, with the weight made once. A part is whole along every axis but
    `degradation.independent_axes`; with noise it is the whole volume. Raises as `degrade`.
    """
    d = degradation
    check(d, shape)
    if (program := KINDS[d.kind].program) is not None:
        return lambda part: program(np.asarray(part, dtype), d)
    weight = spectral_weight(shape, d)
    # The degraded value of a constant volume of that intensity: `mixed` and `shift` dim it.
    zero = dtype(no_signal * float(weight.flat[0]))

    def apply(part: np.ndarray) -> np.ndarray:
        out = apply_weight(part, weight, d.transform_axes, dtype)
        if d.noise > 0:
            noise = received_noise(part.shape, d)
            # In place, which saves the memory of three volumes.
            out -= zero
            out += noise.real
            np.hypot(out, noise.imag, out=out)
            out += zero
        return out

    return apply


def received_noise(shape: tuple[int, ...], degradation: Degradation) -> np.ndarray:
    """The receiver's noise in the image: complex64 of `shape`, drawn from `noise_seed` only.

    It is white in k-space, with standard deviation `noise` per part and voxel, times `noise_weight`: samples that are
    not acquired have no noise.
    """
    d, axes = degradation, degradation.transform_axes
    parts = np.random.default_rng(d.noise_seed).standard_normal((*shape, 2), dtype=np.float32)
    parts *= np.float32(d.noise)
    spectrum = parts.view(np.complex64)[..., 0]
    half, last = noise_weight(shape, d), axes[-1]
    if half.shape[last] > 1:
        # W is even along every axis, so the other half of the last axis is a mirror image.
        before, n = (slice(None),) * last, shape[last]
        spectrum[(*before, slice(n // 2 + 1))] *= half
        spectrum[(*before, slice(n // 2 + 1, None))] *= half[(*before, slice((n - 1) // 2, 0, -1))]
    else:
        spectrum *= half
    return scipy.fft.ifftn(spectrum, axes=axes, norm="ortho", overwrite_x=True)


def enforce_consistency(estimate: np.ndarray, observed: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Replace the estimate's spectrum by the observed one where the observed one is exact; for `slices`, correct the
    estimate so that its slices are the observed ones.

    estimate, observed: (D, H, W) on one intensity scale; observed = degrade(truth, degradation) without noise. The
    squared error can only fall (Parseval): it becomes 0 in the kept band and stays the same elsewhere.
    """
    if (consistent := KINDS[degradation.kind].consistent) is not None:
        return consistent(estimate, observed, degradation)
    kept = kept_band(observed.shape, degradation).astype(np.float32)
    difference = np.asarray(observed, np.float32) - np.asarray(estimate, np.float32)
    return np.asarray(estimate, np.float32) + apply_weight(difference, kept, degradation.transform_axes)
