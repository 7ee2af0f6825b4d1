"""What single values of an experiment file may be: numbers, intervals, paths; and what every section is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mrisr.config.paths import absolute_path

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]


def as_pair(value: Any) -> Any:
    """A single number stands for the interval that holds only it."""
    return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


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
