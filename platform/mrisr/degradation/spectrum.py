"""The weight W(k) of a degradation: the product of sampling, taper and blur."""

from __future__ import annotations

import numpy as np

from mrisr.degradation.checks import check
from mrisr.degradation.kinds import KINDS
from mrisr.degradation.parameters import FWHM, Degradation, frequencies


def spectral_weight(shape: tuple[int, ...], degradation: Degradation) -> np.ndarray:
    """W(k) in [0, 1] for `rfftn(volume, axes=degradation.transform_axes)`, float32, broadcastable against that
    spectrum.

    Length 1 on axes that are not transformed, N//2+1 (or 1) on the last transformed axis (the half spectrum), N (or 1)
    on the others. Raises ValueError for invalid parameters, and for a kind with a program.
    """
    d = degradation
    weight = noise_weight(shape, d)
    if (blur := KINDS[d.kind].blur) is not None:
        weight = (weight * blur(shape, d)).astype(np.float32)
    if d.slice_axis is not None and d.slice_thickness > 0:
        nu = frequencies(shape, d.transform_axes)[d.slice_axis] / shape[d.slice_axis]
        sigma = d.slice_thickness / FWHM
        weight = (weight * np.exp(-2.0 * np.pi**2 * sigma**2 * nu**2)).astype(np.float32)
    return weight


def noise_weight(shape: tuple[int, ...], degradation: Degradation) -> np.ndarray:
    """The part of W that also applies to the receiver's noise: sampling and taper. Shaped as `spectral_weight`. A blur
    and the slice profile act on the object before it is received.
    """
    check(degradation, shape)
    weight = KINDS[degradation.kind].weight
    if weight is None:
        raise ValueError(f"degradation.kind = {degradation.kind!r} is no spectral weight; degrade() applies it")
    return _tapered(weight(shape, degradation), shape, degradation)


def brightness(shape: tuple[int, ...], degradation: Degradation) -> float:
    """W(0), the factor of the mean intensity: 1 but for `mixed` (1 - mix) and `shift` (0)."""
    if KINDS[degradation.kind].consistent is not None:
        return 1.0
    return float(spectral_weight(shape, degradation).flat[0])


def kept_band(shape: tuple[int, ...], degradation: Degradation) -> np.ndarray:
    """Where the degradation leaves the spectrum unchanged: bool, shaped as `spectral_weight`. With noise no sample is
    exact; the band is then where the signal has its full height.
    """
    return spectral_weight(shape, degradation) == 1.0


def _tapered(weight: np.ndarray, shape: tuple[int, ...], d: Degradation) -> np.ndarray:
    """`weight` times the taper, a product over the chosen axes of a window of |k| / (end of the acquired band)."""
    if d.apodisation == "none" or (d.apodisation == "tukey" and d.taper == 0.0):
        return weight
    band_end = KINDS[d.kind].band_end
    for (axis, k), f in zip(d.frequencies(shape).items(), d.fractions(shape), strict=True):
        band = band_end(f, d) * shape[axis] / 2
        x = np.minimum(np.abs(k) / band, 1.0)
        if d.apodisation == "hamming":
            window = 0.54 + 0.46 * np.cos(np.pi * x)
        else:
            window = 0.5 * (1.0 + np.cos(np.pi * np.maximum(x - (1.0 - d.taper), 0.0) / d.taper))
        weight = weight * window.astype(np.float32)
    return weight
