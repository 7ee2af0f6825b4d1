"""Checkpoint folders. A checkpoint is written completely or not at all, even after a kill or on a full disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from mrisr.engine import checkpoint
from mrisr.engine.networks import Networks
from mrisr.engine.sharding import gather_texts, rank
from mrisr.files import sync, write_synced
from mrisr.training.outcome import StorageStopped

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
        if not (folder / checkpoint.METADATA).is_file() or not checkpoint.read_progress(folder):
            return False
        for weights in folder.glob("*.safetensors"):
            with safe_open(weights, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def best_weights(folder: Path, name: str = BEST_WEIGHTS) -> dict[str, Tensor]:
    """The best weights in a checkpoint, as plain CPU tensors. Raises CheckpointError."""
    try:
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise checkpoint.CheckpointError(f"{folder} cannot be read: {name}: {error}; {checkpoint.REMEDY}") from error


def write_folder(final: Path, networks: Networks, progress: dict[str, Any], files: Mapping[str, bytes]) -> Path:
    """Write a checkpoint to the folder `final` on shared storage. Every rank must call it.

    files: further files that rank 0 writes, by name. All ranks write into a hidden folder beside `final`, which is
    renamed after every rank has flushed its part to the disk. A kill at any moment keeps the previous checkpoint.
    Raises StorageStopped on every rank if one rank cannot write (disk full, over quota, folder gone), or if a host does
    not see the folder that rank 0 made: its shards would be lost without an error.
    """
    part = final.with_name(f".{final.name}.part")
    try:
        done_on_every_rank(lambda: _begin(part, files) if rank() == 0 else None)
        done_on_every_rank(lambda: _require(part))
        done_on_every_rank(lambda: checkpoint.save(part, networks, progress))
        done_on_every_rank(lambda: _finish(part, final) if rank() == 0 else None)
    except StorageStopped as error:
        if rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise StorageStopped(f"{final} could not be written: {error} ({_free(final.parent)})") from None
    return final


def remove(folder: Path) -> None:
    """Delete a checkpoint. Its marker is deleted first, so an interrupted deletion leaves no valid checkpoint."""
    (folder / checkpoint.PROGRESS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def done_on_every_rank(action: Callable[[], object]) -> None:
    """Run an action that writes files on every rank. Raises StorageStopped on all ranks if it fails on one."""
    problem = ""
    try:
        action()
    except OSError as error:
        problem = error.strerror or str(error)
    except CheckpointException as error:
        problem = ", ".join(sorted({str(cause).splitlines()[0] for cause, _ in error.failures.values()}))
    problems = [f"rank {number}: {text}" for number, text in enumerate(gather_texts(problem)) if text]
    if problems:
        raise StorageStopped("; ".join(problems))


def _begin(part: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, content in files.items():
        write_synced(part / name, content)


def _require(part: Path) -> None:
    if not part.is_dir():
        raise OSError(
            errno.ENOENT, "the folder that rank 0 made is not there; output must be on storage that all share"
        )


def _finish(part: Path, final: Path) -> None:
    sync(part)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    sync(final.parent)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free there"
    except OSError as error:
        return f"{folder}: {error.strerror}"
