"""The display of a search, drawn by a real process into a terminal and into a pipe."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.terminal import drawn, plain

SEARCH = """
import sys, time
from pathlib import Path
from rich.console import Console
from mrisr.training.progress import ProgressLog
from mrisr.tuning.display import SearchDisplay
from mrisr.tuning.plan import plan_search
from mrisr.tuning.summary import SearchSummary
space = "training.gp_weight={log_uniform: [1, 100], fixed: 10}"
steps = ["schedule.total_steps=40", "schedule.pretrain_steps=0", "schedule.critic_warmup_steps=0"]
plan = plan_search(None, ["name=some", f"output={sys.argv[1]}", "tuning.trials=4", space, *steps])
display = SearchDisplay(plan, SearchSummary([], [], 4), Console(highlight=False))
with display.shown():
    for number in range(3):
        display.started(f"trial-000{number}", {"training.gp_weight": 10.0 + number})
    log = ProgressLog(plan.trials_folder / "trial-0001" / "progress", "rank-0")
    log.note("the critic is dead")
    log.position(17, "critic", now=True)
    display.validated("trial-0000", 40, {"psnr": 31.25})
    display.validated("trial-0002", 10, {"psnr": 29.5})
    display.ended("trial-0000", "finished")
    display.ended("trial-0002", "stopped early")
    time.sleep(1.5)
    display.ended("trial-0001", "failed", "its loss is not finite")
    display.ended("trial-0003", "failed", "its process did not start")
"""


def test_a_pipe_gets_a_line_for_every_event(tmp_path: Path) -> None:
    lines = drawn([sys.executable, "-c", SEARCH, str(tmp_path)], terminal=False).splitlines()
    events = [line for line in lines if "critic is dead" not in line]
    assert events == [
        "trial-0000 starts: gp_weight=10", "trial-0001 starts: gp_weight=11", "trial-0002 starts: gp_weight=12",
        "trial-0000 step 40/40: best psnr 31.2500", "trial-0002 step 10/40: best psnr 29.5000",
        "trial-0000 finished; 1 of 4 trials done", "trial-0002 stopped early at step 10; 2 of 4 trials done",
        "trial-0001 failed: its loss is not finite; 3 of 4 trials done",
        "trial-0003 failed: its process did not start; 4 of 4 trials done",
    ]  # fmt: skip
    assert "trial-0001: the critic is dead" in lines


def test_a_terminal_gets_a_table_that_is_redrawn(tmp_path: Path) -> None:
    frames = plain(drawn([sys.executable, "-c", SEARCH, str(tmp_path)], terminal=True))
    tables = frames.split("some-search: ")[1:]
    running = next(table for table in tables if table.startswith("2 of 4 trials done") and "17/40" in table)
    rows = [line.split() for line in running.splitlines() if line.startswith("trial-")]
    assert rows == [
        ["trial-0001", "critic", "17/40", "gp_weight=11"],
        ["trial-0000", "finished", "40/40", "31.25", "dB", "gp_weight=10"],
        ["trial-0002", "stopped", "early", "10/40", "29.50", "dB", "gp_weight=12"],
    ], "running ones first, then the best"
    assert "trial-0001: the critic is dead" in frames
    assert "trial-0001 failed: its loss is not finite" in frames
    assert "trial-0000 starts" not in frames
    assert max(len(line) for line in frames.splitlines()) <= 80
