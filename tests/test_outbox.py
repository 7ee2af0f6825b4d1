"""Metrics that outlive an MLflow that is away: a locked database, a process that dies, records computed twice."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mrisr import tracking
from mrisr.outbox import Outbox


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[tracking.Tracking, Path]:
    root = tmp_path_factory.mktemp("outbox")
    return tracking.prepare(f"sqlite:///{root}/mlflow.db?timeout=0.2", root, "outbox"), root


def history(place: tracking.Tracking, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracking.client(place.uri).get_metric_history(run_id, key)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.json"))


def test_everything_is_delivered_in_order(run: tuple[tracking.Tracking, Path], tmp_path: Path) -> None:
    place, _ = run
    run_id = tracking.start_run(place, {}, name="orderly")
    box = Outbox(place.uri, run_id, tmp_path)
    for step in range(5):
        box.metrics(step, {"loss": step / 2})
    box.figure(4, "validation", Figure())
    assert box.close(60) == 0
    assert history(place, run_id, "loss") == [(step, step / 2) for step in range(5)]
    found = tracking.client(place.uri).list_artifacts(run_id, "pictures")
    assert [item.path for item in found] == ["pictures/00000004-validation.png"]
    assert not files(tmp_path)
    assert not list((tmp_path / "pictures").iterdir())


def test_an_absence_is_survived_by_the_records_and_not_noticed_by_the_step(
    run: tuple[tracking.Tracking, Path], tmp_path: Path
) -> None:
    place, root = run
    run_id = tracking.start_run(place, {}, name="away")
    lock = sqlite3.connect(root / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    # A process logs and is gone, as by kill -9, before MLflow comes back.
    code = (
        "import os, sys; from pathlib import Path; from mrisr.outbox import Outbox\n"
        "box = Outbox(sys.argv[1], sys.argv[2], Path(sys.argv[3]))\n"
        "[box.metrics(step, {'loss': float(step)}) for step in range(6)]\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, place.uri, run_id, str(tmp_path)], timeout=120, check=False)
    assert done.returncode == 9
    assert len(files(tmp_path)) == 6
    # The next process computes steps 4 and 5 again and goes on; MLflow is still away when it begins.
    box = Outbox(place.uri, run_id, tmp_path)
    for step in range(4, 8):
        box.metrics(step, {"loss": float(step)})
    time.sleep(1.0)
    assert len(files(tmp_path)) == 10
    lock.execute("ROLLBACK")
    assert box.close(90) == 0
    assert history(place, run_id, "loss") == [(step, float(step)) for step in range(8)]


def test_what_is_left_at_the_end_waits_for_the_next_start(
    run: tuple[tracking.Tracking, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _ = run
    run_id = tracking.start_run(place, {}, name="left")
    absent = Outbox("http://127.0.0.1:9", run_id, tmp_path)  # the discard port: nobody answers
    absent.metrics(1, {"loss": 0.5})
    assert absent.close(0.5) == 1
    assert "the next start delivers them" in capsys.readouterr().err
    assert len(files(tmp_path)) == 1
