"""Cubic spline interpolation of the low-resolution grid, the usual comparison for a network."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

from mrisr.degradation import KINDS, Degradation, kept_band


def low_resolution_shape(shape: tuple[int, ...], degradation: Degradation) -> tuple[int, ...]:
    """The smallest grid that holds a volume's kept band: 256x160x160 of 256x320x320 for f = 0.5 on two axes. Axes on
    which the band reaches Nyquist keep their length: all axes, unless the kind is `truncate`.
    """
    band = kept_band(shape, degradation)
    result = list(shape)
    for axis in degradation.axes:
        n = shape[axis]
        kept = np.asarray(band.any(axis=tuple(a for a in range(len(shape)) if a != axis)))
        highest = int(np.flatnonzero(kept[: n // 2 + 1]).max(initial=0))
        # The kept |k| <= highest, and the small grid's own Nyquist frequency, which is empty.
        result[axis] = min(n, 2 * highest + 2) if band.shape[axis] > 1 else n
    return tuple(result)


def crop_spectrum(volume: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Resample one axis to `length` samples by cropping its spectrum; intensities keep their scale.

    The new samples are the centres of larger voxels that tile the same field of view, as on a scanner: (j + 0.5) n /
    length - 0.5 in units of old samples.
    """
    n = volume.shape[axis]
    spectrum = fft.rfft(volume, axis=axis)
    count = (length - 1) // 2 + 1
    index = [slice(None)] * volume.ndim
    index[axis] = slice(0, count)
    shift = 0.5 * n / length - 0.5
    phase = np.exp(2j * np.pi * np.arange(count) * shift / n).astype(spectrum.dtype)
    phase = phase.reshape([-1 if a == axis else 1 for a in range(volume.ndim)])
    small = fft.irfft(spectrum[tuple(index)] * phase, n=length, axis=axis)
    return (small * (length / n)).astype(volume.dtype, copy=False)


def spline_matrix(length: int, n: int) -> np.ndarray:
    """(n, length) float32: `scipy.ndimage.zoom` of order 3 as a matrix, from the zoomed unit impulses. grid_mode aligns
    voxel edges, not the centres of the outer voxels; grid-wrap continues periodically, as k-space does.
    """
    impulses = np.eye(length)
    columns = [ndimage.zoom(impulse, n / length, order=3, mode="grid-wrap", grid_mode=True) for impulse in impulses]
    return np.stack(columns, axis=1).astype(np.float32)


def cubic_spline(lr: np.ndarray, degradation: Degradation) -> np.ndarray | None:
    """Crop k-space to the kept band, then interpolate the small volume back, axis by axis (1.5 s for 256x320x320). lr:
    (D, H, W) float32, zero-filled. Returns the same shape, or None if no smaller grid holds the band, or if the input
    is interpolated already (`slices`).
    """
    if KINDS[degradation.kind].weight is None:
        return None
    small = low_resolution_shape(lr.shape, degradation)
    if small == lr.shape:
        return None
    result = np.asarray(lr, np.float32)
    for axis, length in enumerate(small):
        if length != lr.shape[axis]:
            result = crop_spectrum(result, axis, length)
    for axis, length in enumerate(small):
        if length != lr.shape[axis]:
            matrix = spline_matrix(length, lr.shape[axis])
            result = np.moveaxis(np.tensordot(matrix, result, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(result)
