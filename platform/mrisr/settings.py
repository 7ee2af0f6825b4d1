"""Building blocks of settings: frozen dataclasses whose fields carry meaning and bounds, which pydantic reads."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any

_BOUNDS = {
    "gt": (operator.gt, "greater than"),
    "ge": (operator.ge, "greater than or equal to"),
    "lt": (operator.lt, "less than"),
    "le": (operator.le, "less than or equal to"),
}


def setting(default: Any, meaning: str, **bounds: float) -> Any:
    return field(default=default, metadata={"description": meaning, **bounds})


def check_bounds(settings: Any, section: str) -> None:
    """Raise ValueError that names `section.field` and its value, for a field outside its bounds."""
    for one in fields(settings):
        value = getattr(settings, one.name)
        for bound, (holds, words) in _BOUNDS.items():
            limit = one.metadata.get(bound)
            if limit is not None and value is not None and not holds(value, limit):
                raise ValueError(f"{section}.{one.name} is {value}; it must be {words} {limit}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def check_types(settings: Any, section: str) -> None:
    """Raise ValueError that names `section.field` and its value, for a value of another type than the default's."""
    for one in fields(settings):
        value, kind = getattr(settings, one.name), type(one.default)
        number = kind is float and type(value) is int
        if kind in _KINDS and type(value) is not kind and not number:
            raise ValueError(f"{section}.{one.name} is {value!r}; it must be {_KINDS[kind]}")


@dataclass(frozen=True, eq=False)
class OneOf:
    """`Annotated[str, one_of(PROTOCOLS, "protocol")]`: a field whose value is a name in a table, read at check time."""

    table: Collection[str]
    what: str

    @property
    def choices(self) -> str:
        return " | ".join(self.table)

    def check(self, value: Any) -> str:
        if isinstance(value, str) and value in self.table:
            return value
        raise ValueError(f"unknown {self.what}; use one of {', '.join(self.table)}")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        return {"type": "function-plain", "function": {"type": "no-info", "function": self.check}}

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.table)}


one_of = OneOf


class AsPair:
    """Annotation of a pair that may be given as one number: 0.5 means [0.5, 0.5]."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        return {
            "type": "function-before",
            "function": {"type": "no-info", "function": as_pair},
            "schema": handler(source),
        }


def as_pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value
