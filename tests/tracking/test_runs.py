"""Runs in a real MLflow database: prepared once, logged without repeats, without secrets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure

from mrisr.tracking import runs as tracking


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tracking.Tracking:
    return tracking.prepare(None, tmp_path_factory.mktemp("mlflow"), "experiment one")


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, stdout=-1, stderr=-1)


def _history(store: tracking.Tracking, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracking.client(store.uri).get_metric_history(run_id, key)]


def test_four_processes_prepare_one_fresh_database_and_write_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mrisr.tracking import runs as tracking\n"
        "t = tracking.prepare(None, Path(sys.argv[1]), 'together')\n"
        "run = tracking.start_run(t, {'a': 1}, name='r')\n"
        "log = tracking.RunLogger(t.uri, run)\n"
        "for step in range(25): log.metrics(step, {'loss': step / 4, 'psnr': 30.0})\n"
        "tracking.finish(t.uri, run)\n"
    )
    processes = [_python(code, str(tmp_path)) for _ in range(4)]
    outputs = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    found = tracking.prepare(None, tmp_path, "together")
    assert found.uri == f"sqlite:///{tmp_path}/mlflow.db"
    runs = tracking.client(found.uri).search_runs([found.experiment_id])
    assert len(runs) == 4
    for run in runs:
        assert _history(found, run.info.run_id, "loss") == [(step, step / 4) for step in range(25)]


def test_a_second_process_goes_on_without_gap_or_repeat(store: tracking.Tracking) -> None:
    run_id = tracking.start_run(store, {}, name="resumed")
    code = (
        "import os, sys; from mrisr.tracking import runs as tracking\n"
        "log = tracking.RunLogger(sys.argv[1], sys.argv[2])\n"
        "for step in range(int(sys.argv[3]), int(sys.argv[4])):\n"
        "    log.metrics(step, {'loss': step / 10} | ({'psnr': 30.0 + step} if step % 5 == 0 else {}))\n"
        "os._exit(9)\n"
    )
    # The first is killed after step 11; its last checkpoint was at step 7, so the second computes 7 to 11
    # again.
    for first, last in ((0, 12), (7, 20)):
        process = _python(code, store.uri, run_id, str(first), str(last))
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 9, errors
    assert _history(store, run_id, "loss") == [(step, step / 10) for step in range(20)]
    assert _history(store, run_id, "psnr") == [(step, 30.0 + step) for step in (0, 5, 10, 15)]
    latest = tracking.client(store.uri).get_run(run_id).data.to_proto().metrics
    assert {metric.key: metric.step for metric in latest} == {"loss": 19, "psnr": 15}


def test_the_highest_step_is_per_key_and_survives_nan(store: tracking.Tracking) -> None:
    run_id = tracking.start_run(store, {}, name="keys")
    tracking.RunLogger(store.uri, run_id).metrics(10, {"a": 1.0, "broken": float("nan")})
    log = tracking.RunLogger(store.uri, run_id)
    log.metrics(10, {"a": 2.0, "broken": 0.0, "late": 3.0})
    assert _history(store, run_id, "a") == [(10, 1.0)]
    assert _history(store, run_id, "late") == [(10, 3.0)]
    log.metrics(0, {"absent": 4.0})
    assert _history(store, run_id, "absent") == [(0, 4.0)]


def test_a_run_records_its_configuration_and_no_secret(store: tracking.Tracking, tmp_path: Path) -> None:
    config = {
        "model": {"growth_rate": 16, "residual": False, "path": Path("/data/x"), "none": None, "empty": {}},
        "axes": (1, 2),
        "stages": [{"steps": 3}, {"steps": 4}],
        "long": "x" * 9000,
        "tracking": {"uri": "postgresql://me:hunter2@host/db", "api_key": "hunter2", "password": None},
        "address": "https://host/x?sig=hunter2&b=1",
    }
    run_id = tracking.start_run(
        store, config, name="recorded", dataset_fingerprint="abc", tags={"note": "http://u:hunter2@h"}
    )
    run = tracking.client(store.uri).get_run(run_id)
    params = run.data.params
    assert params["model.growth_rate"] == "16"
    assert params["model.residual"] == "false"
    assert params["model.none"] == "null"
    assert params["model.empty"] == "{}"
    assert params["axes"] == "[1, 2]"
    assert params["stages.1.steps"] == "4"
    assert len(params["long"]) <= 6000
    assert "9000 characters" in params["long"]
    assert run.data.tags["dataset_fingerprint"] == "abc"
    code = run.data.tags["code_version"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|sources sha256:[0-9a-f]{64}", code)
    assert run.data.tags.get("mlflow.source.git.commit") == (None if ":" in code else code[:40])
    text = Path(tracking.client(store.uri).download_artifacts(run_id, "config.yaml", str(tmp_path))).read_text()
    assert "hunter2" not in text + str(params) + str(run.data.tags)
    written = yaml.safe_load(text)
    assert written["long"] == config["long"]
    assert written["model"]["path"] == "/data/x"
    assert written["tracking"] == {"uri": "postgresql://***@host/db", "api_key": "***", "password": None}


def test_many_parameters_and_metrics_pass_in_batches(store: tracking.Tracking) -> None:
    run_id = tracking.start_run(store, {f"p{i}": i for i in range(230)}, name="many")
    tracking.RunLogger(store.uri, run_id).metrics(1, {f"m{i}": i for i in range(1200)})
    data = tracking.client(store.uri).get_run(run_id).data
    assert (len(data.params), len(data.metrics)) == (230, 1200)


def test_figures_artifacts_and_status(store: tracking.Tracking, tmp_path: Path) -> None:
    parent = tracking.start_run(store, {}, name="parent")
    run_id = tracking.start_run(store, {}, name="child's", parent_run_id=parent)
    log = tracking.RunLogger(store.uri, run_id)
    log.figure(1200, "sub-01", Figure())
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "table.csv").write_text("a,b\n")
    log.artifact(tmp_path / "reports")
    log.artifact(tmp_path / "reports" / "table.csv")
    log.tags({"stage": "wgan"})
    log.replace_tags("best.", {"critic.kind": "full", "critic.width": "3"})
    log.replace_tags("best.", {"critic.kind": "pointwise"})
    tracking.finish(store.uri, run_id, "KILLED")
    client = tracking.client(store.uri)
    assert client.list_artifacts(run_id, "pictures")[0].path == "pictures/00001200-sub-01.png"
    assert {item.path for item in client.list_artifacts(run_id)} >= {"reports", "table.csv", "config.yaml"}
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["stage"] == "wgan"
    assert {key: v for key, v in run.data.tags.items() if key.startswith("best.")} == {"best.critic.kind": "pointwise"}
    tracking.resume_if_reachable(store.uri, run_id, tmp_path / "mlflow_run_id.txt")
    assert client.get_run(run_id).info.status == "RUNNING"


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.resolve_uri("sqlite:///a/m.db?x=1", tmp_path) == f"sqlite:///{tmp_path}/a/m.db?x=1"
    assert tracking.resolve_uri("http://host:5000", tmp_path) == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://host/db")
    assert tracking.resolve_uri(None, tmp_path) == "postgresql://host/db"
    for bad in ("./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ValueError, match="use sqlite:////absolute"):
            tracking.resolve_uri(bad, tmp_path)


def test_a_deleted_experiment_is_named(store: tracking.Tracking, tmp_path: Path) -> None:
    gone = tracking.prepare(store.uri, tmp_path, "gone")
    tracking.client(store.uri).delete_experiment(gone.experiment_id)
    with pytest.raises(ValueError, match="'gone' is deleted"):
        tracking.prepare(store.uri, tmp_path, "gone")
