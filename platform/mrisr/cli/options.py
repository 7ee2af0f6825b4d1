"""Options, paths and help that the verbs of the `mrisr` command share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from mrisr.config.loading import SHIPPED, ConfigError, field_reference
from mrisr.config.paths import absolute_path, home, in_ray_job


class Verb(TyperCommand):
    """A verb whose first sentence stands whole in `mrisr --help`, where typer would cut it off."""

    def get_short_help_str(self, limit: int = 45) -> str:
        text = " ".join((self.help or "").partition("\n\n")[0].split())
        return re.split(r"(?<=\.) ", text, maxsplit=1)[0]


KEYS = "KEY=VALUE: `mrisr keys` explains every key, `mrisr keys training` those of a section."


def absolute(path: Path, option: str) -> Path:
    """The absolute path. Raises ConfigError for a relative one in a Ray job, whose folder is a temporary copy."""
    try:
        return absolute_path(path)
    except ValueError as error:
        raise ConfigError(f"{option} {path}: {error}") from None


def output_path(path: Path | None, name: str, option: str) -> Path:
    """`path`, or by default `name` in the working directory ($MRISR_HOME for a Ray job)."""
    if path is None:
        return (home() if in_ray_job() else Path.cwd()) / name
    return absolute(path, option)


ConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", help=f"experiment file (YAML), or one that ships: {', '.join(SHIPPED)}"),
]


def _complete_key(incomplete: str) -> list[str]:
    return [f"{key}=" for key, *_ in field_reference() if key.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="override configuration keys", autocompletion=_complete_key),
]
TrackingOption = Annotated[
    str | None, typer.Option(help="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else $MRISR_HOME/mlflow.db")
]
