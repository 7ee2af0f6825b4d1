"""Output that changes: a block at the bottom of a terminal with lines above it, or lines alone in a file."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

from rich.console import Console, RenderableType
from rich.live import Live

from voxelstore.errors import printable

LOOK_EVERY_S = 0.25


class Screen:
    """Lines, and in a terminal a block below them.

    lock: held while anything is drawn, because Rich mixes up what two threads write; hold it to change what the block
    shows.
    """

    def __init__(self, block: RenderableType, console: Console | None = None, *, keeps_block: bool = True) -> None:
        self.console = console or Console(highlight=False)
        self.in_terminal = self.console.is_interactive
        self._live = Live(block, console=self.console, auto_refresh=False, transient=not keeps_block)
        self.lock = threading.RLock()

    def say(self, text: str) -> None:
        """Print a line; in a terminal it is wrapped between words. A closed terminal or pipe is no error."""
        text, soft_wrap = printable(text, keep="\n"), not self.in_terminal
        with self.lock, suppress(OSError):
            self.console.print(text, markup=False, highlight=False, soft_wrap=soft_wrap)

    @contextmanager
    def shown(self, look: Callable[[], None]) -> Iterator[None]:
        """In the block, show this and call `look` in a thread, several times a second and once at the end."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(LOOK_EVERY_S):
                self._draw(look)

        thread = threading.Thread(target=follow, name="screen", daemon=True)
        with self._above_the_block() if self.in_terminal else nullcontext():
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                self._draw(look)

    @contextmanager
    def _above_the_block(self) -> Iterator[None]:
        """In the block, what is printed or logged appears above the terminal's block, which this shows."""
        printed = sys.stdout, sys.stderr
        loggers = [logging.root, *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
        handlers = {handler for logger in loggers for handler in logger.handlers}
        moved = [one for one in handlers if isinstance(one, logging.StreamHandler) and one.stream in printed]
        self._live.start(refresh=True)  # it replaces sys.stdout and sys.stderr, which handlers do not notice
        before = [one.setStream(sys.stderr) for one in moved]
        try:
            yield
        finally:
            for handler, stream in zip(moved, before, strict=True):
                handler.setStream(stream)
            with suppress(OSError):
                self._live.stop()

    def _draw(self, look: Callable[[], None]) -> None:
        with self.lock, suppress(OSError):
            look()
            if self.in_terminal:
                self._live.refresh()
