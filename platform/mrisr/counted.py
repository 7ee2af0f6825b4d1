"""Shows how far a loop over items is: a bar in a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from voxelstore.errors import printable

LINE_EVERY_S = 10.0


@contextmanager
def counted(doing: str, total: int, console: Console | None = None) -> Iterator[Callable[[str, int], None]]:
    """Yields a function to call after items, with a word about them and their number. The bar is removed at the end;
    nothing is shown for no items.
    """
    console = console or Console(highlight=False)
    if not total:
        yield lambda text, count: None
    elif console.is_interactive:
        columns = (
            TextColumn(doing, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            row = bar.add_task("", total=total, last="")
            yield lambda text, count: bar.update(row, advance=count, last=printable(text))
    else:
        yield _lines(doing, total, console)


def _lines(doing: str, total: int, console: Console) -> Callable[[str, int], None]:
    begun = told = time.monotonic()
    done = 0

    def after(text: str, count: int) -> None:
        nonlocal told, done
        done, now = done + count, time.monotonic()
        if now - told >= LINE_EVERY_S and done < total:
            told, left = now, int((now - begun) / done * (total - done))
            time_left = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
            line = f"{doing}: {done:,} of {total:,}, about {time_left} left; {printable(text)}"
            console.print(line, markup=False, soft_wrap=True)

    return after
