"""Files that are on the disk, not only in the kernel's memory, before something else says that they are."""

from __future__ import annotations

import os
from pathlib import Path


def write_synced(file: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it. Raises OSError."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's names: those made, renamed or removed. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(file: Path, text: str) -> None:
    """Write a small file so that it is there as a whole or not at all."""
    part = file.with_name(f".{file.name}.part{os.getpid()}")
    write_synced(part, text.encode())
    part.replace(file)
    sync(file.parent)
