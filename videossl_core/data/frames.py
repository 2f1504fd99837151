"""Decode every video once; afterwards a clip is a few JPEG frames read from one small file.

JPEG frames at the training size are read several times faster than the source video can be decoded and
take a few KB each. Beside them lie the frames the teacher looks at, every n-th one at 224 x 224.
"""

import io
import os
import struct
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pandas as pd
import simplejpeg
from PIL import Image

from videossl_core.data import codec, files, pool
from videossl_core.data.pool import quiet

TEACHER_SIDE = 224
"""Side of the teacher's frames: the short side of the video is resized to 256, the centre is cropped."""

_HEADER = struct.Struct("<8sqq")  # magic, frames, frames for the teacher
_MAGIC = b"VSSLFR1\0"

_TYPES = {"reason": str, "frames": int, "fps": float, "height": int, "width": int, "stored_bytes": int}
_TYPES |= {"source_bytes": int, "source_times": str, "source_sha256": str}


def _jpeg(frame: av.VideoFrame, width: int, height: int, quality: int, crop: int | None = None) -> bytes:
    array = codec.pixels(frame, width, height)
    if crop:
        y, x = (height - crop) // 2, (width - crop) // 2
        array = array[y : y + crop, x : x + crop]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class StoreSettings:
    """What decides the content of a frame store; it names the store's folder."""

    frame_size: int
    jpeg_quality: int
    teacher_stride: int

    @property
    def name(self) -> str:
        return f"frames-{self.frame_size}px-q{self.jpeg_quality}-every{self.teacher_stride}"


def store_video(source: Path, target: Path, settings: StoreSettings) -> dict:
    """Decode one video into one file and return its row of the store's table.

    The whole picture is squeezed to ``frame_size`` squared (4.1: "resized to a spatial resolution at
    136 x 136"). Layout: header, frames + teacher_frames + 1 int64 offsets, then the JPEGs.
    """
    frames: list[bytes] = []
    for_teacher: list[bytes] = []
    times: list[float] = []
    size = settings.frame_size
    height = width = 0
    for i, frame in enumerate(codec.decode(source)):
        height, width = frame.height, frame.width
        if codec.quarter_turns(frame) % 2:
            height, width = width, height
        times += [frame.time] if frame.time is not None else []
        frames.append(_jpeg(frame, size, size, settings.jpeg_quality))
        if i % settings.teacher_stride == 0:
            scale = 256 / min(height, width)
            w, h = round(width * scale), round(height * scale)
            for_teacher.append(_jpeg(frame, w, h, 92, TEACHER_SIDE))
    images = frames + for_teacher
    offsets = np.cumsum([0, *map(len, images)], dtype="<i8") + _HEADER.size + 8 * (len(images) + 1)
    with files.atomic(target) as temporary:
        header = _HEADER.pack(_MAGIC, len(frames), len(for_teacher))
        temporary.write_bytes(header + offsets.tobytes() + b"".join(images))
    seconds = times[-1] - times[0] if times else 0  # the true mean rate, also where the rate varies
    fps = round((len(times) - 1) / seconds, 3) if seconds > 0 else 25.0
    stored = int(offsets[-1])
    return {"frames": len(frames), "fps": fps, "height": height, "width": width, "stored_bytes": stored}


def _jpegs(path: Path, numbers: np.ndarray, teacher: bool) -> list[memoryview]:
    """Read a few images of a frame file, trusting no byte of it."""
    with open(path, "rb", buffering=0) as f:
        size = os.fstat(f.fileno()).st_size
        magic, frames, for_teacher = _HEADER.unpack(f.read(_HEADER.size).ljust(_HEADER.size))
        count = frames + for_teacher
        if magic != _MAGIC or not 0 <= frames <= count <= size // 8 - 4:
            raise ValueError("not a frame file")
        low, high = (frames, count) if teacher else (0, frames)
        first, last = low + int(min(numbers)), low + int(max(numbers))
        if first < low or last >= high:
            raise IndexError(f"has {high - low} such frames; {first - low} to {last - low} were asked for")
        f.seek(_HEADER.size + 8 * first)
        ends = struct.unpack(f"<{last - first + 2}q", f.read(8 * (last - first + 2)))
        if not _HEADER.size + 8 * (count + 1) <= ends[0] < ends[-1] <= size:
            raise ValueError("damaged")
        f.seek(ends[0])
        data = bytearray(ends[-1] - ends[0])
        f.readinto(data)
    data = memoryview(data)
    return [data[ends[i] - ends[0] : ends[i + 1] - ends[0]] for i in (low - first + int(n) for n in numbers)]


def _try_video(job: tuple[str, Path, Path, StoreSettings]) -> dict:
    name, source, target, settings = job
    row = _row(name, source)
    try:
        if os.path.isfile(source):
            row["source_sha256"] = files.sha256_of(source)
    except OSError as error:
        return row | {"reason": f"unreadable: {error.strerror}"}
    try:
        return row | store_video(source, target, settings)
    except codec.VideoError as error:
        return row | {"reason": str(error)}


def _row(name: str, source: Path, reason: str = "") -> dict:
    """A row of the table with nothing in it but which file it is about."""
    size, times = _stamp(source)
    row = {"video": name} | {column: kind() for column, kind in _TYPES.items()}
    return row | {"reason": reason, "source_bytes": size, "source_times": times}


def _stamp(source: str | Path) -> tuple[int, str]:
    """Size, and times of change of the content and of the file's entry; (-1, "") where there is none.

    A file whose stamp is the same is the same; one whose stamp differs is compared by its sha256.
    """
    try:
        found = os.stat(source)
    except OSError:
        return -1, ""
    return found.st_size, f"{found.st_mtime_ns}-{found.st_ctime_ns}"


class FrameStore:
    """The decoded frames of a data set, one file per video, and a table of what is in them.

    ``table`` is indexed by video and has the columns reason (empty for a usable video), frames, fps, height,
    width, stored_bytes, source_bytes, source_times and source_sha256.
    """

    def __init__(self, folder: Path, settings: StoreSettings):
        self.folder, self.settings = folder / settings.name, settings
        self.table_path = self.folder / "store.csv"
        self.table = self._read_table()

    def __getstate__(self) -> dict:
        return vars(self) | {"table": None}  # loader processes only read; the table may be large

    def path(self, video: str) -> Path:
        return self.folder / f"{video}.frames"

    def add(
        self, videos: list[str], root: Path, workers: int | None = None, progress=quiet, timeout: float = 600
    ) -> None:
        """Decode the videos that are not in the store yet, or whose source file has changed since.

        Each is decoded in another process, so that one that crashes the decoder, or hangs for longer than
        ``timeout`` seconds, is rejected and the others go on. What is done when this process dies stays done.
        """
        todo, moved = self._todo(videos, root, timeout)
        if not todo and not (moved and os.access(self.folder, os.W_OK)):
            return  # without the lock: a store that is complete may be read-only
        with files.locked(self.folder):
            self.table = self._read_table()  # another process may have done it while this one waited
            todo, rows = self._todo(videos, root, timeout)
            jobs = [(v, root / v, self.path(v), self.settings) for v in todo]
            written = time.monotonic()
            done = pool.each(_try_video, jobs, workers, timeout)
            try:
                for job, row in progress(done, len(jobs), "decoding"):
                    if isinstance(row, pool.Lost):
                        row = _row(job[0], job[1], str(row))
                    elif isinstance(row, Exception):
                        raise row
                    if row["reason"]:
                        self.path(job[0]).unlink(missing_ok=True)  # of an earlier file of this name
                    rows.append(row)
                    if time.monotonic() - written > max(5, len(self.table) / 10_000):
                        self._write_table(rows)
                        rows, written = [], time.monotonic()
            finally:  # keep what is done when the work is interrupted
                done.close()
                self._write_table(rows)

    def _todo(self, videos: list[str], root: Path, timeout: float) -> tuple[list[str], list[dict]]:
        """Videos to decode, and new rows of those whose file has only been touched or copied."""
        t = self.table  # columns as lists, not rows as objects: a data set may have 300,000 of them
        rows = zip(t.reason, t.stored_bytes, t.source_bytes, t.source_times, t.source_sha256, strict=True)
        known = dict(zip(t.index, rows, strict=True))
        todo, moved = [], []
        for name in videos:
            reason, stored, size, times, digest = known.get(name, ("", -2, -2, "", ""))
            source = f"{root}/{name}"
            stamp = _stamp(source)
            if stamp[0] < 0 or not (reason or stored == _stamp(f"{self.folder}/{name}.frames")[0]):
                todo.append(name)
            elif stamp != (size, times):
                if stamp[0] == size and os.path.isfile(source) and files.sha256_of(source) == digest:
                    moved.append(self.table.loc[name].to_dict() | {"video": name, "source_times": stamp[1]})
                else:
                    todo.append(name)
            elif reason.startswith("time-out") and f"{timeout:g} s" not in reason:
                todo.append(name)  # another limit, another chance
        return todo, moved

    def _read_table(self) -> pd.DataFrame:
        empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _TYPES.items()})
        empty.index.name = "video"
        if not self.table_path.exists():
            return empty
        try:
            table = pd.read_csv(self.table_path, dtype=_TYPES | {"video": str}, keep_default_na=False)
            return table.set_index("video")[list(_TYPES)]
        except (ValueError, KeyError) as error:
            warnings.warn(f"{self.table_path} is not readable and made anew ({error})", stacklevel=3)
            return empty

    def _write_table(self, rows: list[dict]) -> None:
        if not rows:
            return
        new = pd.DataFrame(rows).set_index("video").astype(_TYPES)
        kept = self.table.drop(index=new.index, errors="ignore")
        self.table = pd.concat([kept, new] if len(kept) else [new])[list(_TYPES)].sort_index()
        files.write_text(self.table_path, self.table.to_csv(lineterminator="\n"))

    def read(self, video: str, numbers: np.ndarray, teacher: bool = False) -> list[memoryview]:
        """JPEG bytes of the frames with these numbers (of the teacher's frames: numbers 0, 1, 2, ...).

        Raises:
            ValueError: the file is not one of this store.
            IndexError: the video has no frame of this number.
        """
        path = self.path(video)
        try:
            return _jpegs(path, numbers, teacher)
        except IndexError as error:
            raise IndexError(f"{path}: {error}") from None
        except (ValueError, struct.error) as error:
            raise ValueError(f"{path}: {error}; delete it and run data_prep again") from None

    def images(self, video: str, numbers: np.ndarray, teacher: bool = False) -> np.ndarray:
        """The same frames as pixels, (N, S, S, 3) uint8.

        Raises:
            ValueError: an image is damaged, or of another size than this store's.
        """
        side = TEACHER_SIDE if teacher else self.settings.frame_size
        out = np.empty((len(numbers), side, side, 3), np.uint8)
        try:
            for jpeg, into in zip(self.read(video, numbers, teacher), out, strict=True):
                if simplejpeg.decode_jpeg(jpeg, buffer=into).shape != into.shape:
                    raise ValueError("an image of another size")
        except ValueError as error:
            raise ValueError(
                f"{self.path(video)}: damaged; delete it and run data_prep again ({error})"
            ) from error
        return out
