"""The `validation` section of an experiment file: the fixed protocol and metric that choose the best weights."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from mrisr.config.fields import Positive, Section
from mrisr.config.reference import ConfigError
from mrisr.config.tuning import Metric, Protocol
from mrisr.degradation import PROTOCOLS, Degradation


def not_test(split: str) -> str:
    """Raise ValueError for the test split, which is for final figures."""
    if split == "test":
        raise ValueError(
            "the test split would choose the weights that are then measured on it, and the figures would mislead; "
            "give another split, such as validation"
        )
    return split


class Validation(Section):
    protocol: Protocol = Field(
        "chen2018", description="the fixed degradation that figures are measured under; training never changes it"
    )
    further_protocols: tuple[Protocol, ...] = Field(
        (), description="measured beside it; they decide nothing in training"
    )
    split: Annotated[str, AfterValidator(not_test)] = Field(
        "validation", min_length=1, description="split that chooses the best weights and the champion, not `test`"
    )
    every: Positive = Field(2000, description="steps between validations")
    patch_size: Positive = Field(64, description="edge of the cubes validated during training, voxels")
    patches_per_subject: Positive = Field(4, description="cubes per subject; the same ones for ever")
    max_subjects: Positive | None = Field(None, description="first N subjects of the split only; null: all")
    metric: Metric = Field("psnr", description="figure that decides which weights are the best")
    mean_over: tuple[Protocol, ...] = Field(
        (), description="best weights by the mean of that figure over these protocols; empty: protocol alone"
    )
    allow_trained_on: bool = Field(
        False,
        description="whether generator.init_from may have been trained on subjects of the split; then none is champion",
    )
    start_counts: bool = Field(
        True, description="whether the weights before the first step may be the best; in a search they may not"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_windows(cls, raw: Any) -> Any:
        """Runs of older versions have an overlap of windows in their resolved configuration."""
        return {key: value for key, value in raw.items() if key != "overlap"} if isinstance(raw, dict) else raw


def protocol_named(name: str, key: str = "protocol") -> Degradation:
    """The fixed degradation of that name. Raises ConfigError that lists the existing names."""
    if name not in PROTOCOLS:
        raise ConfigError(f"{key} = {name!r}: unknown; use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
