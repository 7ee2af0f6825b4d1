"""What single values of an experiment file may be: numbers, intervals, paths; and what every section is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

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


@dataclass(frozen=True, eq=False)
class OneOf:
    """Field metadata: a name in a table. The table is read at validation, so that code elsewhere may add an entry."""

    table: Collection[str]
    what: str

    @property
    def choices(self) -> str:
        return " | ".join(self.table)

    def check(self, value: Any) -> str:
        if isinstance(value, str) and value in self.table:
            return value
        raise ValueError(f"unknown {self.what}; use one of {', '.join(self.table)}")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.table)}


def one_of(table: Collection[str], what: str) -> OneOf:
    """`Annotated[str, one_of(PROTOCOLS, "protocol")]`: a field that takes a name from a dict or tuple."""
    return OneOf(table, what)


AbsolutePath = Annotated[Path, AfterValidator(absolute_path)]
Interval = Annotated[tuple[float, float], BeforeValidator(as_pair), AfterValidator(ordered)]
CountInterval = Annotated[tuple[NonNegative, NonNegative], BeforeValidator(as_pair), AfterValidator(ordered)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
