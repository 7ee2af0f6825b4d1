from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Full width at half maximum of a Gaussian of standard deviation 1.
FWHM = 2.0 * float(np.sqrt(2.0 * np.log(2.0)))
APODISATIONS = ("none", "tukey", "hamming")


class Degradation(NamedTuple):
    """One degradation with all parameters fixed.

    kind: a name of `KINDS`. axes: the degraded volume axes. fraction: f in [0, 1), one number or one per chosen axis.
    voxels: instead of it, the width of the zeroed band in samples of the spectrum, both sides together. mix: a in [0,
    1], for `mixed` and `report_literal`. sigma: standard deviation of the blur in voxels, for `gaussian`. base: the
    hard weight under it, of `BASES`.

    apodisation: taper of the acquired band, of `APODISATIONS`. The band ends at (1-f)N/2 for `truncate` (also as a
    base) and at Nyquist for other kinds. taper: share of the band, in [0, 1], over which `tukey` falls; 0 is the
    identity, 1 a Hann window. slice_axis: axis of thick slices, any axis. slice_thickness: full width at half maximum
    of their Gaussian profile in voxels, >= 0.

    noise: standard deviation of the real and of the imaginary part of the receiver's noise, in the volume's unit of
    intensity, for a voxel whose k-space is sampled in full. 0: no noise, and no magnitude is taken. noise_seed:
    required with noise.
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
        """The axes of the Fourier transform: the chosen ones, and that of thick slices."""
        thick = self.slice_axis is not None and self.slice_thickness > 0 and self.slice_axis not in self.axes
        return (*((self.slice_axis,) if thick and self.slice_axis is not None else ()), *self.axes)

    @property
    def independent_axes(self) -> tuple[int, ...]:
        """Axes along which slices are degraded independently; none with noise."""
        return () if self.noise > 0 else tuple(axis for axis in range(3) if axis not in self.transform_axes)

    def fractions(self, shape: tuple[int, ...]) -> tuple[float, ...]:
        """f per chosen axis; widths in voxels are converted by the axis' own length."""
        if self.voxels is not None:
            return tuple(self.voxels / shape[axis] for axis in self.axes)
        if isinstance(self.fraction, int | float):
            return (float(self.fraction),) * len(self.axes)
        return tuple(map(float, self.fraction))

    def frequencies(self, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
        """Integer frequencies by chosen axis, in the layout of the whole transform."""
        every = frequencies(shape, self.transform_axes)
        return {axis: every[axis] for axis in self.axes}


def frequencies(shape: tuple[int, ...], axes: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Integer frequencies by axis, shaped to broadcast; the last of `axes` holds the half spectrum."""
    out = {}
    for axis in axes:
        n = shape[axis]
        k = np.arange(n // 2 + 1) if axis == axes[-1] else np.rint(np.fft.fftfreq(n) * n)
        out[axis] = k.reshape([-1 if a == axis else 1 for a in range(len(shape))]).astype(np.float64)
    return out
