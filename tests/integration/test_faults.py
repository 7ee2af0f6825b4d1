"""Training that does not die, by real processes: workers killed, a full disk, NaN, MLflow away, SIGTERM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mrisr.config import load_experiment
from mrisr.engine.precision import precision_on
from mrisr.training.run_folder import RunFolder
from voxelstore import VolumeStore
from voxelstore.subject import write_array

from .conftest import Bench, assert_same_run

pytestmark = pytest.mark.integration


def workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training workers' processes below a driver."""
    try:
        below = psutil.Process(driver.pid).children(recursive=True)
        return [p for p in below if any("RayTrainWorker" in part for part in p.cmdline()[:1])]
    except psutil.NoSuchProcess:
        return []


def wait_for(driver: subprocess.Popen[str], condition: Callable[[], object], pause: float = 0.02) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(pause)


def stands_still(process: psutil.Process) -> bool:
    """Whether SIGSTOP has reached every thread of a process: one that is in a system call finishes that first."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/stat")
    try:
        return {task.read_text().rpartition(")")[2].split()[0] for task in tasks} == {"T"}
    except OSError:  # a thread that has just ended
        return False


def names(bench: Bench) -> list[str]:
    return [folder.name for folder in RunFolder(bench.run).checkpoints()]


def test_a_run_through_five_faults_is_the_run_without_them(
    unkilled: tuple[Bench, str], small_store: Path, tmp_path: Path
) -> None:
    reference, _ = unkilled
    bench = Bench(tmp_path, small_store)
    driver = bench.start("train", "--config", str(bench.config))
    wait_for(driver, lambda: "checkpoint_00000005" in names(bench))

    # MLflow goes away: its database is locked, every call of a client fails after its own time limit.
    away = sqlite3.connect(bench.home / "mlflow.db", isolation_level=None, timeout=60)
    away.execute("BEGIN EXCLUSIVE")
    # kill -9 of one worker in mid-step: Ray starts both again, from the last checkpoint.
    first = workers(driver)
    assert len(first) == 2
    first[0].kill()
    wait_for(
        driver, lambda: len(workers(driver)) == 2 and not {p.pid for p in workers(driver)} & {p.pid for p in first}
    )
    # kill -9 of all workers while they write a checkpoint: it never gets its name.
    second = workers(driver)

    def stopped_in_mid_write() -> bool:
        # The folder may get its name before a signal arrives, so that it is looked for again once all stand still.
        if not list(bench.run.glob(".checkpoint_*.part")):
            return False
        for process in second:
            process.suspend()
        wait_for(driver, lambda: all(map(stands_still, second)), pause=0.0)
        if list(bench.run.glob(".checkpoint_*.part")):
            return True
        for process in second:
            process.resume()
        return False

    wait_for(driver, stopped_in_mid_write, pause=0.0)
    for process in second:
        process.kill()
    (torn,) = bench.run.glob(".checkpoint_*.part")
    last = names(bench)[-1]
    assert last < torn.name[1:], "the one before is the newest"
    # SIGTERM: the workers, started again, find the request after their first step, save it and stop.
    wait_for(
        driver, lambda: len(workers(driver)) == 2 and not {p.pid for p in workers(driver)} & {p.pid for p in second}
    )
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 143, output
    step = int(last.removeprefix("checkpoint_")) + 1
    assert f"stopped by SIGTERM after step {step:,}, which is checkpointed" in output
    assert names(bench)[-1] == f"checkpoint_{step:08d}"
    assert not list(bench.run.glob(".checkpoint_*.part"))
    assert "MLflow" in output
    assert "is away" in output
    waiting = [json.loads(file.read_text()) for file in sorted((bench.run / "outbox").glob("[0-9]*.json"))]
    assert any("validation/psnr" in record.get("values", {}) for record in waiting)
    # kill -9 of the driver and of everything below it, once the same command has gone on to the next checkpoint; MLflow
    # is still away, which a run that has begun can do without.
    driver = bench.start("train", "--config", str(bench.config))
    wait_for(driver, lambda: names(bench)[-1] > f"checkpoint_{step:08d}")
    os.killpg(driver.pid, signal.SIGKILL)
    output, _ = driver.communicate(timeout=60)
    assert "the run goes on, and its metrics are delivered later" in output
    away.execute("ROLLBACK")
    away.close()

    bench.train()
    assert not list((bench.run / "outbox").glob("[0-9]*.json"))
    assert_same_run(bench, reference)


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(
    unkilled: tuple[Bench, str], small_store: Path, tmp_path: Path
) -> None:
    """The run's folder is a small file system of its own, in a mount namespace that only this run sees."""
    reference, _ = unkilled
    bench = Bench(tmp_path, small_store)
    size = sum(file.stat().st_size for file in RunFolder(reference.run).checkpoints()[-1].iterdir())
    runs = bench.home / "runs"
    runs.mkdir()
    shell = (
        f"mount -t tmpfs -o size={int(1.7 * size)} tmpfs {runs}; "
        f"{sys.executable} -m mrisr train --config {bench.config}; code=$?; cp -r {runs} {bench.home}/kept; exit $code"
    )
    # Without privileges, the namespace comes with a user namespace in which mounting is allowed.
    private = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "sh", "-c", shell]
    done = subprocess.run(
        private, cwd=bench.home, env=bench.environment, text=True, timeout=400, stdout=-1, stderr=subprocess.STDOUT
    )
    assert done.returncode == 2, done.stdout
    for word in ("checkpoint_00000010 could not be written", "MiB are free", "The last whole checkpoint is",
                 "checkpoint_00000005", "free space"):  # fmt: skip
        assert word in done.stdout
    assert done.stdout.count("checkpoint_00000010 could not be written") == 1, "workers were not started again for it"
    kept = bench.home / "kept" / "tiny"
    assert [folder.name for folder in RunFolder(kept).checkpoints()] == ["checkpoint_00000005"]
    assert not list(kept.glob(".checkpoint_*.part"))
    assert load_file(kept / "checkpoint_00000005" / "last.safetensors")


def damage(store: Path, subject: str) -> None:
    """Put NaN, which no conversion lets in, into a subject's voxels: every patch of it is NaN."""
    folder = store / "subjects" / subject / "voxels"
    shape = VolumeStore.open(store).record(subject).shape
    shutil.rmtree(folder)
    write_array(folder, np.full(shape, np.nan, np.float32))


def test_a_batch_that_is_not_finite_stops_the_run_and_is_replayed(
    local_ray: None, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrisr.cli.app import app
    from mrisr.training.outcome import TrainingStopped
    from mrisr.training.run import train

    store = shutil.copytree(small_store, tmp_path / "store.zarr")
    subject = VolumeStore.open(store).subjects("train")[-1]
    damage(store, subject)
    bench = Bench(tmp_path / "home", store)
    monkeypatch.setenv("MRISR_HOME", str(bench.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    experiment = load_experiment(bench.config, ["schedule.total_steps=30", "training.precision=auto"])
    with pytest.raises(TrainingStopped, match=r"loss is not finite on rank [01].*no weight was updated.*mrisr replay"):
        train(experiment)
    (folder,) = bench.run.glob("nonfinite_*")
    told = json.loads((folder / "progress.json").read_text())["replay"]
    assert told["precision"] == RunFolder(bench.run).precision() == precision_on("auto", torch.device("cpu"))
    assert len(told["batch"]) == len(told["losses"]) == 2
    bad = [place for place, losses in enumerate(told["losses"]) if not np.isfinite(float(losses["loss"]))]
    assert bad == told["ranks"] == [place for place, patch in enumerate(told["batch"]) if patch["subject"] == subject]
    assert all(patch["row_seed"][0] == experiment.seed for patch in told["batch"])

    done = CliRunner().invoke(app, ["replay", str(bench.run)])
    assert done.exit_code == 0, done.output
    # Among the lines may be some of Ray's own processes.
    assert "reproduced" in done.output.splitlines()
    assert subject in done.output
    # Without the damage the same step is finite, and replay says so.
    shutil.rmtree(store)
    shutil.copytree(small_store, store)
    done = CliRunner().invoke(app, ["replay", str(folder)])
    assert done.exit_code == 1
    assert "not reproduced: every value is finite here" in done.output
