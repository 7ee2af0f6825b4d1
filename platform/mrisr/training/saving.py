"""Checkpoints that are in a run's folder as a whole or not at all, whatever dies, and however full the disk is."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from mrisr.engine import checkpoint
from mrisr.engine.networks import Networks
from mrisr.engine.sharding import gather_texts, rank, world_size
from mrisr.files import sync, write_synced
from mrisr.models.weights import serialised
from mrisr.training.best import sound_weights


class CheckpointWriteError(RuntimeError):
    """A checkpoint that could not be written; raised on every rank. What was there before is untouched."""


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint; names sort by step."""
    return f"checkpoint_{step:08d}"


def whole_checkpoints(run_folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first. A folder that lacks DCP's metadata or its progress is none, nor is one
    whose weights files are cut short."""
    return [folder for folder in _folders(run_folder) if _is_whole(folder)]


def newest_name(run_folder: Path) -> str | None:
    """The name of the newest whole checkpoint, which sorts by step; None where there is none."""
    return next((folder.name for folder in reversed(_folders(run_folder)) if _is_whole(folder)), None)


def _folders(run_folder: Path) -> list[Path]:
    return sorted(run_folder.glob("checkpoint_[0-9]*"))


def _is_whole(folder: Path) -> bool:
    try:
        if not (folder / checkpoint.METADATA).is_file() or not json.loads((folder / checkpoint.PROGRESS).read_text()):
            return False
    except (OSError, ValueError):
        return False
    return sound_weights(folder)


def agreed_checkpoint(run_folder: Path) -> Path | None:
    """The newest whole checkpoint, rank 0's finding on every rank; None where there is none. Every rank calls it.

    At the start of a group of workers: what an earlier group left half-written is deleted.
    """
    found: list[Path] = []
    if rank() == 0:
        for torn in run_folder.glob(".*.part"):
            shutil.rmtree(torn, ignore_errors=True)
        found = whole_checkpoints(run_folder)[-1:]
        damaged = [folder.name for folder in _folders(run_folder) if not found or folder > found[0]]
        if damaged:
            print(
                f"{', '.join(damaged)} in {run_folder} is damaged (a file is missing or cut short); going on from "
                f"{found[0].name if found else 'the beginning'}",
                flush=True,
            )
    if world_size() > 1:
        dist.broadcast_object_list(box := [found], src=0)
        found = box[0]
    return found[0] if found else None


def write_folder(
    final: Path,
    networks: Networks,
    progress: dict[str, Any],
    weights: dict[str, dict[str, Tensor]],
    generator_config: dict[str, Any],
) -> Path:
    """Write a checkpoint to the folder `final` of storage that all ranks share; every rank must call it.

    weights: safetensors files of the generator that rank 0 adds, name -> state_dict of plain CPU tensors;
    generator_config: goes into their headers, since the same names and shapes fit other networks. All ranks write into
    a hidden folder beside `final`, which takes its name in one step after every rank has said that its part is on the
    disk, out of the kernel's caches. So a process killed at any moment, or a machine that loses its power, leaves the
    last whole checkpoint as the newest one.
    Raises CheckpointWriteError on every rank if any of them cannot write: disk full, quota, folder gone, or a host that
    does not see the folder that rank 0 has made, where the rank's shards would be lost without a word.
    """
    part = final.with_name(f".{final.name}.part")
    try:
        together(lambda: _begin(part, weights, generator_config) if rank() == 0 else None)
        together(lambda: _require(part))
        together(lambda: checkpoint.save(part, networks, progress))
        together(lambda: _finish(part, final) if rank() == 0 else None)
    except CheckpointWriteError as error:
        last = whole_checkpoints(final.parent)
        if rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise CheckpointWriteError(
            f"{final} could not be written: {error} ({_free(final.parent)}). "
            f"The last whole checkpoint is {last[-1].name if last else 'none'}; free space, or mend what is named, and "
            "run the same command"
        ) from None
    return final


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free there"
    except OSError as error:
        return f"{folder}: {error.strerror}"


def _begin(part: Path, weights: dict[str, dict[str, Tensor]], generator_config: dict[str, Any]) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, state in weights.items():
        write_synced(part / name, serialised(generator_config, state))


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


def together(action: Callable[[], object]) -> None:
    """Do something on every rank; CheckpointWriteError on all of them if it failed on one."""
    problem = ""
    try:
        action()
    except OSError as error:
        problem = error.strerror or str(error)
    except CheckpointException as error:
        problem = ", ".join(sorted({str(cause).splitlines()[0] for cause, _ in error.failures.values()}))
    told = [f"rank {number}: {text}" for number, text in enumerate(gather_texts(problem)) if text]
    if told:
        raise CheckpointWriteError("; ".join(told))
