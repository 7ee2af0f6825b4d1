"""Checkpoint folders: which are complete, and the weights in them. torch is imported only to read weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from mrisr.engine.progress import METADATA, PROGRESS, REMEDY, CheckpointError, read_progress

if TYPE_CHECKING:
    from torch import Tensor

BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"


def best_of_stage(stage: str) -> str:
    """The name of the file with a stage's best weights. BEST_WEIGHTS holds the best of all stages."""
    return f"best-{stage}.safetensors"


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint is complete: progress.json, written last, can be read.

    A power failure can truncate files. So DCP's metadata and weights files of the stated length are required too.
    """
    try:
        if not (folder / METADATA).is_file() or not read_progress(folder):
            return False
        for weights in folder.glob("*.safetensors"):
            with safe_open(weights, framework="np"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def best_weights(folder: Path, name: str = BEST_WEIGHTS) -> dict[str, Tensor]:
    """The best weights in a checkpoint, as plain CPU tensors. Raises CheckpointError."""
    from safetensors.torch import load_file

    try:
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {name}: {error}; {REMEDY}") from error


def remove(folder: Path) -> None:
    """Delete a checkpoint. Its marker is deleted first, so an interrupted deletion leaves no valid checkpoint."""
    (folder / PROGRESS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
