"""Low-resolution volumes made in k-space: a real, even weight on the spectrum of the whole volume.

Every degradation is `lr = irfftn(rfftn(hr) * W)`. Making W from parameters (`spectral_weight`), applying it
(`degrade`) and drawing its parameters (`DegradationRange.sample`) are three separate, pure steps. W is even in k,
so the result is real without discarding an imaginary part, and the intensity scale of `hr` is kept: nothing is
divided by its own maximum.

Notation: N is an axis' length, k its integer frequency (-N/2 < k <= N/2), f the fraction of the axis that is zeroed.

| kind     | W                                                                                                     |
|----------|-------------------------------------------------------------------------------------------------------|
| truncate | 0 where |k| >= (1-f)N/2 on ANY chosen axis (Chen et al. 2018, arXiv:1803.01417)                       |
| box      | 0 only where that holds on ALL chosen axes: the corner of k-space about Nyquist                       |
| shift    | 0 where |k| <= fN/2 on ALL chosen axes: `box` about DC instead of Nyquist, a high-pass                |
| mixed    | (1-a) W_box + a W_shift                                                                               |
| gaussian | W_base * exp(-2 pi^2 sigma^2 |nu|^2), nu = k/N in cycles per voxel, base `box` or `truncate`          |
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft

KINDS = ("truncate", "box", "shift", "mixed", "gaussian")


class Degradation(NamedTuple):
    """One degradation with all parameters fixed.

    kind: a name of `KINDS`.
    axes: the chosen volume axes, e.g. (1, 2); the others are left at full resolution.
    fraction: f in [0, 1), one number or one per chosen axis; 0 is the identity.
    voxels: width of the zeroed band in samples of the spectrum (both sides together); replaces `fraction`.
    mix: a in [0, 1], for `mixed`.
    sigma: standard deviation of the blur in voxels, for `gaussian`.
    base: the hard weight under `gaussian`: `box` or `truncate`.
    """

    kind: str
    axes: tuple[int, ...] = (1, 2)
    fraction: float | tuple[float, ...] = 0.5
    voxels: int | None = None
    mix: float = 0.0
    sigma: float = 0.0
    base: str = "box"

    def describe(self) -> str:
        """One line for tables and model tags, e.g. `truncate, axes 1 2, f=0.5`."""
        width = f"{self.voxels} voxels" if self.voxels is not None else f"f={self.fraction}"
        extra = f", a={self.mix:g}" if self.kind == "mixed" else ""
        extra += f", {self.base}, sigma={self.sigma:g}" if self.kind == "gaussian" else ""
        return f"{self.kind}, axes {' '.join(map(str, self.axes))}, {width}{extra}"


# Validation never moves: these are constants, not configuration.
PROTOCOLS: dict[str, Degradation] = {
    # Chen et al. 2018: half of each in-plane axis, 256x160x160 of 256x320x320.
    "chen2018": Degradation("truncate", axes=(1, 2), fraction=0.5),
    # The public port by hz2538 keeps 64 of 320.
    "hz2538": Degradation("truncate", axes=(1, 2), fraction=0.8),
    # The project report's third way at its zeroing range 160 of (256, 320, 320), equal parts of both weights.
    "report160": Degradation("mixed", axes=(0, 1, 2), fraction=(0.625, 0.5, 0.5), mix=0.5),
}


class DegradationRange(NamedTuple):
    """What training draws from: closed intervals, one uniform draw per row of the stream."""

    kind: str
    axes: tuple[int, ...] = (1, 2)
    fraction: tuple[float, float] = (0.5, 0.5)
    voxels: tuple[int, int] | None = None
    mix: tuple[float, float] = (0.0, 1.0)
    sigma: tuple[float, float] = (0.0, 0.0)
    base: str = "box"

    def sample(self, rng: np.random.Generator) -> Degradation:
        """Draw every parameter, used or not, so that a draw of one never depends on the kind."""
        fraction, mix, sigma = (float(rng.uniform(*r)) for r in (self.fraction, self.mix, self.sigma))
        voxels = None if self.voxels is None else int(rng.integers(self.voxels[0], self.voxels[1] + 1))
        return Degradation(self.kind, self.axes, fraction, voxels, mix, sigma, self.base)


def check(degradation: Degradation, shape: tuple[int, ...] | None = None) -> None:
    """Raise ValueError, naming the key, the value and the remedy, if the degradation means nothing.

    shape: if given, axes and band widths are checked against this volume as well.
    """
    d = degradation
    if d.kind not in KINDS:
        raise ValueError(f"degradation.kind = {d.kind!r} is unknown; use one of {', '.join(KINDS)}")
    ndim = 3 if shape is None else len(shape)
    if not d.axes or len(set(d.axes)) != len(d.axes) or any(not 0 <= a < ndim for a in d.axes):
        raise ValueError(f"degradation.axes = {list(d.axes)}: name one or more different axes of 0..{ndim - 1}")
    if not isinstance(d.fraction, int | float) and len(d.fraction) != len(d.axes):
        raise ValueError(
            f"degradation.fraction = {list(d.fraction)} has {len(d.fraction)} values for {len(d.axes)} axes; "
            "give one number, or one per axis"
        )
    lengths = (1,) * ndim if shape is None or d.voxels is None else shape
    for axis, f in zip(d.axes, _fractions(d._replace(voxels=None) if shape is None else d, lengths), strict=True):
        if not 0.0 <= f < 1.0:
            key, value = ("fraction", f) if d.voxels is None else ("voxels", d.voxels)
            raise ValueError(
                f"degradation.{key} = {value} on axis {axis} leaves an empty passband or none at all; "
                "the zeroed part must be at least 0 and less than the whole axis"
            )
    if not 0.0 <= d.mix <= 1.0:
        raise ValueError(f"degradation.mix = {d.mix}: a mixing ratio lies in [0, 1]")
    if d.sigma < 0.0:
        raise ValueError(f"degradation.sigma = {d.sigma}: a standard deviation in voxels is not negative")
    if d.kind == "gaussian" and d.base not in ("box", "truncate"):
        raise ValueError(f"degradation.base = {d.base!r}: use box or truncate under a gaussian")


def spectral_weight(shape: tuple[int, ...], degradation: Degradation) -> np.ndarray:
    """W(k) for `rfftn(volume, axes=degradation.axes)`.

    Returns float32, broadcastable against that spectrum: length 1 on axes that are not chosen, N//2+1 on the last
    chosen axis (the half spectrum of a real volume), N on the other chosen ones. Values lie in [0, 1].
    """
    check(degradation, shape)
    d = degradation
    fractions = _fractions(d, shape)
    frequencies = _frequencies(shape, d.axes)
    if d.kind == "gaussian":
        hard = spectral_weight(shape, d._replace(kind=d.base))
        nu_squared = sum((k / shape[a]) ** 2 for a, k in zip(d.axes, frequencies, strict=True))
        return (hard * np.exp(-2.0 * np.pi**2 * d.sigma**2 * nu_squared)).astype(np.float32)
    if d.kind == "mixed":
        box, shift = (spectral_weight(shape, d._replace(kind=kind)) for kind in ("box", "shift"))
        return np.float32(1.0 - d.mix) * box + np.float32(d.mix) * shift
    if not any(fractions):
        # Nothing is zeroed: the >= of the definitions would still take Nyquist (or DC) on an even axis.
        return np.ones([1] * len(shape), dtype=np.float32)
    inside = []
    for axis, f, k in zip(d.axes, fractions, frequencies, strict=True):
        n = shape[axis]
        # The slack of 1e-9 keeps a border that is an integer in exact arithmetic, e.g. (1-0.8)*320/2, an integer.
        low_pass = d.kind in ("truncate", "box")
        inside.append(np.abs(k) >= (1.0 - f) * n / 2 - 1e-9 if low_pass else np.abs(k) <= f * n / 2 + 1e-9)
    combine = np.logical_or if d.kind == "truncate" else np.logical_and
    zeroed = inside[0]
    for other in inside[1:]:
        zeroed = combine(zeroed, other)
    return np.where(zeroed, np.float32(0), np.float32(1))


def apply_weight(volume: np.ndarray, weight: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """`irfftn(rfftn(volume) * weight)` over `axes`. volume: real, any shape; returns float32 of the same shape."""
    volume = np.asarray(volume, dtype=np.float32)
    spectrum = fft.rfftn(volume, axes=axes)
    spectrum *= weight
    out = fft.irfftn(spectrum, s=[volume.shape[a] for a in axes], axes=axes, overwrite_x=True)
    return out.astype(np.float32, copy=False)


def degrade(volume: np.ndarray, degradation: Degradation) -> np.ndarray:
    """The low-resolution version of a whole volume on the same grid, zero-filled in k-space.

    volume: (D, H, W), any real dtype and intensity scale. Returns (D, H, W) float32 on the same intensity scale.
    A patch must be cut after this, not before: the k-space of a patch is not the patch of the k-space.
    """
    return apply_weight(volume, spectral_weight(volume.shape, degradation), degradation.axes)


def kept_band(shape: tuple[int, ...], degradation: Degradation) -> np.ndarray:
    """Where the degradation leaves the spectrum untouched: bool, shaped as `spectral_weight`."""
    return spectral_weight(shape, degradation) == 1.0


def enforce_consistency(estimate: np.ndarray, observed: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Replace the estimate's spectrum by the observed one where that one is known to be exact (design: Parseval).

    estimate, observed: (D, H, W) on one intensity scale; observed = degrade(truth, degradation).
    The squared error against the truth can only fall: the error in the kept band becomes zero, the rest stays.
    """
    kept = kept_band(observed.shape, degradation).astype(np.float32)
    difference = np.asarray(observed, np.float32) - np.asarray(estimate, np.float32)
    return np.asarray(estimate, np.float32) + apply_weight(difference, kept, degradation.axes)


def _fractions(degradation: Degradation, shape: tuple[int, ...]) -> tuple[float, ...]:
    """f per chosen axis; widths in voxels are converted by the axis' own length."""
    if degradation.voxels is not None:
        return tuple(degradation.voxels / shape[a] for a in degradation.axes)
    if isinstance(degradation.fraction, int | float):
        return (float(degradation.fraction),) * len(degradation.axes)
    return tuple(map(float, degradation.fraction))


def _frequencies(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[np.ndarray]:
    """Integer frequencies per chosen axis, shaped to broadcast; the last chosen axis holds the half spectrum."""
    out = []
    for axis in axes:
        n = shape[axis]
        k = np.arange(n // 2 + 1) if axis == axes[-1] else np.rint(np.fft.fftfreq(n) * n)
        out.append(k.reshape([-1 if a == axis else 1 for a in range(len(shape))]).astype(np.float64))
    return out
