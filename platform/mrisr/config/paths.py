"""The home folder, and paths that mean the same on every machine of a cluster."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# Set by jobs/*.py and by jobs/runtime_env.yaml.
IN_JOB = "MRISR_IN_JOB"
# s3://bucket/key and its like, of which pathlib makes s3:/bucket/key.
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/")


def home() -> Path:
    """Where stores, runs and the embedded tracking database live by default: $MRISR_HOME or ~/mrisr."""
    return Path(os.environ.get("MRISR_HOME", "~/mrisr")).expanduser().absolute()


def in_ray_job() -> bool:
    """Whether this process belongs to a submitted Ray job, whose working directory is a temporary copy."""
    return IN_JOB in os.environ


def absolute_path(path: Path) -> Path:
    """The absolute path, with `$MRISR_HOME` and `~` resolved.

    Raises ValueError for an address, and for a relative path in a Ray job.
    """
    text = str(path)
    if _ADDRESS.match(text):
        raise ValueError("is an address, not a path; mount that storage and give the path of the mount")
    if text == "$MRISR_HOME" or text.startswith("$MRISR_HOME/"):
        return home() / text.removeprefix("$MRISR_HOME").lstrip("/")
    path = path.expanduser()
    if not path.is_absolute() and in_ray_job():
        raise ValueError(
            "a relative path inside a Ray job points into a copy that is thrown away; give an absolute path"
        )
    return path.absolute()


def after_move(value: Any, was: str | Path, now: str | Path) -> Any:
    """A path, or a list of paths, after an ancestor folder was renamed, so that `was` became `now`. Paths outside that
    ancestor, and other values, are returned unchanged.
    """
    old, new = list(Path(was).parts), list(Path(now).parts)
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    if isinstance(value, list):
        return [after_move(item, was, now) for item in value]
    parts = list(Path(value).parts) if isinstance(value, str) else []
    below = old and parts[: len(old)] == old
    return str(Path(*new, *parts[len(old) :])) if below else value
