"""What workers record is read whole and in order, also after a kill, in a new group and on a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mrisr.training.progress import ProgressLog, ProgressReader

WORKER = """
import os, signal, sys
from pathlib import Path
from mrisr.training.progress import ProgressLog
log = ProgressLog(Path(sys.argv[1]), "rank-0")
log.note("the critic is dead")
log.record("metrics", step=3, values={"loss": 0.5})
log.position(3, "pretrain")
log.note("last words")
os.kill(os.getpid(), signal.SIGKILL)
"""


def texts(reader: ProgressReader) -> list[str]:
    return [record["text"] for record in reader.new() if record["kind"] == "note"]


def test_nothing_that_a_killed_worker_said_is_lost(tmp_path: Path) -> None:
    reader = ProgressReader(tmp_path, from_now=True)
    done = subprocess.run([sys.executable, "-c", WORKER, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "", "")
    records = reader.new()
    assert [record["kind"] for record in records] == ["note", "metrics", "note"]
    assert records[1]["values"] == {"loss": 0.5}
    assert records[2]["text"] == "last words"
    position = reader.position()
    assert position is not None
    assert (position.step, position.doing) == (3, "pretrain")
    assert reader.new() == []


def test_writers_are_merged_by_time_and_a_later_reader_begins_where_it_starts(tmp_path: Path) -> None:
    first, driver = ProgressLog(tmp_path, "rank-0"), ProgressLog(tmp_path, "driver")
    reader = ProgressReader(tmp_path, from_now=False)
    for number in range(4):
        (driver if number % 2 else first).note(str(number))
    assert texts(reader) == ["0", "1", "2", "3"]
    resumed = ProgressReader(tmp_path, from_now=True)
    ProgressLog(tmp_path, "rank-0").note("of the next start")
    assert texts(resumed) == texts(reader) == ["of the next start"]


def test_a_record_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    ProgressLog(tmp_path, "rank-0").note("whole")
    with (tmp_path / "rank-0.jsonl").open("a") as file:
        file.write('{"time": 1.0, "kind": "no')
    reader = ProgressReader(tmp_path, from_now=False)
    assert texts(reader) == ["whole"]
    ProgressLog(tmp_path, "rank-0").note("after the restart")
    assert texts(reader) == ["after the restart"]


def test_a_folder_that_another_configuration_takes_over_is_read_from_its_beginning(tmp_path: Path) -> None:
    ProgressLog(tmp_path, "rank-0").note("a long record of the run before")
    reader = ProgressReader(tmp_path, from_now=True)
    (tmp_path / "rank-0.jsonl").unlink()
    ProgressLog(tmp_path, "rank-0").note("new")
    assert texts(reader) == ["new"]


def test_a_position_is_written_once_a_second_at_most_unless_it_must_be(tmp_path: Path) -> None:
    log, reader, steps = ProgressLog(tmp_path, "rank-0"), ProgressReader(tmp_path, from_now=False), []
    for step in range(200):
        log.position(step, "pretrain")
        steps.append(reader.position())
    assert len(set(steps)) < 200
    log.position(200, "validation", now=True)
    position = reader.position()
    assert position is not None
    assert (position.step, position.doing) == (200, "validation")


def test_a_disk_that_refuses_leaves_the_user_the_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    log = ProgressLog(tmp_path / "file" / "progress", "rank-0")
    log.note("free some space")
    log.record("metrics", step=1, values={})
    log.position(1, "pretrain")
    assert capsys.readouterr().err == "free some space\n"
    assert ProgressReader(tmp_path / "nowhere", from_now=True).new() == []
    assert os.listdir(tmp_path) == ["file"]
