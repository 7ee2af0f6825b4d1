"""A search by real Tune trials, each a nested training run: killed, gone on with, stopped early, failing."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from mrisr.config import ConfigError, load_experiment
from mrisr.tuning.record import Record
from mrisr.tuning.winner import tune

from .conftest import TINY, Bench

pytestmark = pytest.mark.integration

# One worker, L1 for 40 steps, then the critic, whose penalty overflows at a weight of 1e300. The mixed weight halves
# the contrast of low frequencies, which a small network learns to mend in a few steps, if its zeroing range shows it.
GOOD = {"degradation.fraction": [0.45, 0.6], "training.gp_weight": 10}
SEARCH = TINY | {
    "degradation": {
        "kind": "mixed", "axes": [0, 1, 2], "mix": [0.4, 0.6],
        "fraction": {"interval": [0.001, 0.9], "fixed": GOOD["degradation.fraction"]},
    },
    "schedule": {"total_steps": 48, "pretrain_steps": 40, "critic_warmup_steps": 8},
    "training": {
        "batch_size": 2, "precision": "fp32", "log_every": 8, "pretrain_lr": 3.0e-3,
        "gp_weight": {"log_uniform": [0.1, 1.0e300], "fixed": GOOD["training.gp_weight"]},
    },
    "validation": {"protocol": "report160", "every": 8, "patch_size": 32, "patches_per_subject": 1},
    "resources": {"workers": 1},
    "tuning": {
        "trials": 4, "concurrent": 1, "reduction": 5, "grace_steps": 24, "sampler": "random",
        # After the fixed values: a zeroing range near nothing, a penalty that is not finite, the fixed values again.
        "points": [
            GOOD | {"degradation.fraction": [0.001, 0.001]}, GOOD | {"training.gp_weight": 1.0e300}, GOOD,
        ],
    },
}  # fmt: skip


class SearchBench(Bench):
    def __init__(self, folder: Path, store: Path) -> None:
        super().__init__(folder, store)
        content = SEARCH | {"data": {**TINY["data"], "store": str(store)}}  # type: ignore[dict-item]
        self.config.write_text(yaml.safe_dump(content))

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "tiny-search"

    def record(self, number: int) -> Record:
        return Record(self.folder / "trials" / f"trial-{number:04d}")

    def states(self) -> list[str]:
        with sqlite3.connect(self.folder / "study.db") as study:
            return [state for (state,) in study.execute("select state from trials order by number")]


def kill_worker_of(bench: SearchBench, number: int) -> None:
    """kill -9 of a trial's training worker after its first validation; no other trial runs beside it."""
    deadline = time.monotonic() + 400
    while bench.record(number).step < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        if any("RayTrainWorker" in part for part in process.cmdline()[:1]):
            process.kill()


def no_resources_are_held() -> None:
    """Every placement group is gone and every logical CPU free, soon after the search."""
    import ray
    from ray.util import placement_group_table

    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "a trial that ended holds resources"
        time.sleep(0.2)
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


def test_a_search_is_killed_goes_on_stops_bad_trials_survives_failing_ones_and_registers_the_winner(
    small_store: Path,
    tmp_path: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = SearchBench(tmp_path, small_store)
    driver = bench.start("tune", "--config", str(bench.config))
    deadline = time.monotonic() + 400
    while bench.record(1).step < 8:
        assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # kill -9 of the driver and its whole cluster in the middle of the second trial, before ASHA decides about it.
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before = [bench.record(number).entries for number in range(2)]
    assert bench.states()[:2] == ["COMPLETE", "RUNNING"]
    assert before[1][-1]["step"] < 24

    # The same search again, in another cluster, whose resources can be counted from here.
    monkeypatch.setenv("MRISR_HOME", str(bench.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    killer = threading.Thread(target=kill_worker_of, args=(bench, 3))
    killer.start()
    tune(bench.config, [])
    killer.join()
    output = capsys.readouterr().out
    no_resources_are_held()

    assert "1 are done, 1 go on" in output
    assert "trial-0000 starts" not in output, "a finished trial is not run again"
    fixed, nothing, broken, crashed = (bench.record(number) for number in range(4))
    assert fixed.entries == before[0]
    assert [entry["step"] for entry in fixed.entries] == [8, 16, 24, 32, 40, 48]
    assert nothing.entries[: len(before[1])] == before[1]
    assert [entry["step"] for entry in nothing.entries] == [8, 16, 24], (
        "resumed; stopped by what was seen before the kill"
    )
    assert broken.step in (32, 40), "the last figures before the failure may be lost with its workers"
    assert "not finite" in (broken.failure or "")
    assert crashed.step < 48
    assert crashed.failure
    assert bench.states() == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    steps = 48 + 24 + broken.step + crashed.step
    for word in ("stopped early at step 24", "2 failed", "not finite", f"cost: {steps} steps run; 4 trials"):
        assert word in output

    winner = load_experiment(bench.folder / "winner.yaml")
    assert winner.degradation.fraction == pytest.approx((0.45, 0.6)), "a range near nothing does not win"
    assert winner.training.gp_weight == 10
    client = MlflowClient(bench.uri)
    parent = (bench.folder / "mlflow_run_id.txt").read_text()
    artifacts = {a.path for folder in (None, "plots") for a in client.list_artifacts(parent, folder)}
    plots = {f"plots/{name}.html" for name in ("history", "slice", "parallel-coordinates", "importance")}
    assert {"winner.yaml", "trials.csv", *plots} <= artifacts
    experiment = client.get_experiment_by_name("mrisr")
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    ends = {run.info.run_name: (run.info.status, run.data.tags["tuning.state"]) for run in children}
    assert ends == {
        "trial-0000": ("FINISHED", "finished"), "trial-0001": ("FINISHED", "stopped early"),
        "trial-0002": ("FAILED", "failed"), "trial-0003": ("FAILED", "failed"),
    }  # fmt: skip
    for run in children:
        assert "validation/psnr" in run.data.metrics
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(parent).data.metrics["test/model/whole/psnr"] > 0
    version = client.get_model_version_by_alias("mdcsrn", "champion")
    assert version.tags["search_run_id"] == parent
    assert len(list(bench.folder.glob("test-*.csv"))) == 1

    tune(bench.config, [])
    again = capsys.readouterr().out
    assert "4 are done" in again
    assert "evaluated on the test split before" in again
    assert bench.states() == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    with pytest.raises(ConfigError, match="another name="):
        tune(bench.config, ["tuning.sampler=tpe"])
