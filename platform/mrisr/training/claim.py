"""Whose a run's folder is: one configuration's, one data set's, one process's at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mrisr.config import ConfigError, Experiment
from mrisr.config.loading import dump_experiment, load_experiment
from mrisr.config.spaces import flat
from mrisr.engine.checkpoint import PROGRESS
from mrisr.files import write_atomic
from mrisr.training.build import schedule_of, step_config
from mrisr.training.saving import whole_checkpoints
from mrisr.training.settled import PRECISION, SETTINGS, recorded_precision
from voxelstore import VolumeStore

OUTBOX, INITIAL, RUN_ID = "outbox", "initial.safetensors", "mlflow_run_id.txt"
# Keys that may differ between a run and its resumption: they change how and how far, not what is computed so far.
_MAY_CHANGE = (
    "resources", "schedule.total_steps", "training.max_failures", "training.keep_checkpoints", "tracking",
    "tuning", "generator.recompute", "critic.samples_at_once", "training.compile", "stream.cpus_per_task",
    "stream.rounds",
    # It matters by what BatchNorm normalises over, which also depends on the hardware: see refuse_other_batchnorm.
    "training.micro_batch",
)  # fmt: skip


@contextmanager
def alone(experiment: Experiment) -> Iterator[None]:
    """Two drivers on one run's folder would delete each other's files; the lock goes with the process."""
    lock = FileLock(experiment.run_folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"name = {experiment.name!r}: another process is training this run in {experiment.run_folder}; wait for "
            "it, stop it, or use another name=..."
        ) from None
    try:
        yield
    finally:
        lock.release()


def refuse_another(experiment: Experiment, store: VolumeStore) -> None:
    """Raise ConfigError if the run's folder holds checkpoints of another configuration or of other data."""
    folder = experiment.run_folder
    if not (file := folder / SETTINGS).exists() or not whole_checkpoints(folder):
        return
    earlier = load_experiment(file)
    before, now = (flat(one.model_dump(mode="json")) for one in (earlier, experiment))
    # What auto has become stays, whatever it would be on this machine.
    key = "training.precision"
    before[key] = recorded_precision(folder) or before[key]
    if now[key] == "auto":
        now[key] = before[key]
    changed = sorted(
        key for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not key.startswith(_MAY_CHANGE)
    )  # fmt: skip
    if changed:
        lines = [f"  {key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in changed]
        raise ConfigError(
            f"name = {experiment.name!r}: {folder} holds a run of another configuration:\n"
            + "\n".join(lines)
            + "\nUse the same values to resume it, or another name=... to start a new run"
        )
    if schedule_of(earlier).needs_critic != schedule_of(experiment).needs_critic:
        raise ConfigError(
            f"schedule.total_steps = {experiment.schedule.total_steps}: run {experiment.name!r} "
            f"{'has' if schedule_of(earlier).needs_critic else 'was started without'} an adversarial stage, and its "
            f"checkpoints {'hold' if schedule_of(earlier).needs_critic else 'lack'} the critic; start a new run from "
            f"its weights: name=... generator.init_from={folder}"
        )
    data = folder / "dataset.txt"
    if data.exists() and data.read_text() != store.fingerprint():
        raise ConfigError(
            f"data.store = {store.path}: its subjects or splits have changed since run {experiment.name!r} began, "
            "so that it cannot be resumed exactly; use another name=... to start a new run"
        )


def refuse_other_batchnorm(experiment: Experiment, gpu: bool) -> None:
    """Raise ConfigError if the run's checkpoints were made with BatchNorm over another number of patches than here.

    gpu: whether the workers have GPUs, on which BatchNorm may be synchronised; see StepConfig.batchnorm_over.
    """
    checkpoints = whole_checkpoints(experiment.run_folder)
    if not checkpoints:
        return
    workers, batch = experiment.resources.workers, experiment.training.batch_size
    now = step_config(experiment).batchnorm_over(workers, gpu)
    before = json.loads((checkpoints[-1] / PROGRESS).read_text()).get("batchnorm_over")
    if before is None:
        raise ConfigError(
            f"name = {experiment.name!r}: {checkpoints[-1]} is of an older version, which did not record what "
            f"BatchNorm normalised over; start a new run from its weights: "
            f"name=... generator.init_from={experiment.run_folder}"
        )
    if before != now:
        most = max(n for n in range(1, workers + 1) if batch % (n * before) == 0)
        raise ConfigError(
            f"name = {experiment.name!r}: BatchNorm normalised over {before} patches in this run, and would over {now} "
            f"with {workers} workers on {'GPUs' if gpu else 'CPUs'}, which gives other numbers; to resume it set "
            f"training.micro_batch={before}{f' resources.workers={most}' if most != workers else ''} or use the "
            "hardware that it began on; to start a new run use another name=..."
        )


def goes_on(experiment: Experiment) -> bool:
    """Whether a start of this experiment takes up what its folder holds: checkpoints, or a start of the same text."""
    file = experiment.run_folder / SETTINGS
    same = file.exists() and file.read_text() == dump_experiment(experiment)
    return same or (file.exists() and bool(whole_checkpoints(experiment.run_folder)))


def claim(experiment: Experiment, store: VolumeStore) -> None:
    """Write the resolved configuration into the run's folder before the first step.

    A start that left no checkpoint, of a configuration that was a mistake, say, has no claim to the name: what it left
    there goes, and its MLflow run stays as it ended.
    """
    if goes_on(experiment):
        return
    folder = experiment.run_folder
    for name in (INITIAL, RUN_ID, PRECISION):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / OUTBOX, ignore_errors=True)
    write_atomic(folder / "dataset.txt", store.fingerprint())
    write_atomic(folder / SETTINGS, dump_experiment(experiment))


def mend_ray_snapshot(folder: Path) -> None:
    """Put Ray's own list of checkpoints aside if it was cut short or names one that is not whole.

    Ray writes it in place, and would refuse to start. A checkpoint that is damaged is passed over here and made again
    later; with both in its list, Ray would delete the folder of the older one under the name of the newer. The
    checkpoints are found without the list; the workers report the newest to Ray again.
    """
    snapshot = folder / "checkpoint_manager_snapshot.json"
    try:
        listed = [entry["checkpoint_dir_name"] for entry in json.loads(snapshot.read_text())["checkpoint_results"]]
        sound = {*listed} <= {found.name for found in whole_checkpoints(folder)} and len({*listed}) == len(listed)
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        snapshot.replace(snapshot.with_suffix(".torn"))
