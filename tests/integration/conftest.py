"""What the multi-process tests share: a tiny experiment that passes through every phase, run as a user would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from mrisr.cli.app import main
from mrisr.training.run_folder import RunFolder

from .head_node import head_node, submit

# 24 steps: 8 of L1, 4 of the critic alone, then two critic steps to one of the generator.
TINY = {
    "name": "tiny",
    "seed": 5,
    "degradation": {"kind": "truncate", "axes": [1, 2], "fraction": [0.4, 0.6]},
    "data": {"min_size": 32},
    "stream": {"patch_size": 16, "patches_per_row": 3, "interleave_rows": 2},
    "generator": {"growth_rate": 2, "blocks": 2, "units": 2, "residual": True},
    "critic": {"kind": "pointwise"},
    "schedule": {"total_steps": 24, "pretrain_steps": 8, "critic_warmup_steps": 4, "critic_per_generator": 2},
    "training": {
        "batch_size": 2, "micro_batch": 1, "pretrain_lr": 1.0e-3, "precision": "fp32", "checkpoint_every": 5,
        "log_every": 2, "keep_checkpoints": 3,
    },
    "validation": {"every": 6, "patch_size": 24, "patches_per_subject": 1},
    "resources": {"workers": 2},
}  # fmt: skip


class Bench:
    """A folder with a store, a configuration and its own MLflow; runs `mrisr` in processes of their own."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.home, self.store = folder, store
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "tiny.yaml"
        self.config.write_text(yaml.safe_dump(TINY | {"data": {**TINY["data"], "store": str(store)}}))  # type: ignore[dict-item]

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return {**kept, "MRISR_HOME": str(self.home), "OMP_NUM_THREADS": "1"}

    @property
    def run(self) -> Path:
        return self.home / "runs" / "tiny"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.home / 'mlflow.db'}"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mrisr", *arguments]
        return subprocess.Popen(
            command, cwd=self.home, env=self.environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def call(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=400)
        assert not check or process.returncode == 0, out
        return subprocess.CompletedProcess(process.args, process.returncode, out)

    def here(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
    ) -> tuple[int, str]:
        """The same in this process, for what needs no process of its own: exit code and output."""
        monkeypatch.setenv("MRISR_HOME", str(self.home))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(SystemExit) as done:
            main(list(arguments))
        captured = capsys.readouterr()
        return int(done.value.code or 0), captured.out + captured.err

    def train(self, *overrides: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.call("train", "--config", str(self.config), *overrides, check=check)

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Every metric of the run as MLflow has it: key -> [(step, value), ...] in the order of logging."""
        client = MlflowClient(self.uri)
        run_id = (self.run / "mlflow_run_id.txt").read_text()
        keys = client.get_run(run_id).data.metrics
        return {key: [(m.step, m.value) for m in client.get_metric_history(run_id, key)] for key in sorted(keys)}


def assert_same_run(bench: Bench, reference: Bench) -> None:
    """The same weights to 1e-5, and in MLflow the same metrics at the same steps, none missing, none repeated."""
    for name in ("last.safetensors", "best.safetensors"):
        expected = load_file(RunFolder(reference.run).checkpoints()[-1] / name)
        found = load_file(RunFolder(bench.run).checkpoints()[-1] / name)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)
    # What a later evaluation of the reference has added is not the run's.
    expected_history = {key: points for key, points in reference.history().items() if not key.startswith("test/")}
    found_history = bench.history()
    assert expected_history.keys() == found_history.keys()
    for key, points in expected_history.items():
        assert [step for step, _ in found_history[key]] == [step for step, _ in points], f"gap or repeat in {key}"
        if not (key.startswith("throughput/") or key.endswith("/seconds_per_subject")):
            np.testing.assert_allclose([v for _, v in found_history[key]], [v for _, v in points], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="session")
def unkilled(tmp_path_factory: pytest.TempPathFactory, small_store: Path) -> tuple[Bench, str]:
    """The tiny experiment, trained in one go by two FSDP workers and registered, as a submitted job; what it printed.

    The runs that are killed and resumed are started without a job: their numbers must be those of a job all the same.
    It is trained once, whichever of pytest's processes asks first.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "unkilled"
    folder.mkdir(exist_ok=True)
    printed = folder / "printed.txt"
    with FileLock(folder / ".lock"):
        if not printed.exists():
            bench = Bench(folder / "home", shutil.copytree(small_store, folder / "store.zarr"))
            with head_node(bench.environment) as address:
                command = ["python", "jobs/train.py", "--config", str(bench.config)]
                printed.write_text(submit(address, command, folder / "shell"))
    return Bench(folder / "home", folder / "store.zarr"), printed.read_text()
