"""Writes a checkpoint folder completely or not at all, even after a kill or on a full disk. Every rank takes part."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from mrisr.engine import checkpoint
from mrisr.engine.networks import Networks
from mrisr.engine.sharding import gather_texts, rank
from mrisr.files import sync, write_synced
from mrisr.training.outcome import StorageStopped


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
