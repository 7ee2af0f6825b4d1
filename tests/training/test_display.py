"""The display of a run, drawn by a real process into a terminal and into a pipe."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.terminal import drawn, plain

from mrisr.config import load_experiment
from mrisr.engine.schedule import Schedule
from mrisr.metrics import METRICS
from mrisr.training.progress import Position
from mrisr.training.status import Status, clock, line, stage

# A driver that shows a run, whose records another process writes: the worker, killed at the end.
DRIVER = """
import subprocess, sys
from pathlib import Path
from mrisr.config import load_experiment
from mrisr.training.display import shown
experiment = load_experiment(None, ["name=shown", "schedule.total_steps=400", "schedule.pretrain_steps=200"])
folder = Path(sys.argv[1])
with shown(experiment, folder) as say:
    say("shown: 400 steps")
    subprocess.run([sys.executable, "-c", sys.argv[2], str(folder)])
print("after")
"""
LOG = """
import logging, sys
logging.basicConfig(format="%(message)s")
from mrisr.screen import Screen
screen = Screen("the block")
with screen.shown(lambda: None):
    logging.warning("a warning of a library")
    print("a line of a library")
logging.warning("later")
"""
WORKER = """
import os, signal, sys
from pathlib import Path
from mrisr.metrics import METRICS
from mrisr.training.progress import ProgressLog
log = ProgressLog(Path(sys.argv[1]), "rank-0")
log.record("workers", workers=2, step=0)
speed = {"throughput/steps_per_second": 2.0, "throughput/patches_per_second": 8.0, "throughput/data_wait_share": 0.25}
log.record("metrics", step=40, phase="pretrain", values={"pretrain/loss": 0.125, **speed})
figures = {key: value for name in METRICS for key, value in ((name, 30.5), (f"{name}_gain", 0.25))}
log.record("validation", step=50, figures=figures, best=True, picture="/runs/shown/validation.png")
log.record("metrics", step=300, phase="critic", values={"critic/loss": -1.5, "generator/loss": 0.5, **speed})
log.record("checkpoint", step=300)
log.note("rank 3 says [this] in any case")
log.position(300, "critic", now=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def command(folder: Path) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(folder), WORKER]


def test_a_pipe_gets_a_line_for_all_that_a_person_needs(tmp_path: Path) -> None:
    lines = drawn(command(tmp_path), terminal=False).splitlines()
    assert lines[0] == "shown: 400 steps"
    assert lines[1] == "step      40/400  pretrain loss 0.12500  8.0 patches/s  data wait 25%  0:03:00 left"
    assert lines[2].startswith("step      50 validation  ")
    assert "PSNR 30.50 dB (+0.25 dB)" in lines[2]
    assert lines[2].endswith("against the gain-corrected input  best so far")
    assert lines[3].startswith("step     300/400  critic loss -1.50000, generator loss 0.50000  8.0 patches/s")
    assert lines[4:] == ["rank 3 says [this] in any case", "after"]


def test_a_terminal_gets_a_block_that_ends_with_the_newest_of_everything(tmp_path: Path) -> None:
    raw = drawn(command(tmp_path), terminal=True)
    assert "\x1b[" in raw, "drawn in place"
    frames = plain(raw)
    last = frames[frames.rindex("shown  ") :]
    for text in ("step 300 of 400", "WGAN-GP: ended", "8.0 patches/s  data wait 25%", "critic loss -1.50000",
                 "best, step 50", "30.50 dB", "+0.25 dB", "/runs/shown/validation.png", "of step 300"):  # fmt: skip
        assert text in last, last
    assert "rank 3 says [this] in any case" in frames
    assert "pretrain loss 0.12500  8.0 patches/s" not in frames, "a line per record would push the block away"
    assert max(len(line) for line in frames.splitlines()) <= 80
    assert last.rstrip().endswith("after")


def test_what_libraries_log_appears_above_the_block(tmp_path: Path) -> None:
    frames = plain(drawn([sys.executable, "-c", LOG], terminal=True))
    lines = [line for line in frames.splitlines() if line.strip()]
    assert lines[-2:] == ["the block", "later"]
    for text in ("a warning of a library", "a line of a library"):
        assert text in lines, "on a line of its own"
        assert lines.index(text) < len(lines) - 2


@pytest.mark.parametrize(("seconds", "text"), [(59.9, "0:00:59"), (3661, "1:01:01"), (90061, "1 d 1:01:01")])
def test_times_are_those_of_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_the_stage_is_that_of_the_next_step() -> None:
    schedule = Schedule(total_steps=400, pretrain_steps=200)
    assert [stage(schedule, step) for step in (0, 199, 200, 400)] == ["L1", "L1", "WGAN-GP", "WGAN-GP"]
    assert schedule.describe() == "400 steps, the first 200 of them L1, then WGAN-GP"
    assert Schedule(total_steps=9, pretrain_steps=9).describe() == "9 steps, all L1"
    assert line({"kind": "checkpoint", "step": 3}, 400) is None


def test_the_time_left_follows_from_the_worker_clock_whatever_this_machine_says() -> None:
    status = Status(load_experiment(None, ["schedule.total_steps=400", "schedule.pretrain_steps=400"]))
    assert status.seconds_left is None
    for step, seconds in ((100, 0.0), (110, 20.0)):
        status.at(Position(step, "pretrain", 1000.0 + seconds))  # decades ago
    assert status.seconds_left == pytest.approx(2 * 290, abs=1)
    status.take({"kind": "workers", "workers": 1, "step": 110})
    assert status.seconds_left is None, "another group, another speed"
    for step, seconds in ((110, 0.0), (120, 40.0)):
        status.at(Position(step, "pretrain", 2000.0 + seconds))
    assert status.seconds_left == pytest.approx(4 * 280, abs=1)
    status.ended = True
    assert status.seconds_left is None


def test_a_validation_that_is_not_the_best_of_a_resumed_run_is_not_called_so() -> None:
    status = Status(load_experiment(None, ["schedule.total_steps=400", "schedule.pretrain_steps=400"]))
    figures = {key: 30.5 for name in METRICS for key in (name, f"{name}_gain")}
    shown = []
    for step, best in ((250, False), (300, True), (350, False)):
        status.take({"kind": "validation", "step": step, "figures": figures, "best": best, "picture": None})
        drawn_to = io.StringIO()
        Console(file=drawn_to, width=80).print(status)
        shown.append(re.findall(r"(?:last|best), step \d+", drawn_to.getvalue()))
    assert shown == [["last, step 250"], ["best, step 300"], ["last, step 350", "best, step 300"]]
