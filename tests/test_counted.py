"""A loop over items shows a bar in a terminal, lines elsewhere, and nothing for no items."""

from __future__ import annotations

import sys

import pytest

from tests.terminal import drawn, plain

LOOP = """
import sys
from mrisr import counted
counted.LINE_EVERY_S = 0
with counted.counted("converting", int(sys.argv[1])) as after:
    for number in range(int(sys.argv[1])):
        after(f"sub-{number} converted", 1)
print("3 converted")
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_for_no_items(terminal: bool) -> None:
    assert drawn([sys.executable, "-c", LOOP, "0"], terminal=terminal).split("\n")[0].strip() == "3 converted"


def test_a_pipe_gets_lines_with_the_time_left() -> None:
    lines = drawn([sys.executable, "-c", LOOP, "3"], terminal=False).splitlines()
    assert lines == [
        "converting: 1 of 3, about 0:00:00 left; sub-0 converted",
        "converting: 2 of 3, about 0:00:00 left; sub-1 converted",
        "3 converted",
    ]


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    raw = drawn([sys.executable, "-c", LOOP, "3"], terminal=True)
    frames = plain(raw)
    assert "converting" in frames
    assert "3/3" in frames
    assert "sub-2 converted" in frames
    assert raw.rindex("\x1b[2K") > raw.rindex("3/3"), "erased"
    assert frames.rstrip().endswith("3 converted")
