"""The weight W(k) of a degradation, as a product of what is sampled, tapered and blurred."""

from __future__ import annotations

import numpy as np

from mrisr.degradation.parameters import ALIASES, Degradation, check, fractions

# Full width at half maximum of a Gaussian of standard deviation 1.
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


def spectral_weight(shape: tuple[int, ...], degradation: Degradation) -> np.ndarray:
    """W(k) for `rfftn(volume, axes=degradation.transform_axes)`.

    Returns float32, broadcastable against that spectrum: length 1 on axes that are not transformed, N//2+1 (or 1) on
    the last transformed axis (the half spectrum of a real volume), N (or 1) on the others. Values lie in [0, 1].
    Raises ValueError for parameters that mean nothing, and for `report_literal`, which is no weight.
    """
    d = degradation
    weight = noise_weight(shape, d)
    if d.kind == "gaussian":
        blur = -2.0 * np.pi**2 * d.sigma**2 * sum((k / shape[a]) ** 2 for a, k in _frequencies(shape, d).items())
        weight = (weight * np.exp(blur)).astype(np.float32)
    if d.slice_axis is not None and d.slice_thickness > 0:
        nu = frequencies(shape, d.transform_axes)[d.slice_axis] / shape[d.slice_axis]
        sigma = d.slice_thickness / _FWHM
        weight = (weight * np.exp(-2.0 * np.pi**2 * sigma**2 * nu**2)).astype(np.float32)
    return weight


def noise_weight(shape: tuple[int, ...], degradation: Degradation) -> np.ndarray:
    """The part of W that the receiver's noise passes as well: which samples are kept, and their taper.

    The blur of `gaussian` and the slice profile act on the object before it is received. Shaped as `spectral_weight`.
    """
    check(degradation, shape)
    if degradation.kind == "report_literal":
        raise ValueError("degradation.kind = 'report_literal' is no spectral weight; degrade() applies it")
    return _apodised(_hard_weight(shape, degradation), shape, degradation)


def kept_band(shape: tuple[int, ...], degradation: Degradation) -> np.ndarray:
    """Where the degradation leaves the spectrum untouched: bool, shaped as `spectral_weight`.

    With noise no sample is exact; the band is then the one that carries the signal at its full height.
    """
    return spectral_weight(shape, degradation) == 1.0


def frequencies(shape: tuple[int, ...], axes: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Integer frequencies by axis, shaped to broadcast; the last of `axes` holds the half spectrum."""
    out = {}
    for axis in axes:
        n = shape[axis]
        k = np.arange(n // 2 + 1) if axis == axes[-1] else np.rint(np.fft.fftfreq(n) * n)
        out[axis] = k.reshape([-1 if a == axis else 1 for a in range(len(shape))]).astype(np.float64)
    return out


def _frequencies(shape: tuple[int, ...], d: Degradation) -> dict[int, np.ndarray]:
    """Those of the chosen axes, in the layout of the whole transform."""
    every = frequencies(shape, d.transform_axes)
    return {axis: every[axis] for axis in d.axes}


def _hard_weight(shape: tuple[int, ...], d: Degradation) -> np.ndarray:
    kind = d.base if d.kind == "gaussian" else ALIASES.get(d.kind, d.kind)
    if kind == "mixed":
        box, shift = (_hard_weight(shape, d._replace(kind=part)) for part in ("box", "shift"))
        return np.float32(1.0 - d.mix) * box + np.float32(d.mix) * shift
    bands = fractions(d, shape)
    if not any(bands):
        # Nothing is zeroed: the >= of the definitions would still take Nyquist (or DC) on an even axis.
        return np.ones([1] * len(shape), dtype=np.float32)
    inside = []
    for (axis, k), f in zip(_frequencies(shape, d).items(), bands, strict=True):
        n = shape[axis]
        # The slack of 1e-9 keeps a border that is an integer in exact arithmetic, e.g. (1-0.8)*320/2, an integer.
        low_pass = kind in ("truncate", "box")
        inside.append(np.abs(k) >= (1.0 - f) * n / 2 - 1e-9 if low_pass else np.abs(k) <= f * n / 2 + 1e-9)
    combine = np.logical_or if kind == "truncate" else np.logical_and
    zeroed = inside[0]
    for other in inside[1:]:
        zeroed = combine(zeroed, other)
    return np.where(zeroed, np.float32(0), np.float32(1))


def _apodised(weight: np.ndarray, shape: tuple[int, ...], d: Degradation) -> np.ndarray:
    """`weight` times the taper, a product over the chosen axes of a window of |k| / (end of the acquired band)."""
    if d.apodisation == "none" or (d.apodisation == "tukey" and d.taper == 0.0):
        return weight
    truncated = d.kind == "truncate" or (d.kind == "gaussian" and d.base == "truncate")
    for (axis, k), f in zip(_frequencies(shape, d).items(), fractions(d, shape), strict=True):
        band = (1.0 - f if truncated else 1.0) * shape[axis] / 2
        x = np.minimum(np.abs(k) / band, 1.0)
        if d.apodisation == "hamming":
            window = 0.54 + 0.46 * np.cos(np.pi * x)
        else:
            window = 0.5 * (1.0 + np.cos(np.pi * np.maximum(x - (1.0 - d.taper), 0.0) / d.taper))
        weight = weight * window.astype(np.float32)
    return weight
