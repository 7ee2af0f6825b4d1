"""A generator of another kind trains, is registered and evaluated, by its key alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from mrisr.models.rrdb import RRDBNet3D
from tests.test_api import examples

from .conftest import Bench

pytestmark = pytest.mark.integration


def test_rrdb_trains_through_every_phase_and_is_evaluated(
    local_ray: None,
    small_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench(tmp_path / "rrdb", small_store)
    tiny = yaml.safe_load(bench.config.read_text())
    tiny["generator"] = {"kind": "rrdb", "features": 2, "growth_rate": 2, "blocks": 1}
    tiny["schedule"] = {"total_steps": 5, "pretrain_steps": 2, "critic_warmup_steps": 1, "critic_per_generator": 1}
    tiny["resources"] = {"workers": 1}
    bench.config.write_text(yaml.safe_dump(tiny))
    # As the guide trains from Python.
    bench.config.rename(bench.home / "experiment.yaml")
    monkeypatch.setenv("MRISR_HOME", str(bench.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(bench.home)
    found: dict[str, Any] = {}
    exec(examples("Train"), found)
    assert isinstance(found["model"].generator, RRDBNet3D)
    run = MlflowClient(bench.uri).get_run((bench.run / "mlflow_run_id.txt").read_text())
    assert run.data.params["generator.kind"] == "rrdb"
    target = ("--output", str(tmp_path / "evaluation"))
    model = found["versions"][0].model_uri
    code, output = bench.here(monkeypatch, capsys, "evaluate", "--model", model, "--store", str(bench.store), *target)
    assert code == 0, output
    assert "model" in output
    assert "psnr" in output.lower()
