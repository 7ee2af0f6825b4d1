"""What single values of an experiment file may be: numbers, intervals, paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]


def home() -> Path:
    """Where stores, runs and the embedded tracking database live by default: $MRISR_HOME or ~/mrisr."""
    return Path(os.environ.get("MRISR_HOME", "~/mrisr")).expanduser().absolute()


def in_ray_job() -> bool:
    """Whether this process is the driver of a submitted Ray job, whose working directory is a throw-away copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def absolute(path: Path) -> Path:
    """The path with ~ and $MRISR_HOME resolved. Raises ValueError for a relative one inside a Ray job."""
    text = str(path)
    if text == "$MRISR_HOME" or text.startswith("$MRISR_HOME/"):
        return home() / text.removeprefix("$MRISR_HOME").lstrip("/")
    path = path.expanduser()
    if not path.is_absolute() and in_ray_job():
        raise ValueError(
            "a relative path inside a Ray job points into a copy that is thrown away; give an absolute path"
        )
    return path.absolute()


def as_pair(value: Any) -> Any:
    """A single number stands for the interval that holds only it."""
    return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def ordered(value: tuple[float, float]) -> tuple[float, float]:
    """The pair as it is. Raises ValueError if its lower end does not come first."""
    if value[0] > value[1]:
        raise ValueError(f"the lower end comes first: use [{value[1]}, {value[0]}]")
    return value


AbsolutePath = Annotated[Path, AfterValidator(absolute)]
Interval = Annotated[tuple[float, float], BeforeValidator(as_pair), AfterValidator(ordered)]
