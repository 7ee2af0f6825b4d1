"""What the verbs of the `mrisr` command share: options, paths, and the reference of all keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrisr.config.loading import ConfigError, field_reference
from mrisr.config.paths import absolute_path, home, in_ray_job


def key_reference() -> str:
    """Every configuration key with type, default and meaning; \\b keeps click from re-wrapping the lines."""
    rows = [f"  {key}={default}  ({kind})\n      {meaning}" for key, kind, default, meaning in field_reference()]
    return "\b\nConfiguration keys (KEY=VALUE; values are YAML):\n" + "\n".join(rows)


def absolute(path: Path, option: str) -> Path:
    """The absolute path. Raises ConfigError for a relative one in a Ray job, whose folder is a throw-away copy."""
    try:
        return absolute_path(path)
    except ValueError as error:
        raise ConfigError(f"{option} {path}: {error}") from None


def output_path(path: Path | None, name: str, option: str) -> Path:
    """Where results go: `path`, else `name` in the working directory, or in $MRISR_HOME for a Ray job."""
    if path is None:
        return (home() if in_ray_job() else Path.cwd()) / name
    return absolute(path, option)


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="experiment file (YAML)", dir_okay=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="override configuration keys")]
TrackingOption = Annotated[
    str | None, typer.Option(help="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else $MRISR_HOME/mlflow.db")
]
