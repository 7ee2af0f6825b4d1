"""Types of single values of an experiment file (numbers, paths, names), and the base class of its sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler

from mrisr.config.paths import absolute_path
from mrisr.config.values import schema_of_values
from mrisr.settings import OneOf, one_of

__all__ = ["AbsolutePath", "NonNegative", "OneOf", "Positive", "Section", "one_of"]

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


def not_empty(value: Any) -> Any:
    """Raise ValueError for an empty text, which as a path would be the working directory."""
    if value == "":
        raise ValueError("is empty; give a path")
    return value


AbsolutePath = Annotated[Path, BeforeValidator(not_empty), AfterValidator(absolute_path)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return schema_of_values(handler(source), handler.resolve_ref_schema)
