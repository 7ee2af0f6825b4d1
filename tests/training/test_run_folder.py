"""A run's folder belongs to one configuration once there is a checkpoint, and to one process at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.engine.checkpoint import METADATA, PROGRESS
from mrisr.training.outcome import OUTSIDE_CAUSES, StoreChanged
from mrisr.training.run import Host, train
from mrisr.training.run_folder import RunFolder
from voxelstore import VolumeStore


def experiment(folder: Path, *overrides: str) -> Experiment:
    return load_experiment(None, ["name=r", f"output={folder}", *overrides])


def leave_checkpoint(run_folder: Path, batchnorm_over: int = 2) -> None:
    """What `RunFolder.checkpoints` takes for one."""
    checkpoint = run_folder / "checkpoint_00000010"
    checkpoint.mkdir()
    (checkpoint / METADATA).write_bytes(b"x")
    (checkpoint / PROGRESS).write_text(json.dumps({"step": 10, "batchnorm_over": batchnorm_over}))


def test_a_start_without_a_checkpoint_gives_the_name_back(small_store: Path, tmp_path: Path) -> None:
    store = VolumeStore.open(small_store)
    wrong, right = experiment(tmp_path, "generator.init_from=nowhere.pt"), experiment(tmp_path)
    wrong.run_folder.mkdir()
    RunFolder.of(wrong).begin(wrong, store)
    for name in ("initial.safetensors", "mlflow_run_id.txt", "precision.txt"):
        (wrong.run_folder / name).write_text("of the wrong one")
    RunFolder.of(right).refuse_other(right, store)
    RunFolder.of(right).begin(right, store)
    assert load_experiment(right.run_folder / "experiment.yaml") == right
    assert not (right.run_folder / "initial.safetensors").exists()
    assert not (right.run_folder / "mlflow_run_id.txt").exists()
    assert not (right.run_folder / "precision.txt").exists()
    # The same one again leaves everything.
    (right.run_folder / "mlflow_run_id.txt").write_text("of the right one")
    RunFolder.of(right).begin(right, store)
    assert (right.run_folder / "mlflow_run_id.txt").exists()
    # Of another store, it begins anew: nothing has been trained on the first.
    other = VolumeStore.open(shutil.copytree(small_store, tmp_path / "other.zarr"))
    other.remove_subject(other.subjects()[0])
    other.update_manifest({"train": 1.0}, 0)
    RunFolder.of(right).begin(right, other)
    assert not (right.run_folder / "mlflow_run_id.txt").exists()
    leave_checkpoint(right.run_folder)
    RunFolder.of(right).refuse_other(right, other)
    with pytest.raises(ConfigError, match="its subjects or splits have changed since run 'r' began"):
        RunFolder.of(right).refuse_other(right, store)


def test_the_length_of_a_cosine_schedule_stays(small_store: Path, tmp_path: Path) -> None:
    store, cosine = VolumeStore.open(small_store), "training.lr_schedule=cosine"
    first = experiment(tmp_path, cosine)
    first.run_folder.mkdir()
    RunFolder.of(first).begin(first, store)
    leave_checkpoint(first.run_folder)
    RunFolder.of(first).refuse_other(experiment(tmp_path, cosine, "training.keep_checkpoints=5"), store)
    with pytest.raises(ConfigError, match=r"schedule\.total_steps: was 750000, now 800000"):
        RunFolder.of(first).refuse_other(experiment(tmp_path, cosine, "schedule.total_steps=800000"), store)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.gp_weight=3", r"training\.gp_weight: was 10\.0, now 3\.0"),
        ("stream.patches_per_row=8", r"stream\.patches_per_row: was 16, now 8"),
        ("schedule.total_steps=250000", r"has an adversarial stage.*generator\.init_from"),
    ],
)
def test_checkpoints_of_another_configuration_are_refused(
    change: str, words: str, small_store: Path, tmp_path: Path
) -> None:
    store, first = VolumeStore.open(small_store), experiment(tmp_path)
    first.run_folder.mkdir()
    RunFolder.of(first).begin(first, store)
    leave_checkpoint(first.run_folder)
    RunFolder.of(first).refuse_other(first, store)
    RunFolder(tmp_path / "r").refuse_other(
        experiment(tmp_path, "schedule.total_steps=800000", "training.keep_checkpoints=5"), store
    )
    RunFolder(tmp_path / "r").refuse_other(experiment(tmp_path, "stream.cpus_per_task=0.5", "stream.rounds=3"), store)
    with pytest.raises(ConfigError, match=words):
        RunFolder(tmp_path / "r").refuse_other(experiment(tmp_path, change), store)


@pytest.mark.parametrize(
    ("began", "became", "goes_on"),
    [
        ("auto", "fp32", ["auto", "fp32"]),
        ("auto", "bf16", ["auto", "bf16"]),
        ("bf16", None, ["auto", "bf16"]),  # of before auto was known, and the default
    ],
)
def test_what_auto_has_become_stays(
    began: str, became: str | None, goes_on: list[str], small_store: Path, tmp_path: Path
) -> None:
    store, first = VolumeStore.open(small_store), experiment(tmp_path, f"training.precision={began}")
    first.run_folder.mkdir()
    RunFolder.of(first).begin(first, store)
    if became is not None:
        (first.run_folder / "precision.txt").write_text(became)
    leave_checkpoint(first.run_folder)
    for precision in goes_on:
        RunFolder(tmp_path / "r").refuse_other(experiment(tmp_path, f"training.precision={precision}"), store)
    (other,) = {"fp32", "bf16"} - {*goes_on}
    with pytest.raises(ConfigError, match=rf"training\.precision: was '{goes_on[1]}', now '{other}'"):
        RunFolder(tmp_path / "r").refuse_other(experiment(tmp_path, f"training.precision={other}"), store)


BATCH = "training.batch_size=4"


@pytest.mark.parametrize(
    ("over", "gpu", "now"),
    [
        (4, False, []),
        (4, False, ["training.micro_batch=4"]),
        (1, False, ["training.micro_batch=1", "resources.workers=4"]),
        (2, False, ["resources.workers=2"]),
        (4, True, ["resources.workers=2"]),  # synchronised: of any number of GPUs, and of one CPU
        (4, True, ["resources.workers=4"]),
        (2, True, ["resources.workers=2", "training.micro_batch=2"]),  # what two CPU workers began
        (2, True, ["resources.workers=2", "resources.min_workers=1"]),
    ],
)
def test_other_workers_go_on_where_batchnorm_spans_as_many_patches(
    over: int, gpu: bool, now: list[str], small_store: Path, tmp_path: Path
) -> None:
    store, first, resumed = (
        VolumeStore.open(small_store),
        experiment(tmp_path, BATCH),
        experiment(tmp_path, BATCH, *now),
    )
    first.run_folder.mkdir()
    RunFolder.of(first).begin(first, store)
    leave_checkpoint(first.run_folder, over)
    RunFolder.of(resumed).refuse_other(resumed, store)
    RunFolder.of(resumed).refuse_other_batchnorm(resumed, gpu)


@pytest.mark.parametrize(
    ("over", "gpu", "now", "remedy"),
    [
        # Two synchronised GPUs, then two CPUs; and the other way round.
        (4, False, ["resources.workers=2"], ["training.micro_batch=4", "resources.workers=1"]),
        (2, True, ["resources.workers=2"], ["training.micro_batch=2"]),
        (2, False, ["resources.workers=4"], ["training.micro_batch=2", "resources.workers=2"]),
        (4, False, ["training.micro_batch=2"], ["training.micro_batch=4"]),
    ],
)
def test_batchnorm_over_other_patches_is_refused_and_the_remedy_works(
    over: int, gpu: bool, now: list[str], remedy: list[str], tmp_path: Path
) -> None:
    resumed = experiment(tmp_path, BATCH, *now)
    resumed.run_folder.mkdir()
    RunFolder.of(resumed).refuse_other_batchnorm(resumed, gpu)  # nothing to resume
    leave_checkpoint(resumed.run_folder, over)
    words = rf"normalised over {over} patches in this run.* set {' '.join(remedy)} or"
    with pytest.raises(ConfigError, match=words):
        RunFolder.of(resumed).refuse_other_batchnorm(resumed, gpu)
    RunFolder(tmp_path / "r").refuse_other_batchnorm(experiment(tmp_path, BATCH, *now, *remedy), gpu)


def test_a_checkpoint_that_does_not_say_is_refused_with_the_remedy(tmp_path: Path) -> None:
    run = experiment(tmp_path)
    run.run_folder.mkdir()
    leave_checkpoint(run.run_folder)
    (run.run_folder / "checkpoint_00000010" / PROGRESS).write_text(json.dumps({"step": 10}))
    with pytest.raises(ConfigError, match=rf"checkpoint_00000010.*older version.*init_from={run.run_folder}"):
        RunFolder.of(run).refuse_other_batchnorm(run, gpu=False)


def test_a_second_process_on_the_same_run_is_refused(tmp_path: Path) -> None:
    run = experiment(tmp_path)
    run.run_folder.mkdir()
    holder = f"""
from filelock import FileLock
lock = FileLock({str(run.run_folder / ".lock")!r})
lock.acquire()
print("held", flush=True)
input()
"""
    process = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another process is training this run"), RunFolder.of(run).locked():
        pass
    process.kill()
    process.wait()
    with RunFolder.of(run).locked():
        pass


def test_a_trial_is_not_trained_on_another_store_than_its_search_began_with(small_store: Path, tmp_path: Path) -> None:
    small = [f"{key}=16" for key in ("stream.patch_size", "validation.patch_size", "data.min_size")]
    trial = experiment(tmp_path, f"data.store={small_store}", *small)
    with pytest.raises(StoreChanged, match=r"data\.store = .* changed since the search began.* another name="):
        train(trial, Host(dataset="of the store that was"))
    assert issubclass(StoreChanged, OUTSIDE_CAUSES), "it stops the search instead of failing one trial after another"
    assert not list(tmp_path.iterdir())
