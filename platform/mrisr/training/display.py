"""Shows a run's progress in the driver: a block that changes in place in a terminal, else a line per record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrisr.config import Experiment
from mrisr.screen import Screen
from mrisr.training.progress import ProgressReader, Tell
from mrisr.training.status import Status, line


@contextmanager
def shown(experiment: Experiment, folder: Path) -> Iterator[Tell]:
    """In the block, show what is recorded in `folder` (of a ProgressLog). Yields a function that prints a line.

    At the end all records are shown, also those of workers that died.
    """
    status, reader = Status(experiment), ProgressReader(folder, from_now=True)
    screen = Screen(status)

    def look() -> None:
        for record in reader.new():
            status.take(record)
            text = line(record, status.total)
            if text is not None and not (screen.in_terminal and record["kind"] == "metrics"):
                screen.say(text)
        status.at(reader.position())

    with screen.shown(look):
        try:
            yield screen.say
        finally:
            status.ended = True
