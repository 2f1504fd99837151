"""Decode every video once; afterwards a clip is a few JPEG frames read from one small file.

JPEG frames at the training size are read several times faster than the source video can be decoded and
take a few KB each. Beside them lie the frames for the teacher, every n-th one, for most at 224 x 224.
"""

import io
import math
import os
import shutil
import struct
import time
import warnings
from array import array
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import pandas as pd
import simplejpeg
from PIL import Image

from videossl_core.data import codec, files, pictures, pool
from videossl_core.progress import track

SPOOL = 32 * 2**20
"""Bytes of a video's JPEGs that are kept in memory; more wait in a temporary file."""

_HEADER = struct.Struct("<8sqq")  # magic, frames, frames for the teacher
_MAGIC = b"VSSLFR1\0"


@dataclass(frozen=True)
class StoreSettings:
    """What determines the content of a frame store; its folder's name holds all of it. The teacher's frames
    have their short side resized to ``teacher_short``; a square of ``teacher_side`` is cut from the centre.
    """

    frame_size: int
    jpeg_quality: int
    teacher_stride: int
    fps: float | None = None
    stride: int = 1
    teacher_short: int = 256
    teacher_side: int = 224

    @property
    def name(self) -> str:
        rate = (f"-{self.fps:g}fps" if self.fps else "") + (
            f"-stride{self.stride}" if self.stride > 1 else ""
        )
        sizes = self.teacher_short, self.teacher_side
        other = "" if sizes == (256, 224) else "-{}to{}px".format(*sizes)
        return f"frames-{self.frame_size}px-q{self.jpeg_quality}-every{self.teacher_stride}{rate}{other}"


@dataclass(frozen=True)
class Row:
    """A video in the store's table. Height and width are of the picture as it is shown: upright, of square
    pixels. ``damaged`` frames could not be decoded or only in part, ``missing`` ones are announced by the
    file and not in it; with ``fps`` or ``stride`` both are given in frames of the store.

    A source file of the same size and times of change is the same; where one differs, its sha256 decides.
    """

    video: str
    reason: str = ""  # why the video cannot be used; empty if it can
    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    damaged: int = 0
    missing: int = 0
    stored_bytes: int = 0
    source_bytes: int = -1
    source_times: str = ""
    source_sha256: str = ""


_TYPES = {field.name: field.type for field in fields(Row) if field.name != "video"}


def _jpeg(picture: np.ndarray, side: int, quality: int) -> bytes:
    """The central square of this side."""
    y, x = ((length - side) // 2 for length in picture.shape[:2])
    square = np.ascontiguousarray(picture[y : y + side, x : x + side])
    buffer = io.BytesIO()
    Image.fromarray(square).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _try_video(job: tuple[str, Path, Path, StoreSettings]) -> Row:
    """Decode one video into one file; its row of the table, with the reason if it cannot be used."""
    video, source, target, settings = job
    row = _new_row(video, source)
    with suppress(OSError):  # decoding will give the reason
        if source.is_file():
            row = replace(row, source_sha256=files.sha256_of(source))
    try:
        return replace(row, **store_video(source, target, settings))
    except codec.VideoError as error:
        return replace(row, reason=str(error))


def store_video(source: Path, target: Path, settings: StoreSettings) -> dict:
    """Decode one video into one file, in constant memory; what its row says about it.

    The whole picture is squeezed to ``frame_size`` squared (4.1: "resized to a spatial resolution at
    136 x 136"). Layout: header, frames + teacher_frames + 1 int64 offsets, then the JPEGs.
    """
    side, film = settings.frame_size, codec.Video(source, settings.fps)
    small, large = pictures.Scaler(), pictures.Scaler()
    sizes, teacher_sizes, times = array("q"), array("q"), array("d")
    shapes: Counter[tuple[int, int]] = Counter()
    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = partial(SpooledTemporaryFile[bytes], SPOOL, dir=str(target.parent))
    with waiting() as jpegs, waiting() as others:
        for frame in islice(film, None, None, settings.stride):
            times.append(frame.time)
            sizes.append(jpegs.write(_jpeg(small(frame, side, side), side, settings.jpeg_quality)))
            if (len(sizes) - 1) % settings.teacher_stride == 0:
                shown = film.shown_size(frame)
                shapes[shown[::-1] if pictures.sideways(frame) else shown] += 1
                width, height = (round(n * settings.teacher_short / min(shown)) for n in shown)
                square = _jpeg(large(frame, width, height), settings.teacher_side, 92)
                teacher_sizes.append(others.write(square))
        images = len(sizes) + len(teacher_sizes)
        offsets = np.cumsum([_HEADER.size + 8 * (images + 1), *sizes, *teacher_sizes], dtype="<i8")
        with files.atomic(target) as temporary, open(temporary, "wb") as out:
            out.write(_HEADER.pack(_MAGIC, len(sizes), len(teacher_sizes)) + offsets.tobytes())
            for part in (jpegs, others):
                part.seek(0)
                shutil.copyfileobj(part, out)
    [((width, height), _)] = shapes.most_common(1)  # a stream may change its size, and damage may
    rate = round(codec.mean_rate(times), 3)
    facts = {"frames": len(sizes), "fps": rate, "height": height, "width": width}
    share = len(sizes) / film.decoded  # of the file's frames are stored: other counts are made to fit
    lost = {"damaged": math.ceil(film.damaged * share), "missing": math.ceil(film.missing * share)}
    return facts | lost | {"stored_bytes": int(offsets[-1])}


def _new_row(video: str, source: Path, reason: str = "") -> Row:
    size, times = _stamp(source)
    return Row(video, reason, source_bytes=size, source_times=times)


def _limit(source: str | Path, timeout: float) -> int:
    """Seconds after which decoding is given up: a film of two hours takes longer than a clip."""
    return round(timeout + max(0, _stamp(source)[0]) / 1e6)


def _stamp(path: str | Path) -> tuple[int, str]:
    """Size and times of change of a file; (-1, "") where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return -1, ""
    return stat.st_size, f"{stat.st_mtime_ns}-{stat.st_ctime_ns}"


class FrameStore:
    """The decoded frames of a data set, one file per video, and their ``table``: a ``Row`` by video."""

    def __init__(self, folder: Path, settings: StoreSettings):
        self.folder, self.settings = folder / settings.name, settings
        self.table_path = self.folder / "store.csv"
        self.table = self._read_table()

    def __getstate__(self) -> dict:
        return vars(self) | {"table": None}  # loader processes only read; the table may be large

    def path(self, video: str) -> Path:
        return self.folder / f"{video}.frames"

    def add(self, videos: list[str], root: Path, workers: int | None = None, timeout: float = 600) -> None:
        """Decode the videos that are not in the store yet, or whose source file has changed since.

        Each is decoded in another process, so that one that crashes the decoder, or hangs for longer than
        ``timeout`` seconds and one more for each megabyte, costs only itself. What is done when this process
        dies stays done.
        """
        todo, rows = self._todo(videos, root, timeout)
        if not todo and not (rows and os.access(self.folder, os.W_OK)):
            return  # without the lock: a complete store may be read-only
        with files.locked(self.folder):
            self.table = self._read_table()  # another process may have done it while this one waited
            todo, rows = self._todo(videos, root, timeout)
            jobs = [(video, root / video, self.path(video), self.settings) for video in todo]
            written = time.monotonic()
            try:
                with closing(
                    pool.map_unordered(_try_video, jobs, workers, lambda job: _limit(job[1], timeout))
                ) as results:
                    for (video, source, target, _), row in track(results, len(jobs), "decoding"):
                        if isinstance(row, pool.Lost):
                            row = _new_row(video, source, str(row))
                        if row.reason:
                            target.unlink(missing_ok=True)  # of an earlier file of this name
                        rows.append(row)
                        if time.monotonic() - written > max(5, len(self.table) / 10_000):
                            self._write_table(rows)
                            rows, written = [], time.monotonic()
            finally:  # keep what is done when the work is interrupted
                self._write_table(rows)

    def _todo(self, videos: list[str], root: Path, timeout: float) -> tuple[list[str], list[Row]]:
        """Videos to decode, and new rows of those whose file has only been touched or copied."""
        t = self.table  # as plain columns, not as rows: a data set may have 300,000 of them
        names = ("reason", "stored_bytes", "source_bytes", "source_times", "source_sha256")
        columns = zip(*(t[name].to_numpy(object) for name in names), strict=True)
        existing = dict(zip(t.index.to_numpy(object), columns, strict=True))
        todo, touched = [], []
        for video in videos:
            reason, stored, size, times, sha256 = existing.get(video, ("", -2, -2, "", ""))
            source = f"{root}/{video}"
            stamp = _stamp(source)
            another_limit = reason.startswith("time-out") and f" {_limit(source, timeout)} s" not in reason
            complete = reason or stored == _stamp(f"{self.folder}/{video}.frames")[0]
            if stamp[0] < 0 or another_limit or not complete:
                todo.append(video)
            elif stamp != (size, times):
                if stamp[0] == size and os.path.isfile(source) and files.sha256_of(source) == sha256:
                    touched.append(Row(video, **t.loc[video].to_dict() | {"source_times": stamp[1]}))
                else:
                    todo.append(video)
        return todo, touched

    def _read_table(self) -> pd.DataFrame:
        try:
            table = pd.read_csv(self.table_path, dtype=_TYPES | {"video": str}, keep_default_na=False)
            if "damaged" not in table:  # of a time when one damaged frame cost the video: look again
                table = table[table["reason"] == ""].assign(damaged=0, missing=0)
            return table.set_index("video")[list(_TYPES)]
        except FileNotFoundError:
            pass
        except (ValueError, KeyError) as error:
            warnings.warn(f"{self.table_path} is not readable and is rebuilt ({error})", stacklevel=3)
        return pd.DataFrame(columns=list(_TYPES), index=pd.Index([], name="video")).astype(_TYPES)

    def _write_table(self, rows: list[Row]) -> None:
        if not rows:
            return
        new = pd.DataFrame(rows).set_index("video").astype(_TYPES)
        kept = self.table.drop(index=new.index, errors="ignore")
        self.table = pd.concat([kept, new] if len(kept) else [new])[list(_TYPES)].sort_index()
        files.write_text(self.table_path, self.table.to_csv(lineterminator="\n"))

    def read(self, video: str, numbers: np.ndarray, teacher: bool = False) -> list[memoryview]:
        """JPEG bytes of the frames with these numbers (of the teacher's frames: numbers 0, 1, 2, ...).

        Raises:
            ValueError: the file is not one of this store, or damaged.
            IndexError: the video has no frame of this number.
        """
        path = self.path(video)
        with open(path, "rb", buffering=0) as f:
            size = os.fstat(f.fileno()).st_size
            magic, frames, teacher_frames = _HEADER.unpack(f.read(_HEADER.size).ljust(_HEADER.size))
            count = frames + teacher_frames
            if magic != _MAGIC or not 0 <= frames <= count <= size // 8 - 4:
                raise _damaged(path, "not a frame file")
            low, high = (frames, count) if teacher else (0, frames)
            first, last = low + int(min(numbers)), low + int(max(numbers))
            if first < low or last >= high:
                raise IndexError(f"{path} has {high - low} such frames, not {first - low} to {last - low}")
            f.seek(_HEADER.size + 8 * first)
            ends = np.frombuffer(f.read(8 * (last - first + 2)), "<i8").tolist()
            if not _HEADER.size + 8 * (count + 1) <= ends[0] < ends[-1] <= size:
                raise _damaged(path, "damaged")
            f.seek(ends[0])
            data = memoryview(f.read(ends[-1] - ends[0]))
        places = (low - first + int(number) for number in numbers)
        return [data[ends[i] - ends[0] : ends[i + 1] - ends[0]] for i in places]

    def images(self, video: str, numbers: np.ndarray, teacher: bool = False) -> np.ndarray:
        """The same frames as pixels, (N, S, S, 3) uint8; a damaged image or another size is a ValueError."""
        side = self.settings.teacher_side if teacher else self.settings.frame_size
        out = np.empty((len(numbers), side, side, 3), np.uint8)
        jpegs = self.read(video, numbers, teacher)
        try:
            for jpeg, image in zip(jpegs, out, strict=True):
                if simplejpeg.decode_jpeg(jpeg, buffer=image).shape != image.shape:
                    raise ValueError("an image of another size")
        except ValueError as error:
            raise _damaged(self.path(video), error) from error
        return out


def _damaged(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path}: {reason}; delete it and run data_prep again")
