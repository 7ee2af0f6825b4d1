"""The progress of a run as files in its folder: workers and driver write them, a display follows them.

Workers do not print. Ray would pass their lines on with prefixes, and lose the last ones of a worker that is killed.
A record is in its file before the next step begins, so whatever happens to the process, it is shown.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mrisr.files import write_atomic

Tell = Callable[[str], None]  # says one line to the user

POSITION_EVERY_S = 1.0
_POSITION = "position.json"


class Position(NamedTuple):
    """Where a run is. doing: a phase of the schedule, or `validation`, or `checkpoint`; time: seconds since 1970."""

    step: int
    doing: str
    time: float


class ProgressLog:
    """One process's records in a folder, which is made if missing. No method raises because of a full disk.

    writer: names the file; processes on different machines must not append to the same one. Kinds of records: `note`
    (text), `workers` (workers, step), `metrics` (step, phase, values), `validation` (step, figures, best, picture) and
    `checkpoint` (step).
    """

    def __init__(self, folder: Path, writer: str) -> None:
        self._file, self._position = folder / f"{writer}.jsonl", folder / _POSITION
        self._next_position = 0.0
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab+") as file:
                if file.tell() and (file.seek(-1, 2), file.read())[1] != b"\n":
                    file.write(b"\n")  # a power failure cut the last record off

    def note(self, text: str) -> None:
        """Say something to the user. If the disk refuses it, it goes to stderr."""
        if not self.record("note", text=text):
            print(text, file=sys.stderr, flush=True)

    def record(self, kind: str, **values: Any) -> bool:
        """Append a record. Returns whether it was written."""
        line = json.dumps({"time": time.time(), "kind": kind, **values})
        try:
            with self._file.open("a") as file:
                file.write(f"{line}\n")
        except OSError:
            return False
        return True

    def position(self, step: int, doing: str, *, now: bool = False) -> None:
        """Where the run is. Written every POSITION_EVERY_S seconds at most, unless `now`: a step costs a look at the
        clock.
        """
        clock = time.monotonic()
        if now or clock >= self._next_position:
            self._next_position = clock + POSITION_EVERY_S
            with suppress(OSError):
                text = json.dumps(Position(step, doing, time.time())._asdict())
                write_atomic(self._position, text, durable=False)


class ProgressReader:
    """Follows the records in a folder. from_now: without those that are there already."""

    def __init__(self, folder: Path, *, from_now: bool) -> None:
        self.folder = folder
        self._read = {file: file.stat().st_size for file in self._files()} if from_now else {}

    def new(self) -> list[dict[str, Any]]:
        """The records since the last call, of all writers, in the order of their times."""
        found = [record for file in self._files() for record in self._new_of(file)]
        return sorted(found, key=lambda record: float(record["time"]))

    def position(self) -> Position | None:
        try:
            return Position(**json.loads((self.folder / _POSITION).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def _new_of(self, file: Path) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        with suppress(OSError), file.open("rb") as stream:
            # A shorter file is a new one: another configuration has taken the folder over.
            read, size = self._read.get(file, 0), stream.seek(0, 2)
            start = stream.seek(read if read <= size else 0)
            text = stream.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[file] = start + len(whole)
            for line in whole.splitlines():
                with suppress(ValueError):
                    records.append(json.loads(line))
        return records
