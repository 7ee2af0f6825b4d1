"""Recording a non-finite step with all that `mrisr replay` needs: weights, rows of the batch, seeds, losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mrisr.data.stream import Batch, PatchMaker
from mrisr.engine.networks import Networks, StepConfig
from mrisr.engine.sharding import world_size
from mrisr.engine.step import NonFiniteError
from mrisr.training.run_folder import RunFolder


def record(
    run_folder: Path, networks: Networks, config: StepConfig, maker: PatchMaker, batch: Batch, error: NonFiniteError
) -> Path:
    """Write run_folder/nonfinite_<step>; every rank calls it with its part of the batch. Returns the folder.

    It holds a checkpoint of the weights, which the failed step has not touched, and in progress.json under `replay`:
    step, phase, which value was not finite and where, the seed of the interpolation, micro_batch, over how many patches
    BatchNorm normalised, the precision, per patch of the global batch its row, epoch, subject, patch number and the
    row's seed, and per micro-batch all losses.
    """
    mine = [(int(row), int(patch)) for row, patch in zip(batch.row, batch.patch, strict=True)]
    parts: list[Any] = [mine]
    if world_size() > 1:
        parts = [None] * world_size()
        dist.all_gather_object(parts, mine)
    patches = []
    for index, patch in (pair for part in parts for pair in part):
        row = maker.plan.row(index)
        named = {"index": row.index, "epoch": row.epoch, "subject": row.subject, "patch": patch}
        patches.append({**named, "row_seed": maker.plan.row_seed(row)})
    told = {
        "step": error.step, "phase": str(error.phase), "value": error.value, "ranks": error.ranks,
        "world_size": world_size(), "seed": config.seed, "micro_batch": config.micro_batch,
        "batchnorm_over": networks.batchnorm_over, "precision": config.precision, "batch": patches,
        "losses": [{name: _text(value) for name, value in terms.items()} for terms in error.terms],
    }  # fmt: skip
    progress = {"step": error.step, "replay": told}
    return RunFolder(run_folder).write_failed_step(error.step, networks, progress)


def _text(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else repr(value)
