"""Describing a degradation in one line, and checking its parameters."""

from __future__ import annotations

import numpy as np

from mrisr.degradation.kinds import BASES, KINDS
from mrisr.degradation.parameters import APODISATIONS, Degradation

# The largest valid value of each parameter (the least is 0), and the text of the error.
_LIMITS = {
    "mix": (1.0, "a mixing ratio lies in [0, 1]"),
    "sigma": (np.inf, "a standard deviation in voxels is finite and not negative"),
    "taper": (1.0, "the tapered share of the band lies in [0, 1]"),
    "slice_thickness": (np.inf, "voxels, finite and not negative"),
    "noise": (np.inf, "a standard deviation of intensity, finite and not negative"),
}
_SYMBOLS = {"mix": "a=", "base": ""}


def describe(d: Degradation) -> str:
    """One line for tables and model tags, e.g. `truncate, axes 1 2, f=0.5`."""
    f = d.fraction if isinstance(d.fraction, int | float) else list(d.fraction)
    width = f"{d.voxels} voxels" if d.voxels is not None else f"f={f}"
    parts = [d.kind, f"axes {' '.join(map(str, d.axes))}", width]
    for name in KINDS[d.kind].uses:
        value = getattr(d, name)
        parts.append(_SYMBOLS.get(name, f"{name}=") + (value if isinstance(value, str) else f"{value:g}"))
    if d.apodisation != "none":
        parts.append(d.apodisation + (f" {d.taper:g}" if d.apodisation == "tukey" else ""))
    if d.slice_axis is not None and d.slice_thickness:
        parts.append(f"slices of {d.slice_thickness:g} voxels on axis {d.slice_axis}")
    if d.noise:
        parts.append(f"noise {d.noise:g}")
    return ", ".join(parts)


def check(d: Degradation, shape: tuple[int, ...] | None = None) -> None:
    """Raise ValueError that names the key, the value and the remedy if a parameter is invalid. shape: if given, axes
    and band widths are checked against this volume as well.
    """
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
    _check_bands(d, shape)
    for name, (most, words) in _LIMITS.items():
        value = getattr(d, name)
        if not 0.0 <= value <= most or value == np.inf:
            raise ValueError(f"degradation.{name} = {value}: {words}")
    for name, names in (("base", BASES), ("apodisation", APODISATIONS)):
        if getattr(d, name) not in names:
            raise ValueError(f"degradation.{name} = {getattr(d, name)!r}: use one of {', '.join(names)}")
    if d.slice_axis is not None and not 0 <= d.slice_axis < ndim:
        raise ValueError(f"degradation.slice_axis = {d.slice_axis}: name one axis of 0..{ndim - 1}, or null")
    if d.slice_thickness > 0 and d.slice_axis is None:
        raise ValueError(
            f"degradation.slice_thickness = {d.slice_thickness} needs degradation.slice_axis, the axis of the slices"
        )
    if d.noise > 0 and d.noise_seed is None:
        raise ValueError(f"degradation.noise = {d.noise} needs a noise_seed: noise is drawn from nothing else")
    if d.noise_seed is not None and d.noise_seed < 0:
        raise ValueError(f"degradation.noise_seed = {d.noise_seed}: a seed is not negative")
    if KINDS[d.kind].weight is None and (d.apodisation != "none" or d.slice_thickness > 0 or d.noise > 0):
        raise ValueError(
            f"degradation.kind = {d.kind!r} is a program of its own; apodisation, slice_thickness and noise combine "
            "with the other kinds only"
        )


def _check_bands(d: Degradation, shape: tuple[int, ...] | None) -> None:
    bands = d._replace(voxels=None).fractions(()) if shape is None else d.fractions(shape)
    # A program clips a band that is wider than an axis, so this is an error only if nothing is left.
    clipped = KINDS[d.kind].weight is None and d.voxels is not None and min(bands) < 1.0
    for axis, f in zip(d.axes, bands, strict=True):
        if not (0.0 <= f < 1.0 or (clipped and f >= 0.0)):
            key, value = ("fraction", f) if d.voxels is None else ("voxels", d.voxels)
            raise ValueError(
                f"degradation.{key} = {value} on axis {axis} leaves an empty passband or none at all; "
                "the zeroed part must be at least 0 and less than the whole axis"
            )
