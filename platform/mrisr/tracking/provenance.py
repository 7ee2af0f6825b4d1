"""What a run records about itself: its configuration as MLflow parameters, and the code's version."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SOURCES = "sources sha256:"
# MLflow's limits.
_PARAM_LENGTH, _PARAM_KEY_LENGTH = 6000, 250


def code_version() -> str:
    """The git commit of this package's checkout (`-dirty` if tracked files differ), else `sources sha256:...`, for
    example in a submitted job, which has no checkout.
    """
    package = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=package, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may be inside another project's checkout, whose commit is not the package's.
    if git("ls-files", "--error-unmatch", "__init__.py") is not None and (commit := git("rev-parse", "HEAD")):
        return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    return f"{SOURCES}{_sources_hash()}"


def _sources_hash() -> str:
    digest = hashlib.sha256()
    for package in ("mrisr", "voxelstore"):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            for file in sorted(Path(folder).rglob("*.py")):
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                digest.update(f"{package}/{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """The nested value in mappings, lists and scalars that YAML and JSON can write (paths become text)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Parameters for MLflow: dotted keys; values as text (`null`, `true`, lists as JSON), cut if long."""
    return {
        re.sub(r"[^\w.\-: /]", "_", key)[:_PARAM_KEY_LENGTH]: text
        if len(text) <= _PARAM_LENGTH
        else f"{text[: _PARAM_LENGTH - 60]}... ({len(text)} characters; all of them in config.yaml)"
        for key, text in _leaves(config)
        if key
    }


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{prefix}.{index}")
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
