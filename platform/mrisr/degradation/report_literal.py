"""The project report's third way as its code does it, which is not what its text says; for comparison only."""

from __future__ import annotations

import numpy as np
from scipy import fft

from mrisr.degradation.parameters import Degradation


def report_literal(volume: np.ndarray, degradation: Degradation) -> np.ndarray:
    """The code mixes the spectrum with the fftshift of the IMAGE, zeroes the half-open index box [c-d, c+d) about the
    middle of every axis, d = fN/2 to each side, and takes the real part.

    A half-width beyond the axis, which wrapped round to negative indices, is clipped. The image is small next to the
    spectrum, so this is nearly (1-a) times `box`. It is no spectral weight: neither even in k nor without phase.
    volume: (D, H, W) real; returns float32.
    """
    axes = degradation.axes
    hr = np.asarray(volume, dtype=np.float32)
    a = np.float32(degradation.mix)
    spectrum = fft.fftn(hr, axes=axes) * (1 - a)
    spectrum += a * np.fft.fftshift(hr, axes=axes)
    box: list[slice] = [slice(None)] * hr.ndim
    for axis, f in zip(axes, degradation.fractions(hr.shape), strict=True):
        n = hr.shape[axis]
        half = round(f * n / 2)
        box[axis] = slice(max(0, n // 2 - half), min(n, n // 2 + half))
    spectrum[tuple(box)] = 0
    return np.ascontiguousarray(fft.ifftn(spectrum, axes=axes, overwrite_x=True).real)
