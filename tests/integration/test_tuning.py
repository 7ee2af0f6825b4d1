"""A search by real Tune trials, each a nested training run: stopped early, failing, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from mrisr.config import ConfigError, load_experiment
from mrisr.tuning.record import Record
from mrisr.tuning.winner import tune

from .conftest import TINY, Bench

pytestmark = pytest.mark.integration

# One worker, L1 for 64 steps, then the critic, whose penalty overflows at a weight of 1e300. The mixed weight halves
# the contrast of low frequencies, which a small network learns to mend in a few steps, if its zeroing range shows it.
SEARCH = TINY | {
    "degradation": {
        "kind": "mixed", "axes": [0, 1, 2], "mix": [0.4, 0.6],
        "fraction": {"interval": [0.001, 0.9], "fixed": [0.45, 0.6]},
    },
    "schedule": {"total_steps": 72, "pretrain_steps": 64, "critic_warmup_steps": 8},
    "training": {
        "batch_size": 2, "precision": "fp32", "checkpoint_every": 5, "log_every": 8, "pretrain_lr": 3.0e-3,
        "gp_weight": {"log_uniform": [0.1, 1.0e300], "fixed": 10},
    },
    "validation": {"protocol": "report160", "every": 8, "patch_size": 32, "patches_per_subject": 1},
    "resources": {"workers": 1},
    "tuning": {
        "trials": 3, "reduction": 5, "grace_steps": 16, "sampler": "random",
        # What follows the fixed values: a zeroing range near nothing, and a penalty that is not finite.
        "points": [
            {"degradation.fraction": [0.001, 0.001], "training.gp_weight": 10},
            {"degradation.fraction": [0.45, 0.6], "training.gp_weight": 1.0e300},
        ],
    },
}  # fmt: skip


class SearchBench(Bench):
    def __init__(self, folder: Path, store: Path, **tuning: object) -> None:
        super().__init__(folder, store)
        content = SEARCH | {"data": {**TINY["data"], "store": str(store)}}  # type: ignore[dict-item]
        content["tuning"] = {**SEARCH["tuning"], **tuning}  # type: ignore[dict-item]
        self.config.write_text(yaml.safe_dump(content))

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "tiny-search"

    def record(self, run: str) -> Record:
        return Record(self.folder / "trials" / run)

    def states(self) -> list[str]:
        with sqlite3.connect(self.folder / "study.db") as study:
            return [state for (state,) in study.execute("select state from trials order by number")]


def test_a_search_stops_bad_trials_survives_failing_ones_and_registers_the_winner(
    small_store: Path,
    tmp_path: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray
    from ray.util import placement_group_table

    bench = SearchBench(tmp_path, small_store, concurrent=1)
    monkeypatch.setenv("MRISR_HOME", str(bench.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tune(bench.config, [])
    output = capsys.readouterr().out

    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "a stopped trial holds resources"
        time.sleep(0.2)
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}

    fixed, nothing, broken = (bench.record(f"trial-{i:04d}") for i in range(3))
    assert fixed.step == 72
    assert nothing.step == 16, "stopped at the first rung"
    assert broken.step in (56, 64), "the last figures before the failure may be lost with its workers"
    assert "not finite" in (broken.failure or "")
    assert bench.states() == ["COMPLETE", "PRUNED", "FAIL"]
    for word in ("stopped early", "failed: NonFiniteError", f"cost: {88 + broken.step} steps run; 3 trials"):
        assert word in output

    winner = load_experiment(bench.folder / "winner.yaml")
    assert winner.degradation.fraction == pytest.approx((0.45, 0.6)), "a range near nothing does not win"
    assert winner.training.gp_weight == 10
    client = MlflowClient(bench.uri)
    parent = (bench.folder / "mlflow_run_id.txt").read_text()
    artifacts = {a.path for folder in (None, "plots") for a in client.list_artifacts(parent, folder)}
    assert {"winner.yaml", "trials.csv", "plots/history.html", "plots/slice.html"} <= artifacts
    experiment = client.get_experiment_by_name("mrisr")
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    ends = {run.info.run_name: (run.info.status, run.data.tags["tuning.state"]) for run in children}
    assert ends == {
        "trial-0000": ("FINISHED", "finished"), "trial-0001": ("FINISHED", "stopped early"),
        "trial-0002": ("FAILED", "failed"),
    }  # fmt: skip
    version = client.get_model_version_by_alias("mdcsrn", "champion")
    assert version.tags["search_run_id"] == parent
    assert client.get_run(parent).data.metrics["test/model/whole/psnr"] > 0
    assert list(bench.folder.glob("test-*.csv"))

    tune(bench.config, [])
    again = capsys.readouterr().out
    assert "3 are done" in again
    assert "evaluated on the test split before" in again
    assert bench.states() == ["COMPLETE", "PRUNED", "FAIL"]
    with pytest.raises(ConfigError, match="another name="):
        tune(bench.config, ["tuning.sampler=tpe"])


def test_a_killed_search_goes_on_with_its_trials(small_store: Path, tmp_path: Path) -> None:
    """kill -9 of the driver and all its processes in the middle of the second trial; the same command goes on."""
    bench = SearchBench(tmp_path, small_store, trials=2, scheduler="none")
    command = ("tune", "--config", str(bench.config))
    process = bench.start(*command)
    deadline = time.monotonic() + 300
    while bench.record("trial-0001").step < 16:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {i: bench.record(f"trial-{i:04d}").entries for i in range(2)}
    assert bench.states() == ["COMPLETE", "RUNNING"]

    output = bench.call(*command).stdout
    assert "1 are done, 1 go on" in output
    assert "trial-0000 starts" not in output, "a finished trial is not run again"
    assert bench.states() == ["COMPLETE", "COMPLETE"]
    after = {i: bench.record(f"trial-{i:04d}").entries for i in range(2)}
    assert after[0] == before[0]
    assert after[1][: len(before[1])] == before[1]
    assert [entry["step"] for entry in after[1]] == list(range(8, 73, 8)), "no validation is lost or repeated"
    assert json.loads((bench.folder / "trials" / "trial-0000" / "published.json").read_text())["promoted"]
