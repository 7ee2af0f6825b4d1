"""A step that went wrong, kept with all that is needed to see it again: weights, rows of the batch, seeds, losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.data.stream import PatchMaker
from mrisr.engine import checkpoint
from mrisr.engine.schedule import Phase
from mrisr.engine.sharding import device_for_worker
from mrisr.engine.step import NonFiniteError, on_ranks, train_step
from mrisr.training.run_folder import RunFolder


class Replayed(NamedTuple):
    """What a replay found. lines: for people; reproduced: the same value is not finite, the same losses came out."""

    lines: list[str]
    reproduced: bool


def replay(folder: Path) -> Replayed:
    """Compute a recorded step once more, in this process, from the store and the recorded weights; changes nothing.

    folder: nonfinite_<step>, or a run's folder, which stands for the newest record in it. Raises ConfigError for a
    folder without a record, CheckpointError for a damaged one.
    """
    from mrisr.data.checks import open_store
    from mrisr.training.build import initial_networks, patch_maker, step_config

    folder = _record_in(folder)
    told = checkpoint.read_progress(folder)["replay"]
    # What was normalised together, by several ranks where BatchNorm was synchronised, is one micro-batch here.
    whole = load_experiment(RunFolder(folder.parent).settings)
    precision = told.get("precision", whole.training.precision)
    experiment = alone(whole, told["batchnorm_over"], precision)
    losses = regrouped(told["losses"], told["batchnorm_over"] // told["micro_batch"])
    store = open_store(experiment)
    maker = patch_maker(experiment, store.subjects("train"))
    device = device_for_worker(torch.cuda.is_available(), experiment.training.tf32)
    networks = initial_networks(experiment, None, device)
    checkpoint.load(folder, networks)
    phase = Phase(told["phase"])
    where = f"step {told['step']:,} ({phase}) of {experiment.name!r}"
    lines = [f"{where}: {told['value']} not finite {on_ranks(told['ranks'])}"]
    for place, patch in enumerate(told["batch"]):
        source = f"row {patch['index']}, {patch['subject']}, epoch {patch['epoch']}, cut {patch['patch']}"
        lines.append(f"  patch {place}: {source}")
    try:
        train_step(networks, step_config(experiment), phase, told["step"], *_batch(maker, told["batch"]))
    except NonFiniteError as error:
        for number, (then, now) in enumerate(zip(losses, error.terms, strict=True)):
            pairs = ", ".join(f"{name} {then[name]:.6g} then, {value:.6g} now" for name, value in now.items())
            lines.append(f"  micro-batch {number}: {pairs}")
        same = error.value == told["value"] and all(
            _alike(then[name], value)
            for then, now in zip(losses, error.terms, strict=True)
            for name, value in now.items()
        )
        lines.append("reproduced" if same else f"not finite again ({error.value}), but with other losses")
        return Replayed(lines, same)
    lines.append("not reproduced: every value is finite here")
    return Replayed(lines, False)


def _record_in(folder: Path) -> Path:
    records = [folder] if folder.name.startswith("nonfinite_") else RunFolder(folder).failed_steps()
    if not records or not (records[-1] / checkpoint.PROGRESS).is_file():
        raise ConfigError(f"{folder}: holds no nonfinite_<step> folder; give a run's folder in which a step went wrong")
    return records[-1]


def alone(experiment: Experiment, micro_batch: int, precision: str) -> Experiment:
    """The same on one worker, with micro-batches of what BatchNorm normalised over, in the precision of the run."""
    return experiment.changed({
        "resources.workers": 1, "resources.min_workers": None, "training.micro_batch": micro_batch,
        "training.precision": precision, "training.strategy": "single", "training.compile": False,
    })  # fmt: skip


def regrouped(losses: list[dict[str, float | str]], together: int) -> list[dict[str, float]]:
    """The recorded losses of micro-batches (numbers, or `nan` and `inf` as text) as means of `together` at a time."""
    numbers = [{name: float(value) for name, value in terms.items()} for terms in losses]
    groups = [numbers[first : first + together] for first in range(0, len(numbers), together)]
    return [{name: sum(terms[name] for terms in group) / len(group) for name in group[0]} for group in groups]


def _batch(maker: PatchMaker, patches: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    rows = {patch["index"]: maker.row_patches(maker.plan.row(patch["index"])) for patch in patches}
    lr, hr = (
        np.stack([rows[patch["index"]][side][patch["patch"]] for patch in patches])[:, None] for side in (0, 1)
    )  # fmt: skip
    return torch.from_numpy(lr).float(), torch.from_numpy(hr).float()


def _alike(then: float, now: float) -> bool:
    if not (math.isfinite(then) and math.isfinite(now)):
        return math.isfinite(then) == math.isfinite(now)
    return math.isclose(then, now, rel_tol=1e-3, abs_tol=1e-6)
