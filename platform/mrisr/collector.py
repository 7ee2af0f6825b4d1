"""How often Python's garbage collector runs while libraries are imported: torch, MLflow and Ray import in two thirds
of the time if it does not walk through what is there already after every 700 new objects.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 10_000


def collect_rarely() -> None:
    """For a process that trains nothing: collect rarely, and not once more at its end."""
    gc.set_threshold(NEW_OBJECTS)
    atexit.register(gc.freeze)


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Collect rarely in the block. Afterwards as before, but never again what the block has imported."""
    before = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*before)
