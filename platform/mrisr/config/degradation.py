"""The `degradation` section of an experiment file: what training volumes lose, as ranges."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mrisr.config.fields import CountInterval, Interval, NonNegative, Section, one_of
from mrisr.degradation import APODISATIONS, KINDS, DegradationRange, check


class DegradationSection(Section):
    kind: Annotated[str, one_of(KINDS, "kind of degradation")] = Field(
        "truncate", description="what is zeroed in k-space; `mrisr preview --gallery` draws every kind"
    )
    axes: tuple[NonNegative, ...] = Field((1, 2), description="zeroed axes: 0 left-right, 1 post-ant, 2 inf-sup")
    fraction: Interval = Field((0.5, 0.5), description="zeroed share f of each axis, 0 to 1, drawn from [low, high]")
    voxels: CountInterval | None = Field(
        None, description="zeroed width in k-space samples, both sides together; replaces fraction"
    )
    mix: Interval = Field((0.0, 1.0), description="mixed: share of the weight zeroed about DC, drawn from [low, high]")
    sigma: Interval = Field((0.0, 0.0), description="gaussian: blur, standard deviation in voxels, from [low, high]")
    base: Literal["box", "truncate"] = Field("box", description="gaussian: the hard weight under the blur")
    apodisation: Annotated[str, one_of(APODISATIONS, "apodisation")] = Field(
        "none", description="taper of the acquired band"
    )
    taper: Interval = Field((0.0, 0.0), description="tukey: tapered share of the band, drawn from [low, high]")
    slice_axis: NonNegative | None = Field(None, description="axis of thick slices; null: none are thick")
    slice_thickness: Interval = Field(
        (0.0, 0.0), description="Gaussian slice profile, full width at half maximum in voxels, drawn from [low, high]"
    )
    noise: Interval = Field(
        (0.0, 0.0),
        description="Rician noise: standard deviation of either channel, in normalised intensity, from [low, high]",
    )

    def range(self) -> DegradationRange:
        return DegradationRange(**{name: getattr(self, name) for name in DegradationRange._fields})

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        r = self.range()
        for end in (0, 1):
            check(r.end(end)._replace(voxels=None))
        widest = self.fraction[1] if self.voxels is None else self.voxels[1]
        if self.kind == "gaussian" and self.sigma[1] <= 0:
            raise ValueError(
                f"degradation.sigma = {list(self.sigma)} blurs nothing, which leaves kind={self.base}; give gaussian a "
                f"sigma above 0, or use degradation.kind={self.base}"
            )
        acquired = self.apodisation != "none" or self.slice_thickness[1] > 0 or self.noise[1] > 0
        acquired |= self.kind == "gaussian"
        if widest <= 0 and not acquired:
            key = "fraction" if self.voxels is None else "voxels"
            raise ValueError(f"degradation.{key} zeroes nothing at its widest ({widest}); give it a band above 0")
        if self.apodisation == "tukey" and self.taper[1] <= 0:
            raise ValueError(f"degradation.taper = {list(self.taper)} tapers nothing; give tukey a share above 0")
        return self
