"""Atomic writes of files and folders, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

TEMPORARY = ".writing-"
REPLACED = ".replaced-"


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to a hidden sibling, flush it to the disk, and rename it to `path`."""
    temporary = _sibling(path, TEMPORARY)
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


def real_path(path: Path) -> Path:
    """`path` with its links followed as far as possible. `Path.resolve` fails for a link to itself."""
    return Path(os.path.realpath(path))


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError for special files: a pipe would block the reader."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def atomic_write_json(path: Path, value: Any) -> None:
    """`atomic_write` of indented JSON with sorted keys. NaN and infinity are refused."""
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")


@contextmanager
def locked(path: Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Lock a file until the process ends. Yields False if not `wait` and another process holds the lock."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden sibling of `path` to write into. It replaces `path` at the end and is deleted on an error."""
    temporary = _sibling(path, TEMPORARY)
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
    """Rename a folder to a hidden name, which is atomic, then delete it."""
    doomed = _sibling(path, TEMPORARY)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def clean(folder: Path) -> list[str]:
    """Delete what killed writers left, and restore folders that were moved aside. No writer may run."""
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
        replaced = _sibling(path, REPLACED)
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
        # Another writer of the same folder was faster. The next attempt replaces its folder.


def _sibling(path: Path, prefix: str) -> Path:
    return path.with_name(f"{prefix}{uuid.uuid4().hex[:12]}-{path.name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
