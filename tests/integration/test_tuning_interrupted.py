"""A search from one shared generator: a trial's worker is killed, then the search is interrupted, and it goes on.

Its winner is trained anew; what is registered are the weights of the validation that counted.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from torch import Tensor

from mrisr.config import load_experiment
from mrisr.tracking.registry import load
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.winner import tune

from .test_faults import wait_for, workers
from .test_tuning import GOOD, SearchBench, no_resources_are_held

pytestmark = [pytest.mark.integration, pytest.mark.long]

# 8 steps of L1 once, then trials of 32 steps that care for the critic alone: none is as good as the shared start.
CHANGED = {
    "schedule": {"total_steps": 40, "pretrain_steps": 8, "critic_warmup_steps": 0, "critic_per_generator": 1},
    "training": {
        "batch_size": 2, "precision": "fp32", "log_every": 8, "pretrain_lr": 3.0e-3, "generator_lr": 1.0e-2,
        "adversarial_weight": 1000, "gp_weight": {"log_uniform": [1, 100], "fixed": 10},
    },
    "degradation": {"kind": "mixed", "axes": [0, 1, 2], "mix": [0.4, 0.6], "fraction": GOOD},
    "tuning": {
        "trials": 2, "concurrent": 1, "sampler": "tpe", "startup_trials": 1, "scheduler": "none",
        "shared_pretraining": True, "winner": "retrain", "max_failures": 1,
    },
}  # fmt: skip
STEPS = [8, 16, 24, 32]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def best_weights(run: Path) -> dict[str, Tensor]:
    return load_file(RunFolder(run).checkpoints()[-1] / "best.safetensors")


def test_a_search_whose_worker_is_killed_is_interrupted_goes_on_and_registers_what_was_scored(
    small_store: Path,
    tmp_path: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = SearchBench(tmp_path, small_store)
    bench.config.write_text(yaml.safe_dump(yaml.safe_load(bench.config.read_text()) | CHANGED))
    client, pretrained = MlflowClient(bench.uri), bench.folder / "pretrained"

    driver = bench.start("tune", "--config", str(bench.config))
    wait_for(driver, lambda: bench.record(0).step >= 8)
    (worker,) = workers(driver)
    worker.kill()
    wait_for(driver, lambda: {p.pid for p in workers(driver)} - {worker.pid})
    seen = bench.record(0).step
    assert seen < STEPS[-1], "it was killed in mid-trial"
    wait_for(driver, lambda: bench.record(0).step > seen)
    # Ctrl-C, as a terminal sends it: to every process of the group.
    os.killpg(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, output
    assert output.count("interrupted; the same command goes on where it stopped") == 1
    for word in ("Tuner.restore", "trial-0000 failed"):
        assert word not in output
    (experiment,) = client.search_experiments(filter_string="name = 'mrisr'")
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert set(statuses) >= {"tiny-search", "pretrained", "trial-0000"}
    assert statuses["tiny-search"] == "KILLED"
    assert statuses["pretrained"] == "FINISHED"
    assert "RUNNING" not in statuses.values()
    before, shared = bench.record(0).entries, best_weights(pretrained)

    # The same command, in another cluster.
    monkeypatch.setenv("MRISR_HOME", str(bench.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tune(bench.config, [])
    output = capsys.readouterr().out
    no_resources_are_held()
    assert "pretraining once" not in output
    assert [folder.name for folder in RunFolder(pretrained).checkpoints()] == ["checkpoint_00000008"]
    assert same(best_weights(pretrained), shared)
    assert bench.states() == ["COMPLETE", "COMPLETE"]
    assert bench.record(0).entries[: len(before)] == before
    for number in (0, 1):
        assert [entry["step"] for entry in bench.record(number).entries] == STEPS, "none is lost or repeated"
        assert same(load_file(bench.record(number).folder / "initial.safetensors"), shared)

    parent = (bench.folder / "mlflow_run_id.txt").read_text()
    (version,) = client.search_model_versions("name = 'mdcsrn'")
    assert (version.tags["search_run_id"], version.tags["search"]) == (parent, "tiny-search")
    winner = bench.folder / f"winner-{version.tags['search_trial']}"
    assert version.run_id == (winner / "mlflow_run_id.txt").read_text()
    assert client.get_run(version.run_id).data.tags["mlflow.parentRunId"] == parent
    retrained = load_experiment(winner / "experiment.yaml")
    assert retrained.seed == 1 + load_experiment(bench.config).seed
    assert [file.name for file in bench.folder.glob("test-*.csv")] == ["test-mdcsrn-1.csv"]
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(parent).data.tags["winner.model"] == "models:/mdcsrn/1"

    # The start is better than every validation that counts, and is not what is registered.
    psnr = {m.step: m.value for m in client.get_metric_history(version.run_id, "validation/psnr")}
    assert sorted(psnr) == [0, *STEPS]
    scored = max(STEPS, key=lambda step: psnr[step])
    assert psnr[0] > psnr[scored]
    assert f"registered models:/mdcsrn/1 (weights of step {scored})" in output
    registered = load("models:/mdcsrn/1", bench.uri).generator.state_dict()
    assert same(registered, best_weights(winner))
    assert not same(registered, shared)

    # The trial itself instead: another version, whose figures are now the search's.
    tune(bench.config, ["tuning.winner=as_is"])
    first, second = client.get_metric_history(parent, "test/model/whole/psnr")
    assert (first.step, second.step) == (1, 2)
    assert client.get_run(parent).data.metrics["test/model/whole/psnr"] == second.value
    best = bench.record(int(version.tags["search_trial"][-4:])).results(("psnr",))[-1]
    assert f"registered models:/mdcsrn/2 (weights of step {best['best_step']})" in capsys.readouterr().out
