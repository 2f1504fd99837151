"""Writing files so that a reader never sees half of one, locking folders, hashing."""

import errno
import hashlib
import multiprocessing
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

_PARTIAL = ".partial-"

UNGUARDED = (
    "worker processes load the script that started them: put its work below if __name__ == '__main__':"
)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which it replaces only if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_PARTIAL}{uuid.uuid4().hex}{path.suffix}")
    try:
        temporary.touch()
        yield temporary
        with open(temporary, "r+b") as f:  # Windows brings only what may be written to the disk
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # "no space left on device" alone does not say where
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def acquire(lock: FileLock) -> AcquireReturnProxy:
    """Take it now. Raises Timeout, or an OSError that says where there are no locks."""
    try:
        return lock.acquire(timeout=0)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            error.filename = lock.lock_file
            error.strerror = "no locks in this file system: take outputs elsewhere, or mount it with -o flock"
        raise


class Busy(RuntimeError):
    """Another process works in this folder."""


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a folder exclusively. The system releases the lock when its holder exits, even by a crash.

    Raises:
        Busy: another process holds it, and ``wait`` is False.
        RuntimeError: this is a worker process that is still loading the script of its parent.
        OSError: the file system has no locks.
    """
    # such a worker would wait for its own parent for ever
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(UNGUARDED)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        acquire(lock)
    except Timeout:
        if not wait:
            raise Busy(f"{folder}: another process works here now; wait for it or take another") from None
        warnings.warn(f"waiting for another process that works in {folder}", stacklevel=4)
        lock.acquire(poll_interval=0.2)
    try:
        for path in folder.rglob(f"{_PARTIAL}*"):  # half-written by processes that were killed
            path.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write the text, unless the file holds it already (a shared folder may be read-only)."""
    data = text.encode("utf-8")
    if path.is_file() and path.read_bytes() == data:
        return
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """The content of a text file; a ValueError names one that is not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path}: not a text file ({error})") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, with their numbers; either line ending."""
    return [(n, line.strip()) for n, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
