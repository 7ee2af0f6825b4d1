"""The store's manifest: one file that lists the subjects, made from their own records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelstore.errors import StoreError
from voxelstore.record import SubjectRecord
from voxelstore.splits import SplitRule

SCHEMA = 2
MANIFEST = "manifest.json"


def new_manifest(
    records: Mapping[str, SubjectRecord], left_out: Mapping[str, Any], rule: SplitRule | None
) -> dict[str, Any]:
    subjects = {subject: record.to_json() for subject, record in records.items()}
    splits = None if rule is None else rule.to_json()
    return {"schema": SCHEMA, "splits": splits, "subjects": subjects, "left_out": dict(left_out)}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the store at `path`. Raises StoreError if it is missing, damaged, or of another schema."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path}: no volume store ({MANIFEST} is missing); convert a folder into it first") from None
    except ValueError as error:
        raise StoreError(f"{file}: damaged ({error}); delete it and convert again, which rebuilds it") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA or not {"splits", "subjects", "left_out"} <= manifest.keys():
        raise StoreError(
            f"{file}: schema version {schema!r}, this code reads {SCHEMA}; convert the sources into a new store"
        )
    return manifest
