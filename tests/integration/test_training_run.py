"""A run by real Ray Train workers: all phases, MLflow, the registry; killed and resumed; refused when it cannot be."""

from __future__ import annotations

import os
import signal
import time
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


def test_a_run_goes_through_every_phase_and_is_registered(unkilled: tuple[Bench, str]) -> None:
    bench, output = unkilled
    for word in ("pretrain", "critic", "generator", "validation", "registered models:/mdcsrn/1", "champion"):
        assert word in output
    assert newest(bench).name == "checkpoint_00000024"
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
    pictures = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "pictures")}
    assert {f"pictures/{step:08d}-validation.png" for step in (0, 6, 12, 18, 24)} <= pictures
    version = client.get_model_version_by_alias("mdcsrn", "champion")
    assert version.tags["protocol"] == "chen2018"


def test_running_it_again_trains_and_registers_nothing(unkilled: tuple[Bench, str]) -> None:
    bench, _ = unkilled
    before = bench.history()
    assert "registered models:/mdcsrn/1" in bench.train().stdout
    assert bench.history() == before
    assert len(MlflowClient(bench.uri).search_model_versions("name = 'mdcsrn'")) == 1


def test_killed_runs_resume_and_end_with_the_same_parameters(
    unkilled: tuple[Bench, str], small_store: Path, tmp_path: Path
) -> None:
    """kill -9 of the driver and all its processes after the first checkpoint; the same command goes on."""
    reference, _ = unkilled
    bench = Bench(tmp_path, small_store)
    process = bench.start("train", "--config", str(bench.config))
    deadline = time.monotonic() + 300
    while not list(bench.run.glob("checkpoint_[0-9]*/progress.json")):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    steps_before = {key: len(points) for key, points in bench.history().items()}
    bench.train()

    assert steps_before["pretrain/loss"] >= 2
    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(newest(reference) / name), load_file(newest(bench) / name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)
    clocks = ("throughput/", "volumes/seconds")
    expected_history, found_history = reference.history(), bench.history()
    assert expected_history.keys() == found_history.keys()
    for key, points in expected_history.items():
        assert [step for step, _ in found_history[key]] == [step for step, _ in points], f"gap or repeat in {key}"
        if not key.startswith(clocks):
            np.testing.assert_allclose([v for _, v in found_history[key]], [v for _, v in points], rtol=1e-4, atol=1e-6)


def test_another_configuration_of_the_same_name_is_refused(unkilled: tuple[Bench, str]) -> None:
    bench, _ = unkilled
    done = bench.train("training.gp_weight=3", check=False)
    assert done.returncode == 2
    for word in ("training.gp_weight", "10.0", "3", "another name="):
        assert word in done.stdout


def test_dry_run_prints_the_plan_and_starts_nothing(small_store: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_store)
    done = bench.call("train", "--config", str(bench.config), "--dry-run")
    for word in ("gp_weight: 10.0", "train 4", "steps       24 of 2 patches on 2 workers", "parameters", "GiB"):
        assert word in done.stdout
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_workers_that_never_fit_are_an_error_that_says_what_would(small_store: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_store)
    done = bench.train("resources.cpus_per_worker=64", check=False)
    assert done.returncode == 2
    assert "resources.cpus_per_worker" in done.stdout
    assert "what fits" in done.stdout


def test_training_starts_from_another_run_and_from_the_registry(unkilled: tuple[Bench, str], small_store: Path) -> None:
    from mrisr.config import load_experiment
    from mrisr.training.initial import read_initial_weights

    bench, _ = unkilled
    experiment = load_experiment(bench.config, [f"output={bench.home}/runs"])
    best = load_file(newest(bench) / "best.safetensors")
    for source in (str(bench.run), str(newest(bench)), "models:/mdcsrn@champion"):
        state = read_initial_weights(experiment, source, bench.uri)
        for key, value in best.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=0)
    assert TINY["name"] == experiment.name


def test_the_champion_super_resolves_a_nifti_file(unkilled: tuple[Bench, str], tmp_path: Path) -> None:
    bench, _ = unkilled
    rng = np.random.default_rng(0)
    data = rng.integers(0, 900, (37, 41, 35)).astype(np.int16)
    affine = np.array([[0, -1.2, 0, 3], [0.9, 0, 0, 4], [0, 0, 1.1, 5], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "in.nii.gz")
    target = tmp_path / "out.nii.gz"
    command = ("superresolve", "--model", "models:/mdcsrn@champion", str(tmp_path / "in.nii.gz"), str(target))
    bench.call(*command)
    out = nib.load(target)
    assert out.shape == data.shape
    assert out.get_data_dtype() == np.int16
    np.testing.assert_allclose(out.affine, affine, atol=1e-5)
    assert bench.call(*command, check=False).returncode == 2, "an existing file is not overwritten"


def test_evaluate_prints_the_table_and_writes_the_figures(unkilled: tuple[Bench, str], tmp_path: Path) -> None:
    bench, _ = unkilled
    output = tmp_path / "evaluation"
    command = ("evaluate", "--model", "models:/mdcsrn@champion", "--store", str(bench.store), "--output", str(output))
    done = bench.call(*command, "--data-consistency")
    for word in ("zero-filled", "cubic spline", "model", "data consistency", "foreground"):
        assert word in done.stdout
    assert (output / "test-chen2018.csv").read_text().count("\n") == 1 + 4 * 2
    assert list(output.glob("*.png"))
