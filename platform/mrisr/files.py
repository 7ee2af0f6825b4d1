"""Small files that are either complete or absent, even after a kill or a power failure."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from filelock import FileLock, Timeout


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file through a hidden file in its folder, so that readers see its old content or its new one, never a
    part. durable: wait until the disk has both; without it a power failure may lose the file. Raises OSError.
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


_REMEDIES = {
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another disk",
    errno.EISDIR: "give the name of a file in it",
    errno.ENOTDIR: "choose a path without a file as one of its folders",
    errno.ENOENT: "check the path",
    errno.ELOOP: "remove the link that leads to itself",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def describe_os_error(error: OSError, path: str | Path | None = None) -> str:
    """An OSError as one line: the file (or `path`), the reason and the remedy."""
    if error.errno is None:
        return str(error)
    place = str(path or error.filename or "")
    if not place.isprintable():
        place = repr(place)[1:-1]  # a name may hold characters that a terminal acts on
    remedy = _REMEDIES.get(error.errno, "check the disk and the path")
    return f"{place and f'{place}: '}{error.strerror}; {remedy}"


def check_output(path: Path, *, folder: bool = False, space: int = 0) -> None:
    """Before long work, raise an OSError if a file (or files in a folder) could not be written to `path`. space: bytes
    that are needed. Nothing is left at `path`.
    """
    if not folder and path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    place = path if folder else path.parent
    while not os.path.lexists(place):
        place = place.parent
    try:
        TemporaryFile(dir=place).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from None
    if space > (free := shutil.disk_usage(place).free):
        text = f"has {free / 2**20:.0f} MiB of free space, and about {space / 2**20:.0f} MiB are needed"
        raise OSError(errno.ENOSPC, text, str(place))


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


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file. Those of other machines are seen if the file system shares locks."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def write_synced(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file in place and wait until the disk has it. Raises OSError."""
    with path.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
