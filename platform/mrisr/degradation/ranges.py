"""The ranges that training draws degradations from, and the fixed protocols of validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from mrisr.degradation.checks import check, describe
from mrisr.degradation.kinds import BASES, KINDS
from mrisr.degradation.parameters import APODISATIONS, Degradation
from mrisr.settings import AsPair, one_of, setting

Interval = Annotated[tuple[float, float], AsPair()]
Widths = Annotated[tuple[int, int], AsPair()]

# Constants, not configuration: figures compare only under an unchanged protocol.
PROTOCOLS: dict[str, Degradation] = {
    # Chen et al. 2018: half of each in-plane axis, 256x160x160 of 256x320x320.
    "chen2018": Degradation("truncate", axes=(1, 2), fraction=0.5),
    # The public port by hz2538 keeps 64 of 320.
    "hz2538": Degradation("truncate", axes=(1, 2), fraction=0.8),
    # The project report's third way at its zeroing range 160 of (256, 320, 320), equal parts of both weights.
    "report160": Degradation("mixed", axes=(0, 1, 2), fraction=(0.625, 0.5, 0.5), mix=0.5),
}
# Axial slices of 3 and 5 voxels.
PROTOCOLS |= {f"slices{voxels}": Degradation("slices", axes=(2,), fraction=1 - 1 / voxels) for voxels in (3, 5)}
# The same along other axes, for scans that were acquired in another orientation.
PROTOCOLS |= {
    f"{name}-axes{''.join(map(str, axes))}": PROTOCOLS[name]._replace(axes=axes)
    for names, orientations in ((("chen2018", "hz2538"), ((0, 1), (0, 2))), (("slices3", "slices5"), ((0,), (1,))))
    for name in names for axes in orientations
}  # fmt: skip

# In drawing order; the parameters of an acquisition have a random generator of their own.
_DRAWN, _ACQUISITION = ("fraction", "mix", "sigma"), ("taper", "slice_thickness", "noise")


@dataclass(frozen=True)
class DegradationRange:
    """The `degradation` section: closed intervals, one uniform draw per row of the stream. Fields as in Degradation.
    Raises ValueError that names the key for invalid ranges.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    kind: Annotated[str, one_of(KINDS, "kind of degradation")] = setting(
        "truncate", "what is zeroed in k-space; `mrisr preview --gallery` draws every kind"
    )
    axes: tuple[int, ...] = setting((1, 2), "zeroed axes: 0 left-right, 1 post-ant, 2 inf-sup")
    fraction: Interval = setting((0.5, 0.5), "zeroed share f of each axis, 0 to 1, drawn from [low, high]")
    voxels: Widths | None = setting(None, "zeroed width in k-space samples, both sides together; replaces fraction")
    mix: Interval = setting((0.0, 1.0), "mixed: share of the weight zeroed about DC, drawn from [low, high]")
    sigma: Interval = setting((0.0, 0.0), "gaussian: blur, standard deviation in voxels, from [low, high]")
    base: Annotated[str, one_of(BASES, "base")] = setting("box", "gaussian: the hard weight under the blur")
    apodisation: Annotated[str, one_of(APODISATIONS, "apodisation")] = setting("none", "taper of the acquired band")
    taper: Interval = setting((0.0, 0.0), "tukey: tapered share of the band, drawn from [low, high]")
    slice_axis: int | None = setting(None, "axis of thick slices; null: none are thick")
    slice_thickness: Interval = setting(
        (0.0, 0.0), "Gaussian slice profile, full width at half maximum in voxels, drawn from [low, high]"
    )
    noise: Interval = setting(
        (0.0, 0.0), "Rician noise: standard deviation of either channel, in normalised intensity, from [low, high]"
    )

    def __post_init__(self) -> None:
        for name in (*_DRAWN, *_ACQUISITION, "voxels"):
            low, high = getattr(self, name) or (0, 0)
            if low > high:
                raise ValueError(f"degradation.{name} = {[low, high]}: the lower end comes first: use [{high}, {low}]")
        if self.voxels is not None and self.voxels[0] < 0:
            raise ValueError(f"degradation.voxels = {list(self.voxels)}: a width is greater than or equal to 0")
        for end in (0, 1):
            check(self.end(end)._replace(voxels=None))
        self._check_effect()

    def _check_effect(self) -> None:
        kind, strongest = KINDS[self.kind], self.end(1)
        for name in kind.needs:
            if getattr(strongest, name) <= 0:
                other = f", or use degradation.kind={self.base}" if "base" in kind.uses else ""
                raise ValueError(
                    f"degradation.{name} = {list(getattr(self, name))} does nothing; give kind {self.kind} a {name} "
                    f"above 0{other}"
                )
        key, widest = ("fraction", self.fraction[1]) if self.voxels is None else ("voxels", self.voxels[1])
        acquired = strongest.apodisation != "none" or strongest.slice_thickness > 0 or strongest.noise > 0
        if widest <= 0 and not (acquired or kind.needs):
            raise ValueError(f"degradation.{key} zeroes nothing at its widest ({widest}); give it a band above 0")
        if self.apodisation == "tukey" and self.taper[1] <= 0:
            raise ValueError(f"degradation.taper = {list(self.taper)} tapers nothing; give tukey a share above 0")

    def sample(self, rng: np.random.Generator) -> Degradation:
        """Draw every parameter, used or not, so that no draw depends on the kind. Parameters of an acquisition are
        drawn from a child of `rng`: turning one on changes no other draw of the row.
        """
        drawn: dict[str, Any] = {name: float(rng.uniform(*getattr(self, name))) for name in _DRAWN}
        if self.voxels is not None:
            drawn["voxels"] = int(rng.integers(self.voxels[0], self.voxels[1] + 1))
        (child,) = rng.spawn(1)
        drawn |= {name: float(child.uniform(*getattr(self, name))) for name in _ACQUISITION}
        return self._fixed(**drawn, noise_seed=int(child.integers(2**63)))

    def end(self, which: int) -> Degradation:
        """The degradation with every parameter at its lower (0) or upper (1) end."""
        ends = {name: getattr(self, name)[which] for name in (*_DRAWN, *_ACQUISITION)}
        return self._fixed(**ends, voxels=None if self.voxels is None else self.voxels[which], noise_seed=0)

    def describe(self) -> str:
        """One line: both ends, `truncate, axes 1 2, f=0.3 ... truncate, axes 1 2, f=0.7`, or one if they are equal."""
        low, high = describe(self.end(0)), describe(self.end(1))
        return low if low == high else f"{low} ... {high}"

    def _fixed(self, **values: Any) -> Degradation:
        return Degradation(
            kind=self.kind, axes=self.axes, base=self.base, apodisation=self.apodisation, slice_axis=self.slice_axis,
            **values,
        )  # fmt: skip
