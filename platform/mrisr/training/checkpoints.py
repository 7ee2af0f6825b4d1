"""Checkpoint folders: written completely or not at all, whatever dies and however full the disk is."""

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
    """The file of a stage's best weights; BEST_WEIGHTS has the best of all stages."""
    return f"best-{stage}.safetensors"


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end: progress.json, which is written last, can be read.

    A power failure can cut files short, so DCP's metadata must be there too, and the weights files must be as long as
    their headers say.
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
    """The best weights in a checkpoint, plain CPU tensors. Raises CheckpointError that names the folder."""
    try:
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise checkpoint.CheckpointError(f"{folder} cannot be read: {name}: {error}; {checkpoint.REMEDY}") from error


def write_folder(final: Path, networks: Networks, progress: dict[str, Any], files: Mapping[str, bytes]) -> Path:
    """Write a checkpoint to the folder `final`, on storage that all ranks share; every rank must call it.

    files: what rank 0 adds, by name. All ranks write into a hidden folder beside `final`. It is renamed after every
    rank has said that its part is on the disk. So a kill or a power failure at any moment leaves the previous
    checkpoint as the newest.
    Raises StorageStopped on every rank if any of them cannot write: disk full, over quota, folder gone, or a host that
    does not see the folder that rank 0 made (its shards would be lost without an error).
    """
    part = final.with_name(f".{final.name}.part")
    try:
        on_every_rank_or_none(lambda: _begin(part, files) if rank() == 0 else None)
        on_every_rank_or_none(lambda: _require(part))
        on_every_rank_or_none(lambda: checkpoint.save(part, networks, progress))
        on_every_rank_or_none(lambda: _finish(part, final) if rank() == 0 else None)
    except StorageStopped as error:
        if rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise StorageStopped(f"{final} could not be written: {error} ({_free(final.parent)})") from None
    return final


def remove(folder: Path) -> None:
    """Delete a checkpoint. Its marker goes first, so that a deletion cut short leaves no checkpoint."""
    (folder / checkpoint.PROGRESS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def on_every_rank_or_none(action: Callable[[], object]) -> None:
    """Run an action that writes on every rank. Raises StorageStopped on all of them if it fails on one."""
    problem = ""
    try:
        action()
    except OSError as error:
        problem = error.strerror or str(error)
    except CheckpointException as error:
        problem = ", ".join(sorted({str(cause).splitlines()[0] for cause, _ in error.failures.values()}))
    told = [f"rank {number}: {text}" for number, text in enumerate(gather_texts(problem)) if text]
    if told:
        raise StorageStopped("; ".join(told))


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
