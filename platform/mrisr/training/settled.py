"""What `training.precision=auto` has become in a run: agreed by its first workers, kept for its life."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.engine.checkpoint import PROGRESS
from mrisr.engine.precision import Computed, native_bf16
from mrisr.engine.sharding import gather_texts, on_every_rank, rank
from mrisr.files import write_atomic
from mrisr.training.saving import CheckpointWriteError, together, whole_checkpoints

# In a run's folder, from before its first checkpoint on; every checkpoint says it too.
PRECISION = "precision.txt"
# There too: the configuration as the run began with it.
SETTINGS = "experiment.yaml"


def settle_precision(experiment: Experiment, device: torch.device) -> Experiment:
    """The experiment with a precision that is bf16 or fp32, the same on every rank; every rank must call it.

    `auto` becomes bf16 where that is native to the devices of all ranks of the run's first group; rank 0 says so, and
    notes it in the run's folder for all later ones. A rank whose CPU is not made for the run's bfloat16 says that too.
    Raises CheckpointWriteError on every rank if the note cannot be written.
    """
    given, native = experiment.training.precision, native_bf16(device)
    everywhere = on_every_rank(native, device)
    recorded = gather_texts((rank() == 0 and recorded_precision(experiment.run_folder)) or "")[0]
    precision: str = given
    if given == "auto":
        precision = recorded or ("bf16" if everywhere else "fp32")
        why = "as the run began" if recorded else f"bfloat16 is {'' if everywhere else 'not '}native to all workers"
        if rank() == 0:
            print(f"training.precision: auto is {precision}, {why}", flush=True)
        if not recorded:
            _note(experiment.run_folder / PRECISION, precision)
    if precision == "bf16" and device.type == "cpu" and not native:
        print(
            f"training.precision: bf16, for which the CPU of rank {rank()} is not made (no AVX512-BF16): a step may "
            "take tens of times as long as in fp32, which a new run has with training.precision=auto",
            flush=True,
        )
    return experiment.changed({"training.precision": precision})


def recorded_precision(run_folder: Path) -> Computed | None:
    """What an earlier start of a run computed in: as its settings said, or what auto became; None where none began."""
    settings, note = run_folder / SETTINGS, run_folder / PRECISION
    if not settings.exists():
        return None
    given = load_experiment(settings).training.precision
    if given != "auto":
        return given
    if note.exists():
        return _computed(note, note.read_text().strip())
    if newest := whole_checkpoints(run_folder)[-1:]:
        file = newest[0] / PROGRESS
        told = json.loads(file.read_text()).get("precision")
        return None if told is None else _computed(file, told)
    return None


def _computed(file: Path, told: str) -> Computed:
    if told not in ("bf16", "fp32"):
        raise ConfigError(f"{file}: {told!r} is no precision; it must be fp32 or bf16, as the run's first output said")
    return "bf16" if told == "bf16" else "fp32"


def as_recorded(experiment: Experiment) -> Experiment:
    """The experiment in what its run was computed in so far; as it is where none began."""
    precision = recorded_precision(experiment.run_folder) or experiment.training.precision
    return experiment.changed({"training.precision": precision})


def _note(file: Path, precision: str) -> None:
    try:
        together(lambda: write_atomic(file, precision) if rank() == 0 else None)
    except CheckpointWriteError as error:
        raise CheckpointWriteError(
            f"{file} could not be written: {error}; free space, or give an output that all workers share, and run the "
            "same command"
        ) from None
