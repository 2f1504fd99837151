"""Writing files so that a reader never sees half of one, locking folders, hashing."""

import csv
import errno
import hashlib
import io
import multiprocessing
import os
import unicodedata
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from videossl_core.paths import places

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
    """The content of a text file; a ValueError names one that is not text, a FileNotFoundError none."""
    try:
        with open(path, "rb") as f:  # spreadsheets write "Unicode text" in UTF-16
            encoding = "utf-16" if f.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return path.read_text(encoding=encoding)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"{error.strerror} ({places()})", str(path)) from None
    except (UnicodeError, IsADirectoryError) as error:
        raise ValueError(f"{path}: not a text file in UTF-8; save it as that ({error})") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, with their numbers; either line ending, letters composed."""
    text = unicodedata.normalize("NFC", read_text(path))
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a CSV that are not empty, with their line numbers; each has as many cells as the first. As
    spreadsheets have it, semicolons or tabs may separate the cells, and empty ones may follow those.

    Raises:
        ValueError: it is not text, a row has more or fewer cells, or quotes do not match; file and line are
            named.
    """
    text = read_text(path)
    first = next(filter(str.strip, text.splitlines()), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in filter(any, reader):
            header = rows[0][1] if rows else []
            while not cells[-1] and len(cells) > len(header):
                cells.pop()
            if rows and len(cells) != len(header):
                what = f"{len(cells)} cells instead of {len(header)} ({delimiter.join(header)})"
                raise csv.Error(f'{what}; a name that holds {delimiter!r} is put between " and "')
            rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: not readable as CSV: {error}") from None
    return rows


def spelled_as(names: Iterable[str]) -> Callable[[str], str]:
    """A function that gives a name as one of these spells its accents, and any other as it is."""
    exact = set(names)
    composed = {unicodedata.normalize("NFC", name): name for name in exact if not name.isascii()}
    return lambda name: name if name in exact else composed.get(unicodedata.normalize("NFC", name), name)
