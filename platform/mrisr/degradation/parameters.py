"""What a degradation is made of, what training draws it from, and what makes it meaningless."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SPECTRAL_KINDS = ("truncate", "box", "shift", "mixed", "gaussian")
ALIASES = {"shift_fft_shift": "shift"}
KINDS = (*SPECTRAL_KINDS, *ALIASES, "report_literal")
APODISATIONS = ("none", "tukey", "hamming")


class Degradation(NamedTuple):
    """One degradation with all parameters fixed.

    kind: a name of `KINDS`.
    axes: the chosen volume axes, e.g. (1, 2); the others are left at full resolution.
    fraction: f in [0, 1), one number or one per chosen axis; 0 is the identity.
    voxels: width of the zeroed band in samples of the spectrum (both sides together); replaces `fraction`.
    mix: a in [0, 1], for `mixed` and `report_literal`.
    sigma: standard deviation of the blur in voxels, for `gaussian`.
    base: the hard weight under `gaussian`: `box` or `truncate`.
    apodisation: taper of the acquired band on the chosen axes, a name of `APODISATIONS`. The band ends at (1-f)N/2 for
        `truncate` (also as a base) and at Nyquist for the other kinds, which acquire every axis to its end.
    taper: share of the band, in [0, 1], over which `tukey` falls; 0 is the identity, 1 a Hann window.
    slice_axis: axis of thick slices, one of the chosen or another; None: no slice profile.
    slice_thickness: full width at half maximum of the Gaussian slice profile in voxels, >= 0; 0 is the identity.
    noise: standard deviation of the real and of the imaginary part of the receiver's noise, in units of the volume's
        intensity, for a voxel whose k-space is sampled in full; 0 means none, and no magnitude is taken. Where the
        signal is 0 is told to `degrade`, since it is the volume's.
    noise_seed: what the noise is drawn from; required with noise.
    """

    kind: str
    axes: tuple[int, ...] = (1, 2)
    fraction: float | tuple[float, ...] = 0.5
    voxels: int | None = None
    mix: float = 0.0
    sigma: float = 0.0
    base: str = "box"
    apodisation: str = "none"
    taper: float = 0.0
    slice_axis: int | None = None
    slice_thickness: float = 0.0
    noise: float = 0.0
    noise_seed: int | None = None

    @property
    def transform_axes(self) -> tuple[int, ...]:
        """The axes that the Fourier transform runs over: the chosen ones, and that of thick slices."""
        thick = self.slice_axis is not None and self.slice_thickness > 0 and self.slice_axis not in self.axes
        return (*((self.slice_axis,) if thick and self.slice_axis is not None else ()), *self.axes)

    @property
    def independent_axes(self) -> tuple[int, ...]:
        """Axes along which every slice is degraded by itself, so that a part of the volume can be. None with noise."""
        return () if self.noise > 0 else tuple(axis for axis in range(3) if axis not in self.transform_axes)

    def describe(self) -> str:
        """One line for tables and model tags, e.g. `truncate, axes 1 2, f=0.5`."""
        f = self.fraction if isinstance(self.fraction, int | float) else list(self.fraction)
        width = f"{self.voxels} voxels" if self.voxels is not None else f"f={f}"
        parts = [self.kind, f"axes {' '.join(map(str, self.axes))}", width]
        if self.kind in ("mixed", "report_literal"):
            parts.append(f"a={self.mix:g}")
        if self.kind == "gaussian":
            parts += [self.base, f"sigma={self.sigma:g}"]
        if self.apodisation != "none":
            parts.append(self.apodisation + (f" {self.taper:g}" if self.apodisation == "tukey" else ""))
        if self.slice_axis is not None and self.slice_thickness:
            parts.append(f"slices of {self.slice_thickness:g} voxels on axis {self.slice_axis}")
        if self.noise:
            parts.append(f"noise {self.noise:g}")
        return ", ".join(parts)


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
    """What training draws from: closed intervals, one uniform draw per row of the stream. Fields as in Degradation."""

    kind: str
    axes: tuple[int, ...] = (1, 2)
    fraction: tuple[float, float] = (0.5, 0.5)
    voxels: tuple[int, int] | None = None
    mix: tuple[float, float] = (0.0, 1.0)
    sigma: tuple[float, float] = (0.0, 0.0)
    base: str = "box"
    apodisation: str = "none"
    taper: tuple[float, float] = (0.0, 0.0)
    slice_axis: int | None = None
    slice_thickness: tuple[float, float] = (0.0, 0.0)
    noise: tuple[float, float] = (0.0, 0.0)

    def sample(self, rng: np.random.Generator) -> Degradation:
        """Draw every parameter, used or not, so that a draw of one never depends on the kind.

        What acquisitions add is drawn from a child of `rng`: turning it on moves no other draw of the row.
        """
        fraction, mix, sigma = (float(rng.uniform(*r)) for r in (self.fraction, self.mix, self.sigma))
        voxels = None if self.voxels is None else int(rng.integers(self.voxels[0], self.voxels[1] + 1))
        (child,) = rng.spawn(1)
        taper, thickness, noise = (float(child.uniform(*r)) for r in (self.taper, self.slice_thickness, self.noise))
        return Degradation(
            self.kind, self.axes, fraction, voxels, mix, sigma, self.base, self.apodisation, taper,
            self.slice_axis, thickness, noise, int(child.integers(2**63)),
        )  # fmt: skip

    def describe(self) -> str:
        """One line: both ends, `truncate, axes 1 2, f=0.3 ... truncate, axes 1 2, f=0.7`, or the one there is."""
        low, high = self.end(0).describe(), self.end(1).describe()
        return low if low == high else f"{low} ... {high}"

    def end(self, which: int) -> Degradation:
        """The degradation with every parameter at its lower (0) or upper (1) end."""
        voxels = None if self.voxels is None else self.voxels[which]
        values = [r[which] for r in (self.fraction, self.mix, self.sigma, self.taper, self.slice_thickness, self.noise)]
        fraction, mix, sigma, taper, thickness, noise = values
        return Degradation(
            self.kind, self.axes, fraction, voxels, mix, sigma, self.base, self.apodisation, taper,
            self.slice_axis, thickness, noise, 0,
        )  # fmt: skip


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
    _check_bands(d, (1,) * ndim if shape is None or d.voxels is None else shape, shape is None)
    if not 0.0 <= d.mix <= 1.0:
        raise ValueError(f"degradation.mix = {d.mix}: a mixing ratio lies in [0, 1]")
    if not 0.0 <= d.sigma < np.inf:
        raise ValueError(f"degradation.sigma = {d.sigma}: a standard deviation in voxels is finite and not negative")
    if d.kind == "gaussian" and d.base not in ("box", "truncate"):
        raise ValueError(f"degradation.base = {d.base!r}: use box or truncate under a gaussian")
    _check_acquisition(d, ndim)


def fractions(degradation: Degradation, shape: tuple[int, ...]) -> tuple[float, ...]:
    """f per chosen axis; widths in voxels are converted by the axis' own length."""
    if degradation.voxels is not None:
        return tuple(degradation.voxels / shape[a] for a in degradation.axes)
    if isinstance(degradation.fraction, int | float):
        return (float(degradation.fraction),) * len(degradation.axes)
    return tuple(map(float, degradation.fraction))


def _check_bands(d: Degradation, lengths: tuple[int, ...], without_shape: bool) -> None:
    bands = fractions(d._replace(voxels=None) if without_shape else d, lengths)
    # The literal code is clipped where it is wider than an axis; only nothing left at all is an error.
    clipped = d.kind == "report_literal" and d.voxels is not None and min(bands) < 1.0
    for axis, f in zip(d.axes, bands, strict=True):
        if not (0.0 <= f < 1.0 or (clipped and f >= 0.0)):
            key, value = ("fraction", f) if d.voxels is None else ("voxels", d.voxels)
            raise ValueError(
                f"degradation.{key} = {value} on axis {axis} leaves an empty passband or none at all; "
                "the zeroed part must be at least 0 and less than the whole axis"
            )


def _check_acquisition(d: Degradation, ndim: int) -> None:
    if d.apodisation not in APODISATIONS:
        raise ValueError(f"degradation.apodisation = {d.apodisation!r}: use one of {', '.join(APODISATIONS)}")
    if not 0.0 <= d.taper <= 1.0:
        raise ValueError(f"degradation.taper = {d.taper}: the tapered share of the band lies in [0, 1]")
    if not 0.0 <= d.slice_thickness < np.inf:
        raise ValueError(f"degradation.slice_thickness = {d.slice_thickness}: voxels, finite and not negative")
    if d.slice_axis is not None and not 0 <= d.slice_axis < ndim:
        raise ValueError(f"degradation.slice_axis = {d.slice_axis}: name one axis of 0..{ndim - 1}, or null")
    if d.slice_thickness > 0 and d.slice_axis is None:
        raise ValueError(
            f"degradation.slice_thickness = {d.slice_thickness} needs degradation.slice_axis, the axis of the slices"
        )
    if not 0.0 <= d.noise < np.inf:
        raise ValueError(f"degradation.noise = {d.noise}: a standard deviation of intensity, finite and not negative")
    if d.noise > 0 and d.noise_seed is None:
        raise ValueError(f"degradation.noise = {d.noise} needs a noise_seed: noise is drawn from nothing else")
    if d.noise_seed is not None and d.noise_seed < 0:
        raise ValueError(f"degradation.noise_seed = {d.noise_seed}: a seed is not negative")
    if d.kind == "report_literal" and (d.apodisation != "none" or d.slice_thickness > 0 or d.noise > 0):
        raise ValueError(
            "degradation.kind = 'report_literal' reproduces one program; apodisation, slice_thickness and noise "
            "combine with the other kinds only"
        )
