"""Records a training step with a non-finite loss or gradient. `mrisr replay` computes it again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.data.checks import open_store
from mrisr.data.rows import PatchMaker
from mrisr.data.stream import Batch
from mrisr.engine import checkpoint
from mrisr.engine.networks import Networks
from mrisr.engine.schedule import Phase
from mrisr.engine.sharding import device_for_worker, world_size
from mrisr.engine.step import NonFiniteError, on_ranks, train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.training.build import initial_networks, patch_maker, step_config
from mrisr.training.run_folder import RunFolder


def record(
    folder: RunFolder, networks: Networks, config: StepConfig, maker: PatchMaker, batch: Batch, error: NonFiniteError
) -> Path:
    """Write nonfinite_<step> into the run's folder and return its path. Every rank calls it with its part of the batch.

    The folder is a checkpoint of the weights before the failed step. In its progress.json, `replay` holds which value
    was not finite on which ranks, all losses, and the source of each patch of the global batch. Raises StorageStopped
    on every rank if the folder cannot be written.
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
    recorded = {
        "step": error.step, "phase": str(error.phase), "value": error.value, "ranks": error.ranks,
        "world_size": world_size(), "seed": config.seed, "micro_batch": config.micro_batch,
        "batchnorm_over": networks.batchnorm_over, "precision": config.precision, "batch": patches,
        "losses": [{name: _text(value) for name, value in terms.items()} for terms in error.terms],
    }  # fmt: skip
    return folder.write_failed_step(error.step, networks, {"step": error.step, "replay": recorded})


def _text(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


class Replayed(NamedTuple):
    """lines: text for the user. reproduced: the same value is not finite, with the same losses."""

    lines: list[str]
    reproduced: bool


def replay(folder: Path) -> Replayed:
    """Compute a recorded step again in this process, from the store and the recorded weights. It changes no file.

    folder: nonfinite_<step>, or a run's folder for its newest record. Raises ConfigError without one, CheckpointError
    for damage.
    """
    folder = _record_in(folder)
    recorded = checkpoint.read_progress(folder)["replay"]
    whole = load_experiment(RunFolder(folder.parent).settings)
    # The patches that several ranks normalised together (synchronised BatchNorm) are one micro-batch here.
    experiment = on_one_worker(whole, recorded["batchnorm_over"], recorded.get("precision", whole.training.precision))
    store = open_store(experiment)
    maker = patch_maker(experiment, store.subjects("train"))
    networks = initial_networks(
        experiment, None, device_for_worker(torch.cuda.is_available(), experiment.training.tf32)
    )
    checkpoint.load(folder, networks)
    phase = Phase(recorded["phase"])
    where = f"step {recorded['step']:,} ({phase}) of {experiment.name!r}"
    lines = [f"{where}: {recorded['value']} not finite {on_ranks(recorded['ranks'])}"]
    for place, patch in enumerate(recorded["batch"]):
        source = f"row {patch['index']}, {patch['subject']}, epoch {patch['epoch']}, cut {patch['patch']}"
        lines.append(f"  patch {place}: {source}")
    try:
        train_step(networks, step_config(experiment), phase, recorded["step"], *_batch(maker, recorded["batch"]))
    except NonFiniteError as error:
        then = regrouped(recorded["losses"], recorded["batchnorm_over"] // recorded["micro_batch"])
        lines += _compared(then, error.terms)
        same = error.value == recorded["value"] and _alike(then, error.terms)
        lines.append("reproduced" if same else f"not finite again ({error.value}), but with other losses")
        return Replayed(lines, same)
    lines.append("not reproduced: every value is finite here")
    return Replayed(lines, False)


def _record_in(folder: Path) -> Path:
    records = [folder] if folder.name.startswith("nonfinite_") else RunFolder(folder).failed_steps()
    if not records or not (records[-1] / checkpoint.PROGRESS).is_file():
        raise ConfigError(f"{folder}: holds no nonfinite_<step> folder; give a run's folder in which a step went wrong")
    return records[-1]


def on_one_worker(experiment: Experiment, micro_batch: int, precision: str) -> Experiment:
    """The experiment for one worker in the run's precision. micro_batch: patches that BatchNorm normalised over."""
    return experiment.changed({
        "resources.workers": 1, "resources.min_workers": None, "training.micro_batch": micro_batch,
        "training.precision": precision, "training.strategy": "single", "training.compile": False,
    })  # fmt: skip


def regrouped(losses: list[dict[str, float | str]], count: int) -> list[dict[str, float]]:
    """The means of each `count` consecutive micro-batches. losses: numbers, or the texts `nan` and `inf`."""
    numbers = [{name: float(value) for name, value in terms.items()} for terms in losses]
    groups = [numbers[first : first + count] for first in range(0, len(numbers), count)]
    return [{name: sum(terms[name] for terms in group) / len(group) for name in group[0]} for group in groups]


def _batch(maker: PatchMaker, patches: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    rows = {patch["index"]: maker.row_patches(maker.plan.row(patch["index"])) for patch in patches}
    lr, hr = (
        np.stack([rows[patch["index"]][side][patch["patch"]] for patch in patches])[:, None] for side in (0, 1)
    )  # fmt: skip
    return torch.from_numpy(lr).float(), torch.from_numpy(hr).float()


def _compared(losses: list[dict[str, float]], again: list[dict[str, float]]) -> list[str]:
    return [
        f"  micro-batch {number}: "
        + ", ".join(f"{name} {then[name]:.6g} then, {value:.6g} now" for name, value in now.items())
        for number, (then, now) in enumerate(zip(losses, again, strict=True))
    ]


def _alike(losses: list[dict[str, float]], again: list[dict[str, float]]) -> bool:
    pairs = [(then[name], value) for then, now in zip(losses, again, strict=True) for name, value in now.items()]
    return all(
        math.isclose(then, now, rel_tol=1e-3, abs_tol=1e-6)
        if math.isfinite(then) and math.isfinite(now)
        else math.isfinite(then) == math.isfinite(now)
        for then, now in pairs
    )
