"""Runs a command with its output into a terminal of 80 columns or into a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def drawn(
    command: Sequence[str], *, terminal: bool, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """What a command that must succeed wrote to its output; for a terminal with escape codes, see `plain`."""
    given = {**(environment or os.environ), "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    if not terminal:
        done = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout
    master, slave = pty.openpty()
    process = subprocess.Popen(command, cwd=cwd, env=given, stdout=slave, stderr=slave)
    os.close(slave)
    found = b""
    while True:
        try:
            found += os.read(master, 65536)
        except OSError:  # the other side is closed
            break
    os.close(master)
    assert process.wait() == 0, plain(found.decode())
    return found.decode()


def plain(raw: str) -> str:
    """A terminal's output without escape codes, every redrawing of the block below the one before."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw).replace("\r", "\n")
