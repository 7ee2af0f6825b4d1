"""What a checkpoint's folder says without torch: drivers read it before anything heavy is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROGRESS = "progress.json"
METADATA = ".metadata"
REMEDY = "delete this folder to resume from the checkpoint before it"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of other networks than the ones to load it into."""


def read_progress(directory: str | Path) -> dict[str, Any]:
    """The progress that `checkpoint.save` wrote. Raises OSError, or ValueError for text that is not JSON."""
    progress: dict[str, Any] = json.loads((Path(directory) / PROGRESS).read_text())
    return progress
