"""In the driver: SIGTERM becomes a file that the workers find after their next step (see `stopping`)."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mrisr.training.run_folder import RunFolder


@contextmanager
def stop_on_sigterm(folder: RunFolder) -> Iterator[None]:
    """The first SIGTERM asks the workers to save and stop; a second one ends the driver at once."""
    file = folder.stop_request
    file.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have signal handlers; a trial's process belongs to Ray Tune
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if file.exists():
            sys.exit(128 + number)
        file.touch()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        file.unlink(missing_ok=True)
