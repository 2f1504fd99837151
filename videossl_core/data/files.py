"""Writing files so that a reader never sees half of one, locking folders, hashing."""

import hashlib
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parents[2]
"""The project folder; every relative path in a parameter is resolved from here, whatever the kernel's working
directory (papermill starts it in the caller's folder, JupyterLab in the notebook's)."""
_PARTIAL = ".partial-"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the name only when the block ends without error.

    On any error, a full disk among them, what was there before stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_PARTIAL, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp makes files private
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # "no space left on device" alone tells nobody where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers left half written; call it only while holding the folder's lock."""
    for path in folder.rglob(f"{_PARTIAL}*"):
        path.unlink(missing_ok=True)


class Busy(RuntimeError):
    """Another process works in this folder."""


UNGUARDED = (
    "worker processes load the script that started them: put what it does, after its imports and functions, "
    "below if __name__ == '__main__':"
)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a folder alone. The lock is the system's, so it ends with the process that holds it, however.

    Raises:
        Busy: another process holds it, and ``wait`` is False.
        RuntimeError: the process is a worker that still loads the script of the one that started it.
    """
    if getattr(
        multiprocessing.current_process(), "_inheriting", False
    ):  # would wait for its own parent for ever
        raise RuntimeError(UNGUARDED)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise Busy(f"{folder}: another process works in this folder now") from None
        warnings.warn(f"waiting for another process that works in {folder}", stacklevel=4)
        lock.acquire(poll_interval=0.2)
    try:
        sweep(folder)
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write the text, unless the file holds just that already (a shared folder may be read-only)."""
    data = text.encode("utf-8")
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """A text file, with a clear error when it is missing or is not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path}: not a text file ({error})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
