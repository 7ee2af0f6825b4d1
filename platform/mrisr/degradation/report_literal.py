"""The project report's third way as its code computes it, which differs from its text; for comparison only."""

from __future__ import annotations

import numpy as np
import scipy

from mrisr.degradation.parameters import Degradation


def report_literal(volume: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Mix the spectrum with the fftshift of the IMAGE, zero the half-open index box [c-d, c+d) about the middle of
    every axis (d = fN/2 to each side), and take the real part. volume: (D, H, W) real; returns float32.

    A half-width beyond the axis is clipped; in the report's code it wrapped round to negative indices. The image is
    small next to the spectrum, so this is nearly (1-a) times `box`. It is not a spectral weight: neither even in k nor
    without phase.
    """
    axes = degradation.axes
    hr = np.asarray(volume, dtype=np.float32)
    a = np.float32(degradation.mix)
    spectrum = scipy.fft.fftn(hr, axes=axes) * (1 - a)
    spectrum += a * np.fft.fftshift(hr, axes=axes)
    box: list[slice] = [slice(None)] * hr.ndim
    for axis, f in zip(axes, degradation.fractions(hr.shape), strict=True):
        n = hr.shape[axis]
        half = round(f * n / 2)
        box[axis] = slice(max(0, n // 2 - half), min(n, n // 2 + half))
    spectrum[tuple(box)] = 0
    return np.ascontiguousarray(scipy.fft.ifftn(spectrum, axes=axes, overwrite_x=True).real)
