"""Files that are whole or not there: atomic writes, locks, temporary folders."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".writing-"
REPLACED = ".replaced-"


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to a hidden sibling, flush it to the disk, and rename it to `path`."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def atomic_write_json(path: Path, value: Any) -> None:
    """`atomic_write` of indented JSON with sorted keys; NaN and infinity are refused."""
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")


@contextmanager
def locked(path: Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory lock on the file `path`; yields False when `wait` is off and another process holds it.

    The kernel releases it when its process dies, however it dies: no lock is ever stale.
    """
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden sibling of `path` to write into; it becomes `path` at the end, and vanishes on an error."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        _rename_over(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Make a folder vanish in one step, then delete what it held."""
    doomed = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def clean(folder: Path) -> list[str]:
    """Remove what killed writers left in `folder`, and bring back a folder whose replacement never came.

    Only to be called while no writer is at work. Returns the names removed.
    """
    removed = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(REPLACED):
            original = entry.with_name(entry.name[len(REPLACED) + 13 :])
            if not original.exists():
                os.rename(entry, original)
                continue
        elif not entry.name.startswith(TEMPORARY):
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        removed.append(entry.name)
    return removed


def _rename_over(temporary: Path, path: Path) -> None:
    while True:
        replaced = path.with_name(f"{REPLACED}{uuid.uuid4().hex[:12]}-{path.name}")
        with suppress(FileNotFoundError):
            os.rename(path, replaced)
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.exists():
                if replaced.exists():
                    os.rename(replaced, path)
                raise
        shutil.rmtree(replaced, ignore_errors=True)
        if not temporary.exists():
            return
        # Another writer of the same folder came in between; what it wrote is replaced in the next round.


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
