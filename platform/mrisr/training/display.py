"""Shows a run's progress in the driver: a block that changes in place in a terminal, else a line per record."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from mrisr.config import Experiment
from mrisr.training.progress import ProgressReader, Tell
from mrisr.training.status import Status, line

LOOK_EVERY_S = 0.25


@contextmanager
def shown(experiment: Experiment, folder: Path, console: Console | None = None) -> Iterator[Tell]:
    """In the block, show what is recorded in `folder` (of a ProgressLog). Yields a function that prints a line.

    At the end all records are shown, also those of workers that died. A closed terminal or pipe ends the display, not
    the block.
    """
    console = console or Console(highlight=False)
    status, reader, ended = Status(experiment), ProgressReader(folder, from_now=True), threading.Event()

    def say(text: str) -> None:
        with suppress(OSError):
            # A terminal's lines are wrapped between words; a file's are not wrapped.
            console.print(text, markup=False, highlight=False, soft_wrap=not console.is_interactive)

    def look() -> None:
        for record in reader.new():
            status.take(record)
            if (text := line(record, status.total)) is not None and not (live and record["kind"] == "metrics"):
                say(text)
        status.at(reader.position())

    def follow() -> None:
        while not ended.wait(LOOK_EVERY_S):
            look()

    live = Live(status, console=console, refresh_per_second=4) if console.is_interactive else None
    thread = threading.Thread(target=follow, name="display", daemon=True)
    with live or nullcontext():
        thread.start()
        try:
            yield say
        finally:
            ended.set()
            thread.join()
            look()
            status.ended = True
