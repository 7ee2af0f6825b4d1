"""What single values of an experiment file may be: numbers, paths, names; and what every section is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mrisr.config.paths import absolute_path
from mrisr.settings import OneOf, one_of

__all__ = ["AbsolutePath", "NonNegative", "OneOf", "Positive", "Section", "one_of"]

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


AbsolutePath = Annotated[Path, AfterValidator(absolute_path)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
