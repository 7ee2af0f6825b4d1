"""`mrisr runs` and `mrisr compare` read runs' folders: states, figures, differences, and what does not compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrisr.cli.app import main
from mrisr.config import load_experiment
from mrisr.engine.checkpoint import METADATA, PROGRESS
from mrisr.metrics import METRICS
from mrisr.training.progress import ProgressLog
from mrisr.training.run_folder import RunFolder
from voxelstore import VolumeStore

STEPS = ["schedule.total_steps=10", "schedule.pretrain_steps=10"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRISR_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def begin(store: Path, name: str, *overrides: str, step: int | None = None, psnr: float = 30.0) -> RunFolder:
    """A run's folder as its driver and workers leave it, with a checkpoint of `step` if there is one."""
    experiment = load_experiment(None, [f"name={name}", f"data.store={store}", *STEPS, *overrides])
    folder = RunFolder.of(experiment)
    folder.path.mkdir(parents=True)
    folder.begin(experiment, VolumeStore.open(store))
    if step is not None:
        figures = {key: psnr for metric in METRICS for key in (metric, f"{metric}_gain")}
        checkpoint = folder.path / f"checkpoint_{step:08d}"
        checkpoint.mkdir()
        (checkpoint / METADATA).write_bytes(b"x")
        (checkpoint / PROGRESS).write_text(json.dumps({"step": step, "best": {"step": step - 1, "figures": figures}}))
    return folder


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    captured = capsys.readouterr()
    assert not done.value.code, captured.err
    return captured.out


def test_runs_are_listed_with_their_states(
    small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(small_store, "begun")
    begin(small_store, "stopped", step=5)
    begin(small_store, "finished", step=10, psnr=31.25)
    version = {"model_uri": "models:/m/3", "promoted": True}
    begin(small_store, "registered", step=10).published.write_text(json.dumps([version]))
    held, fresh = begin(small_store, "held", step=5), begin(small_store, "fresh", step=5)
    ProgressLog(fresh.progress, "rank-0").position(7, "pretrain")
    begin(small_store, "trial-0001", f"output={tmp_path}/runs/some-search/trials", step=5)
    with held.locked():
        output = told(capsys, "runs")
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines()[2:]}
    assert {name: row[:2] for name, row in rows.items()} == {
        "begun": ["begun", "0/10"], "stopped": ["stopped", "5/10"], "finished": ["finished", "10/10"],
        "registered": ["registered", "10/10"], "held": ["training", "5/10"], "fresh": ["training", "7/10"],
        "some-search/trials/trial-0001": ["stopped", "5/10"],
    }  # fmt: skip
    assert rows["finished"][2:] == ["31.25", "(+31.25)", "31.2500", "(+31.2500)"]
    assert rows["registered"][-1] == "models:/m/3*"
    assert str(tmp_path / "runs") in output.splitlines()[0]


def test_a_run_that_cannot_be_read_hides_no_other(small_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(small_store, "good", step=5)
    bad = begin(small_store, "bad", step=5)
    bad.settings.write_text(bad.settings.read_text() + "newer_key: 1\n")
    begin(small_store, "cut", step=10).published.write_text('[{"model_uri": ')
    lines = told(capsys, "runs").splitlines()
    assert [line.split()[0] for line in lines if "/10" in line] == ["good"]
    text = " ".join(lines)
    for words in ("warning: bad cannot be read", "newer_key = 1: unknown key", "warning: cut cannot be read"):
        assert words in text


def test_two_runs_are_compared(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(small_store, "one", step=10, psnr=30.0)
    begin(small_store, "other", "training.gp_weight=3", step=5, psnr=31.0)
    output = told(capsys, "compare", "one", str(tmp_path / "runs" / "other"))
    rows = {line.split("  ")[0]: line for line in output.splitlines()}
    assert rows["training.gp_weight"].split() == ["training.gp_weight", "10.0", "3.0"]
    assert " ".join(rows["best PSNR"].split()) == "best PSNR 30.00 dB (+30.00 dB) 31.00 dB (+31.00 dB)"
    assert rows["state"].split() == ["state", "finished", "stopped"]
    assert "name" not in rows
    assert "warning" not in output


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("validation.protocol=hz2538", "two protocols, chen2018 and hz2538"),
        ("validation.max_subjects=1", "other parts of the volumes (validation.max_subjects)"),
        ("training.precision=fp32", "different precisions"),
    ],
)
def test_figures_that_do_not_compare_are_named(
    override: str, words: str, small_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(small_store, "one", step=10)
    begin(small_store, "other", override, step=10)
    assert words in " ".join(told(capsys, "compare", "one", "other").split())


def test_other_volumes_are_named(small_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(small_store, "one", step=10)
    other = begin(small_store, "other", step=10)
    (other.path / "dataset.txt").write_text("f" * 64)
    assert "other volumes or splits" in told(capsys, "compare", "one", "other")


def test_what_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["runs"], ["compare", "one", "other"]):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 2
        assert "holds no run" in capsys.readouterr().err
