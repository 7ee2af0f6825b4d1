"""The kinds of degradation. A new kind is a function and an entry in KINDS."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from mrisr.degradation.parameters import Degradation
from mrisr.degradation.report_literal import report_literal
from mrisr.degradation.slices import consistent_with_slices, slices

Shape = tuple[int, ...]
# Kinds that may be the base of `gaussian`.
BASES = ("box", "truncate")


class Kind(NamedTuple):
    """One way to degrade a volume: a spectral weight or a program.

    weight: (volume shape, degradation) -> the acquired share of each sample, float32 in [0, 1], shaped as by
    `spectral_weight`; None for a kind with a program. program: (volume, degradation) -> degraded volume, float32.
    consistent: for a program that keeps the mean intensity, (estimate, observed, degradation) -> the estimate,
    corrected so that the program gives what was observed. blur: (volume shape, degradation) -> a further factor of the
    weight that acts before the receiver adds its noise. band_end: (f, degradation) -> where the acquired band and its
    taper end, as a share of the axis' Nyquist frequency. uses: further parameters that the kind reads. needs:
    parameters that must be above 0 for the kind to have an effect of its own. example: parameters for the preview
    gallery; None for an alias.
    """

    weight: Callable[[Shape, Degradation], np.ndarray] | None
    example: dict[str, Any] | None
    program: Callable[[np.ndarray, Degradation], np.ndarray] | None = None
    consistent: Callable[[np.ndarray, np.ndarray, Degradation], np.ndarray] | None = None
    blur: Callable[[Shape, Degradation], np.ndarray] | None = None
    band_end: Callable[[float, Degradation], float] = lambda f, d: 1.0
    uses: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def truncate(shape: Shape, d: Degradation) -> np.ndarray:
    """0 where |k| >= (1-f)N/2 on any chosen axis."""
    return _zero(shape, d, _high, np.logical_or)


def box(shape: Shape, d: Degradation) -> np.ndarray:
    """0 where |k| >= (1-f)N/2 on all chosen axes."""
    return _zero(shape, d, _high, np.logical_and)


def shift(shape: Shape, d: Degradation) -> np.ndarray:
    """0 where |k| <= fN/2 on all chosen axes."""
    return _zero(shape, d, _low, np.logical_and)


def mixed(shape: Shape, d: Degradation) -> np.ndarray:
    return np.float32(1.0 - d.mix) * box(shape, d) + np.float32(d.mix) * shift(shape, d)


def gaussian_base(shape: Shape, d: Degradation) -> np.ndarray:
    base = KINDS[d.base].weight
    assert base is not None
    return base(shape, d)


def gaussian_blur(shape: Shape, d: Degradation) -> np.ndarray:
    """exp(-2 pi^2 sigma^2 |nu|^2), nu = k/N in cycles per voxel."""
    nu_squared = sum((k / shape[axis]) ** 2 for axis, k in d.frequencies(shape).items())
    return np.exp(-2.0 * np.pi**2 * d.sigma**2 * nu_squared)


# The slack of 1e-9 absorbs rounding where a border is an integer in exact arithmetic, e.g. (1-0.8)*320/2.
def _high(k: np.ndarray, f: float, n: int) -> np.ndarray:
    return np.abs(k) >= (1.0 - f) * n / 2 - 1e-9


def _low(k: np.ndarray, f: float, n: int) -> np.ndarray:
    return np.abs(k) <= f * n / 2 + 1e-9


def _zero(
    shape: Shape, d: Degradation, band: Callable[[np.ndarray, float, int], np.ndarray], combine: np.ufunc
) -> np.ndarray:
    """1, and 0 where the bands of the chosen axes, combined, hold a sample."""
    bands = d.fractions(shape)
    if not any(bands):
        # f = 0 zeroes nothing; the definitions' >= would still zero Nyquist (or DC) on an even axis.
        return np.ones([1] * len(shape), dtype=np.float32)
    inside = [band(k, f, shape[axis]) for (axis, k), f in zip(d.frequencies(shape).items(), bands, strict=True)]
    return np.where(reduce(combine, inside), np.float32(0), np.float32(1))


KINDS: dict[str, Kind] = {
    "truncate": Kind(truncate, {"fraction": 0.5}, band_end=lambda f, d: 1.0 - f),
    "box": Kind(box, {"fraction": 0.8}),
    "gaussian": Kind(
        gaussian_base, {"fraction": 0.5, "sigma": 1.0, "base": "truncate"}, blur=gaussian_blur,
        band_end=lambda f, d: KINDS[d.base].band_end(f, d), uses=("base", "sigma"), needs=("sigma",),
    ),
    "mixed": Kind(mixed, {"fraction": 0.5, "mix": 0.5}, uses=("mix",)),
    "shift": Kind(shift, {"fraction": 0.05}),
    "shift_fft_shift": Kind(shift, None),  # to shift the image before and after changes nothing on even axes
    "slices": Kind(None, {"axes": (2,), "fraction": 0.75}, program=slices, consistent=consistent_with_slices),
    "report_literal": Kind(
        None, {"axes": (0, 1, 2), "fraction": 0.5, "mix": 0.5}, program=report_literal, uses=("mix",)
    ),
}  # fmt: skip
