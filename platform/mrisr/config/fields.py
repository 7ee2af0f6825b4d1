"""What single values of an experiment file may be: numbers, intervals, paths; and what every section is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mrisr.config.paths import absolute_path
from mrisr.settings import OneOf, as_pair, one_of

__all__ = ["AbsolutePath", "CountInterval", "Interval", "NonNegative", "OneOf", "Positive", "Section", "one_of"]

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


def ordered(value: tuple[float, float]) -> tuple[float, float]:
    """The pair as it is. Raises ValueError if its lower end does not come first."""
    if value[0] > value[1]:
        raise ValueError(f"the lower end comes first: use [{value[1]}, {value[0]}]")
    return value


AbsolutePath = Annotated[Path, AfterValidator(absolute_path)]
Interval = Annotated[tuple[float, float], BeforeValidator(as_pair), AfterValidator(ordered)]
CountInterval = Annotated[tuple[NonNegative, NonNegative], BeforeValidator(as_pair), AfterValidator(ordered)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
