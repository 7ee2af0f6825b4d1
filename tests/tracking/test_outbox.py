"""Metrics that outlive an MLflow that is away: a locked database, a process that dies, records computed twice."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from matplotlib.figure import Figure
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from mrisr.tracking import runs as tracking
from mrisr.tracking.outbox import Outbox


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
        "import os, sys; from pathlib import Path; from mrisr.tracking.outbox import Outbox\n"
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


def test_a_record_that_is_damaged_or_refused_holds_nothing_up(
    run: tuple[tracking.Tracking, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _ = run
    run_id = tracking.start_run(place, {}, name="damaged")
    (tmp_path / "0000000001.json").write_text("")  # as a power loss leaves a file whose name was on the disk
    (tmp_path / "0000000002.json").write_text('{"kind": "metrics", "step": 1}')
    box = Outbox(place.uri, run_id, tmp_path)
    box.metrics(1, {"loss": 1.0})
    box.metrics(2, {"loss": 2.0})
    box.metrics(3, {"no name for MLflow?!": 1.0, "loss": 3.0})
    box.metrics(4, {"loss": 4.0})
    assert box.close(60) == 0
    assert history(place, run_id, "loss") == [(1, 1.0), (2, 2.0), (4, 4.0)]
    assert sorted(file.stem for file in tmp_path.glob("*.bad")) == ["0000000001", "0000000002", "0000000005"]
    told = capsys.readouterr().err
    assert "0000000001.json is no whole record" in told
    assert "0000000005.json is refused by MLflow" in told
    assert "is away" not in told


def test_a_record_does_not_overtake_another_while_it_is_written(
    run: tuple[tracking.Tracking, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = run
    run_id = tracking.start_run(place, {}, name="order")
    lock, rename = FileLock(tmp_path / ".lock"), Path.replace

    def slow(file: Path, target: Path) -> Path:
        done = rename(file, target)
        if target.name == "0000000002.json":  # the file is there, and now the thread may look for files
            lock.release()
            time.sleep(1.5)
        return done

    lock.acquire()
    box = Outbox(place.uri, run_id, tmp_path)
    monkeypatch.setattr(Path, "replace", slow)
    for step in (1, 2):
        box.metrics(step, {"loss": float(step)})
    assert box.close(60) == 0
    assert history(place, run_id, "loss") == [(1, 1.0), (2, 2.0)]


def test_a_refused_record_that_cannot_be_renamed_holds_nothing_up_either(
    run: tuple[tracking.Tracking, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, _ = run
    run_id = tracking.start_run(place, {}, name="read-only")
    rename = Path.replace

    def refuse(file: Path, target: Path) -> Path:
        if target.suffix == ".bad":
            raise OSError(errno.EROFS, "Read-only file system")
        return rename(file, target)

    monkeypatch.setattr(Path, "replace", refuse)
    box = Outbox(place.uri, run_id, tmp_path)
    box.metrics(1, {"no name for MLflow?!": 1.0})
    box.metrics(2, {"loss": 2.0})
    assert box.close(60) == 1, "the one that stays is the refused one"
    assert history(place, run_id, "loss") == [(2, 2.0)]
    assert [file.stem for file in files(tmp_path)] == ["0000000001"]
    assert f"it is kept as {tmp_path / '0000000001.json'}" in capsys.readouterr().err


def test_what_another_process_delivers_meanwhile_is_not_missed(
    run: tuple[tracking.Tracking, Path], tmp_path: Path
) -> None:
    place, _ = run
    run_id = tracking.start_run(place, {}, name="two")
    with FileLock(tmp_path / ".lock"):  # a worker that still lives, and delivers what it finds
        (tmp_path / "0000000001.json").write_text('{"kind": "metrics", "step": 1, "time": 5, "values": {"loss": 1.0}}')
        box = Outbox(place.uri, run_id, tmp_path)
        box.metrics(2, {"loss": 2.0})
        (tmp_path / "0000000001.json").unlink()
        assert box.close(0.2) == 1
    box = Outbox(place.uri, run_id, tmp_path)
    assert box.close(60) == 0
    assert history(place, run_id, "loss") == [(2, 2.0)]


def test_a_run_that_mlflow_does_not_have_is_told_from_an_mlflow_that_is_away(
    run: tuple[tracking.Tracking, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _ = run
    run_id = tracking.start_run(place, {}, name="deleted")
    tracking.client(place.uri).delete_run(run_id)
    box = Outbox(place.uri, run_id, tmp_path)
    box.metrics(1, {"loss": 1.0})
    told, deadline = "", time.monotonic() + 60
    while f"refuses run {run_id}" not in told and time.monotonic() < deadline:
        time.sleep(0.05)
        told += capsys.readouterr().err
    assert box.close(0.1) == 1
    told += capsys.readouterr().err
    assert f"refuses run {run_id}" in told
    assert "is away" not in told
    with pytest.raises(ValueError, match=f"refuses run {run_id}.*restore the run, or delete {tmp_path}"):
        tracking.resume_if_reachable(place.uri, run_id, tmp_path / "mlflow_run_id.txt")
    tracking.client(place.uri).restore_run(run_id)
    assert Outbox(place.uri, run_id, tmp_path).close(60) == 0
    assert history(place, run_id, "loss") == [(1, 1.0)]


def test_a_run_goes_on_and_ends_without_an_mlflow_that_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "RESUME_S", 0.3)
    monkeypatch.setattr(tracking, "FINISH_S", 0.3)
    absent = "http://127.0.0.1:9"
    tracking.resume_if_reachable(absent, "0" * 32, tmp_path / "mlflow_run_id.txt")
    tracking.finish_if_reachable(absent, "0" * 32, "KILLED")
    told = capsys.readouterr().err
    assert "is away (TimeoutError: no answer within 0.3 s); the run goes on" in told
    assert "is away: run 00000000000000000000000000000000 keeps its old status there" in told


def test_many_records_are_delivered_by_few_calls(
    run: tuple[tracking.Tracking, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = run
    run_id = tracking.start_run(place, {}, name="many")
    sizes: list[int] = []
    log_batch = MlflowClient.log_batch

    def counted(client: MlflowClient, *arguments: Any, metrics: list[Metric]) -> Any:
        sizes.append(len(metrics))
        return log_batch(client, *arguments, metrics=metrics)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    with FileLock(tmp_path / ".lock"):
        box = Outbox(place.uri, run_id, tmp_path)
        for step in range(300):
            box.metrics(step, {"loss": float(step), "norm": 1.0})
            if step == 249:
                box.figure(step, "validation", Figure())
    assert box.close(60) == 0
    assert sizes == [400, 100, 100], "at most 200 records together, none across a picture"
    assert history(place, run_id, "loss") == [(step, float(step)) for step in range(300)]
    assert len(history(place, run_id, "norm")) == 300
    assert tracking.client(place.uri).list_artifacts(run_id, "pictures")
