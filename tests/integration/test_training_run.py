"""A run by real Ray Train workers: all phases, MLflow, the registry; killed and resumed; refused when it cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from .conftest import TINY, Bench

pytestmark = pytest.mark.integration


def newest(bench: Bench) -> Path:
    return max(bench.run.glob("checkpoint_[0-9]*"))


def test_a_submitted_job_goes_through_every_phase_and_is_registered(unkilled: tuple[Bench, str]) -> None:
    bench, output = unkilled
    for word in ("pretrain", "critic", "generator", "validation", "registered models:/mdcsrn/1",
                 "registered models:/mdcsrn/2", "not the champion", "gain-corrected input", "wgan-gp"):  # fmt: skip
        assert word in output
    assert not re.search(r"pid=\d|Watcher|Cleaner", output), "lines of Ray's own"
    assert newest(bench).name == "checkpoint_00000024"
    kept = sorted(folder.name for folder in bench.run.glob("checkpoint_[0-9]*"))
    assert kept == [f"checkpoint_{step:08d}" for step in (15, 20, 24)], "training.keep_checkpoints"
    history = bench.history()
    assert [step for step, _ in history["pretrain/loss"]] == [2, 4, 6, 8]
    assert [step for step, _ in history["validation/psnr"]] == [0, 6, 12, 18, 24]
    for key in ("critic/wasserstein", "critic/penalty", "critic/interpolate_gradient_norm", "generator/adversarial",
                "pretrain/gradient_norm", "critic/learning_rate", "throughput/patches_per_second",
                "throughput/data_wait_share", "validation/input_ssim", "volumes/model/whole/psnr"):  # fmt: skip
        assert history[key], key
        assert all(np.isfinite(value) for _, value in history[key])
    client = MlflowClient(bench.uri)
    run = client.get_run((bench.run / "mlflow_run_id.txt").read_text())
    assert run.info.status == "FINISHED"
    assert run.data.params["training.gp_weight"] == "10.0"
    assert run.data.tags["dataset_fingerprint"]
    # .git does not travel with a job; the sources that do say what ran.
    assert run.data.tags["code_version"].startswith("sources sha256:")
    pictures = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "pictures")}
    assert {f"pictures/{step:08d}-validation.png" for step in (0, 6, 12, 18, 24)} <= pictures
    # 24 steps restore nothing: nobody becomes champion.
    assert not client.get_registered_model("mdcsrn").aliases
    for number, stage in (("1", "l1"), ("2", "wgan-gp")):
        version = client.get_model_version("mdcsrn", number)
        assert version.tags["protocol"] == "chen2018"
        assert version.tags["precision"] == "fp32"
        assert version.tags["stage"] == stage
        assert version.tags["trained_on_subjects"] == "4"
    assert json.loads((newest(bench) / "progress.json").read_text())["precision"] == "fp32"


def test_its_metrics_are_those_of_the_golden_run(unkilled: tuple[Bench, str]) -> None:
    """golden.json: the same experiment before the house was rebuilt. Draws, steps and figures may not move."""
    bench, _ = unkilled
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())
    history = {key: points for key, points in bench.history().items() if key in golden}
    assert history.keys() == golden.keys()
    for key, points in golden.items():
        assert [step for step, _ in history[key]] == [step for step, _ in points], key
        # Processors round convolutions differently; a changed draw or a changed step moves figures by far more.
        np.testing.assert_allclose([v for _, v in history[key]], [v for _, v in points], rtol=5e-3, err_msg=key)


def test_running_it_again_trains_and_registers_nothing(
    unkilled: tuple[Bench, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, _ = unkilled
    before = bench.history()
    code, output = bench.here(monkeypatch, capsys, "train", "--config", str(bench.config))
    assert code == 0
    assert "registered models:/mdcsrn/1" in output
    assert bench.history() == before
    assert len(MlflowClient(bench.uri).search_model_versions("name = 'mdcsrn'")) == 2


def test_another_configuration_of_the_same_name_is_refused(
    unkilled: tuple[Bench, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, _ = unkilled
    code, output = bench.here(monkeypatch, capsys, "train", "--config", str(bench.config), "training.gp_weight=3")
    assert code == 2
    for word in ("training.gp_weight", "10.0", "3", "another name="):
        assert word in output


def test_dry_run_prints_the_plan_and_starts_nothing(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, small_store)
    code, output = bench.here(monkeypatch, capsys, "train", "--config", str(bench.config), "--dry-run")
    assert code == 0
    for word in ("gp_weight: 10.0", "train 4", "steps       24 of 2 patches on 2 workers", "parameters", "GiB",
                 "of Ray's object store at most: 3 groups for each of 2 lanes, 0.1 MiB a group"):  # fmt: skip
        assert word in output
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_workers_that_never_fit_are_an_error_that_says_what_would(
    local_ray: None,
    small_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench(tmp_path, small_store)
    many = "resources.cpus_per_worker=64"
    code, output = bench.here(monkeypatch, capsys, "train", "--config", str(bench.config), many)
    assert code == 2
    assert "resources.cpus_per_worker" in output
    assert "what fits" in output


def test_training_starts_from_another_run_and_from_the_registry(unkilled: tuple[Bench, str], small_store: Path) -> None:
    from mrisr.config import ConfigError, load_experiment
    from mrisr.inference.model import load_model
    from mrisr.training.warm_start import read_initial_weights

    bench, _ = unkilled
    experiment = load_experiment(bench.config, [f"output={bench.home}/runs"])
    best = load_file(newest(bench) / "best.safetensors")
    for source in (str(bench.run), str(newest(bench)), "models:/mdcsrn/1"):
        weights = read_initial_weights(experiment, source, bench.uri)
        state = weights.state
        assert weights.trained_on.complete
        assert len(weights.trained_on.contents) >= 4
        for key, value in best.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=0)
    assert TINY["name"] == experiment.name
    # The same names and shapes fit a network without the residual; the file knows better.
    plain = load_experiment(bench.config, [f"output={bench.home}/runs", "generator.residual=false"])
    with pytest.raises(ConfigError, match=r"'residual': True.*'residual': False"):
        read_initial_weights(plain, str(bench.run), bench.uri)
    loaded = load_model(str(newest(bench) / "best.safetensors"), None)
    assert loaded.protocol == "chen2018"
    assert loaded.generator.config.residual


def test_a_version_super_resolves_a_nifti_file(
    unkilled: tuple[Bench, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, _ = unkilled
    rng = np.random.default_rng(0)
    data = rng.integers(0, 900, (37, 41, 35)).astype(np.int16)
    affine = np.array([[0, -1.2, 0, 3], [0.9, 0, 0, 4], [0, 0, 1.1, 5], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "in.nii.gz")
    target = tmp_path / "out.nii.gz"
    command = ("superresolve", "--same-grid", "--model", "models:/mdcsrn/1", str(tmp_path / "in.nii.gz"), str(target))
    bench.call(*command)
    out = nib.load(target)
    assert out.shape == data.shape
    assert out.get_data_dtype() == np.int16
    np.testing.assert_allclose(out.affine, affine, atol=1e-5)
    assert bench.here(monkeypatch, capsys, *command)[0] == 2, "an existing file is not overwritten"


def test_evaluate_prints_the_table_writes_the_figures_and_logs_them(
    unkilled: tuple[Bench, str],
    local_ray: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench, _ = unkilled
    folder = tmp_path / "evaluation"
    command = ("evaluate", "--model", "models:/mdcsrn/1", "--store", str(bench.store), "--output", str(folder))
    code, output = bench.here(monkeypatch, capsys, *command, "--data-consistency")
    assert code == 0, output
    for word in ("zero-filled", "cubic spline", "model", "data consistency", "foreground"):
        assert word in output
    assert (folder / "test-chen2018.csv").read_text().count("\n") == 1 + 5 * 2
    assert list(folder.glob("*.png"))
    assert [version for version, _ in bench.history()["test/chen2018/model/whole/psnr"]] == [1]
    run_id = (bench.run / "mlflow_run_id.txt").read_text()
    client = MlflowClient(bench.uri)
    (folder_of_subjects,) = client.list_artifacts(run_id, "evaluation/version-1")
    (logged,) = client.list_artifacts(run_id, folder_of_subjects.path)
    assert logged.path.endswith("test-chen2018.csv")
