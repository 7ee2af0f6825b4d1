"""Options, paths and the key reference that the verbs of the `mrisr` command share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mrisr.config.loading import SHIPPED, ConfigError, field_reference
from mrisr.config.networks import Generator
from mrisr.config.paths import absolute_path, home, in_ray_job
from mrisr.config.reference import fields_of


def key_reference() -> str:
    """Every configuration key with type, default and meaning; \\b keeps click from re-wrapping the lines."""
    parts = [
        "\b\nConfiguration keys (KEY=VALUE; values are YAML 1.2, texts and paths as they are):",
        *_rows(field_reference()),
    ]
    for kind, settings in list(Generator.kinds())[1:]:
        parts += [f"With generator.kind={kind}, instead of the keys of the default kind:"]
        parts += _rows(fields_of(settings, "generator."))
    return "\n".join(parts)


def _rows(fields: Iterable[tuple[str, str, str, str]]) -> list[str]:
    return [f"  {key}={default}  ({kind})\n      {meaning}" for key, kind, default, meaning in fields]


class WithKeys(TyperCommand):
    """A verb whose help ends with the key reference, which is made when it is printed, because it imports torch."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        self.epilog = key_reference()
        super().format_epilog(ctx, formatter)


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
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="override configuration keys")]
TrackingOption = Annotated[
    str | None, typer.Option(help="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else $MRISR_HOME/mlflow.db")
]
