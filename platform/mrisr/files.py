"""Small files that are complete or absent, also after a kill or a power failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file so that readers see its old content or its new one, never a part.

    The content goes into a hidden file in the same folder, which is then renamed. durable: wait until the disk has
    both; without it a power failure may lose the file. Raises OSError.
    """
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        write_synced(part, content, durable=durable)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


@contextmanager
def locked(path: Path, refusal: Exception) -> Iterator[None]:
    """Hold the lock of the file `path`, or until the process ends. Raises `refusal` if another process holds it."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise refusal from None
    try:
        yield
    finally:
        lock.release()


def write_synced(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file in place and wait until the disk has it. Raises OSError."""
    with path.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's list of names. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
