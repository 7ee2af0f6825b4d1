"""A search by real Tune trials, each a nested training run: killed, gone on with, stopped early, failing."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from mrisr.config import ConfigError, load_experiment
from mrisr.tuning.history import TrialHistory
from mrisr.tuning.winner import tune

from .conftest import TINY, Bench

pytestmark = pytest.mark.integration

# One worker, L1 for 16 steps, then the critic, whose penalty overflows at a weight of 1e300. The mixed weight halves
# the contrast of low frequencies, which a small network learns to mend in a few steps, if its zeroing range shows it.
GOOD = [0.45, 0.6]
SEARCH = TINY | {
    "degradation": {
        "kind": "mixed", "axes": [0, 1, 2], "mix": [0.4, 0.6], "fraction": {"interval": [0.001, 0.9], "fixed": GOOD},
    },
    "stream": TINY["stream"] | {"cpus_per_task": 0.5},  # type: ignore[operator]
    "schedule": {"total_steps": 56, "pretrain_steps": 16, "critic_warmup_steps": 40},
    "training": {
        "batch_size": 2, "precision": "fp32", "log_every": 8, "pretrain_lr": 3.0e-3,
        "gp_weight": {"choice": [10, 1.0e300], "fixed": 1.0e300},
    },
    "validation": {"protocol": "report160", "every": 8, "patch_size": 32, "patches_per_subject": 1},
    "resources": {"workers": 1},
    "tuning": {
        "trials": 3, "concurrent": 2, "reduction": 5, "grace_steps": 16, "sampler": "random",
        # After the fixed values, whose penalty is not finite: good ones, then a zeroing range near nothing.
        "points": [
            {"degradation.fraction": GOOD, "training.gp_weight": 10},
            {"degradation.fraction": [0.001, 0.001], "training.gp_weight": 10},
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

    def record(self, number: int) -> TrialHistory:
        return TrialHistory(self.folder / "trials" / f"trial-{number:04d}")

    def states(self) -> list[str]:
        with sqlite3.connect(self.folder / "study.db") as study:
            # The third point waits in the study until its trial starts.
            found = study.execute("select state from trials where state != 'WAITING' order by number")
            return [state for (state,) in found]


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
    while bench.record(1).step < 16 or not bench.record(0).failure or "FAIL" not in bench.states():
        assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # kill -9 of the driver and its whole cluster: one trial has failed, one is under way, one starts perhaps.
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    failed, before = bench.record(0), bench.record(1).entries
    assert bench.states()[:2] == ["FAIL", "RUNNING"]
    assert "not finite" in str(failed.failure)

    # The same search again, in another cluster, whose resources can be counted from here.
    monkeypatch.setenv("MRISR_HOME", str(bench.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tune(bench.config, [])
    output = capsys.readouterr().out
    no_resources_are_held()

    assert "1 are done" in output
    assert "trial-0000 starts" not in output, "a trial that has ended is not run again"
    good, nothing = bench.record(1), bench.record(2)
    assert bench.record(0).entries == failed.entries
    assert good.entries[: len(before)] == before, "what was known stays, and is gone on from"
    assert [entry["step"] for entry in good.entries] == [8, 16, 24, 32, 40, 48, 56], "none is lost or repeated"
    assert [entry["step"] for entry in nothing.entries] == [8, 16], "stopped by what was seen before the kill"
    assert bench.states() == ["FAIL", "COMPLETE", "PRUNED"]
    assert nothing.failure is None, "it was stopped before its workers' room was taken, not after"
    assert "its processes are still there" not in output
    steps = failed.step + 56 + 16
    ends = "3 trials: 1 failed, 1 finished, 1 stopped early"
    cost = (
        f"cost: {steps} steps run, {failed.step} of them by failed trials; the other 2 trials to their end would be 112"
    )
    for word in ("stopped early at step 16", ends, cost):
        assert word in output

    winner = load_experiment(bench.folder / "winner.yaml")
    assert winner.degradation.fraction == pytest.approx((0.45, 0.6)), "a range near nothing does not win"
    assert winner.training.gp_weight == 10
    client = MlflowClient(bench.uri)
    parent = (bench.folder / "mlflow_run_id.txt").read_text()
    artifacts = {a.path for folder in (None, "plots") for a in client.list_artifacts(parent, folder)}
    plots = {f"plots/{name}.html" for name in ("history", "slice", "parallel-coordinates")}
    assert {"winner.yaml", "trials.csv", *plots} <= artifacts
    experiment = client.get_experiment_by_name("mrisr")
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    ends = {run.info.run_name: (run.info.status, run.data.tags["tuning.state"]) for run in children}
    assert ends == {
        "trial-0000": ("FAILED", "failed"), "trial-0001": ("FINISHED", "finished"),
        "trial-0002": ("FINISHED", "stopped early"),
    }  # fmt: skip
    for run in children:
        assert "validation/psnr" in run.data.metrics
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(parent).data.metrics["test/model/whole/psnr"] > 0
    version = client.get_model_version("mdcsrn", "1")
    assert version.tags["search_run_id"] == parent
    assert len(list(bench.folder.glob("test-*.csv"))) == 1

    tune(bench.config, [])
    again = capsys.readouterr().out
    assert "3 are done" in again
    assert "evaluated on the test split before" in again
    assert bench.states() == ["FAIL", "COMPLETE", "PRUNED"]
    with pytest.raises(ConfigError, match="another name="):
        tune(bench.config, ["tuning.sampler=tpe"])
