"""Decode every video once with PyAV; afterwards a clip is a few JPEG frames read from one small file.

JPEG frames at the training size are read several times faster than the source video can be decoded and
take a few KB each. Beside them lie the frames the teacher looks at, every n-th one at 224 x 224.
"""

import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pandas as pd
from PIL import Image

from videossl_core import files

TEACHER_SIDE = 224
"""Side of the teacher's frames: the short side of the video is resized to 256, the centre is cropped."""

_HEADER = np.dtype([("magic", "S8"), ("frames", "<i8"), ("teacher_frames", "<i8")])
_MAGIC = b"VSSLFR1"


class VideoError(ValueError):
    """A video cannot be used; the message is the reason."""


def decode(path: Path) -> Iterator[av.VideoFrame]:
    """All frames of a video's first video stream, in order.

    Raises:
        VideoError: the file is missing, unreadable, without a video stream or frames, or breaks off.
    """
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = (
                1  # processes share the cores, and threads may hang in workers
            )
            for frame in container.decode(stream):
                count += 1
                yield frame
    except FileNotFoundError:
        raise VideoError("missing") from None
    except av.FFmpegError as error:
        what = f"breaks off after {count} frames" if count else "unreadable"
        raise VideoError(f"{what}: {error.strerror}") from None
    if not count:
        raise VideoError("zero frames")


def frame_rate(path: Path) -> float:
    """Frames per second as the file states it; 25 where it states none."""
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    return float(rate) if rate else 25.0


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float = 25.0, qp: int = 22) -> None:
    """Write (H, W, 3) uint8 frames of even size as H.264 in MP4, playable in any browser."""
    with files.atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=round(fps))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                # x264's look-ahead makes files that differ from one time to the next; ultrafast has none
                stream.options = {"qp": str(qp), "preset": "ultrafast"}
                stream.codec_context.thread_count = 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if stream is None:
            raise ValueError(f"{path}: no frames to write")
        container.mux(stream.encode())


def _jpeg(frame: av.VideoFrame, width: int, height: int, quality: int, crop: int | None = None) -> bytes:
    array = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    if crop:
        y, x = (height - crop) // 2, (width - crop) // 2
        array = array[y : y + crop, x : x + crop]
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
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
    size = settings.frame_size
    height = width = 0
    for i, frame in enumerate(decode(source)):
        height, width = frame.height, frame.width
        frames.append(_jpeg(frame, size, size, settings.jpeg_quality))
        if i % settings.teacher_stride == 0:
            scale = 256 / min(height, width)
            h, w = round(height * scale), round(width * scale)
            for_teacher.append(_jpeg(frame, w, h, 92, TEACHER_SIDE))
    header = np.array((_MAGIC, len(frames), len(for_teacher)), _HEADER)
    images = frames + for_teacher
    offsets = np.cumsum([0, *map(len, images)], dtype="<i8") + header.nbytes + 8 * (len(images) + 1)
    with files.atomic(target) as temporary:
        temporary.write_bytes(header.tobytes() + offsets.tobytes() + b"".join(images))
    fps = round(frame_rate(source), 3)
    stored = int(offsets[-1])
    return {"frames": len(frames), "fps": fps, "height": height, "width": width, "stored_bytes": stored}


def _try_video(job: tuple[str, Path, Path, StoreSettings]) -> dict:
    video, source, target, settings = job
    row = {"video": video, "reason": "", "frames": 0, "fps": 0.0, "height": 0, "width": 0, "stored_bytes": 0}
    row["source_bytes"], row["source_mtime_ns"] = _fingerprint(source)
    try:
        return row | store_video(source, target, settings)
    except VideoError as error:
        return row | {"reason": str(error)}


def _fingerprint(source: Path) -> tuple[int, int]:
    """Size and time of change of a source file, (-1, -1) where there is none."""
    try:
        stat = source.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def parallel(function: Callable, jobs: list, workers: int | None) -> Iterator:
    """Results of ``function`` over ``jobs`` in order, from this many processes (None: one per core)."""
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    # forkserver: forking a process that has already decoded video or started threads may hang the child
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(function, jobs, chunksize=max(1, min(16, len(jobs) // (8 * workers))))


def quiet(items: Iterable, total: int, label: str) -> Iterable:
    """A progress display that shows nothing; see ``figures.progress`` for one that does."""
    return items


class FrameStore:
    """The decoded frames of a data set, one file per video, and a table of what is in them.

    ``table`` is indexed by video and has the columns frames, fps, height, width, source_bytes,
    source_mtime_ns, stored_bytes and reason (empty for a usable video).
    """

    def __init__(self, folder: Path, settings: StoreSettings):
        self.folder, self.settings = folder / settings.name, settings
        self.table_path = self.folder / "store.csv"
        self.table = pd.DataFrame(columns=["video", "reason", "frames"]).set_index("video")
        if self.table_path.exists():
            self.table = pd.read_csv(self.table_path, index_col="video", keep_default_na=False)

    def path(self, video: str) -> Path:
        return self.folder / f"{video}.frames"

    def add(self, videos: list[str], root: Path, workers: int | None = None, progress=quiet) -> None:
        """Decode the videos that are not in the store yet, or whose source file has changed since."""
        jobs = [(v, root / v, self.path(v), self.settings) for v in videos if not self._has(v, root / v)]
        if not jobs:
            return
        rows = []
        try:
            for row in progress(parallel(_try_video, jobs, workers), len(jobs), "decoding"):
                rows.append(row)
        finally:  # keep what is done when the work is interrupted
            if rows:
                new = pd.DataFrame(rows).set_index("video")
                kept = self.table.drop(index=new.index, errors="ignore")
                self.table = pd.concat([kept, new] if len(kept) else [new]).sort_index()
                with files.atomic(self.table_path) as temporary:
                    self.table.to_csv(temporary)
                self.table = pd.read_csv(self.table_path, index_col="video", keep_default_na=False)

    def _has(self, video: str, source: Path) -> bool:
        if video not in self.table.index:
            return False
        row = self.table.loc[video]
        known = (int(row.source_bytes), int(row.source_mtime_ns))
        return known == _fingerprint(source) != (-1, -1) and bool(row.reason or self.path(video).exists())

    def read(self, video: str, numbers: np.ndarray, teacher: bool = False) -> list[bytes]:
        """JPEG bytes of the frames with these numbers (of the teacher's frames: numbers 0, 1, 2, ...)."""
        with open(self.path(video), "rb") as f:
            header = np.frombuffer(f.read(_HEADER.itemsize), _HEADER)
            if not len(header) or header["magic"][0] != _MAGIC:
                raise ValueError(f"{self.path(video)}: not a frame file; delete it and run data_prep again")
            count = int(header["frames"][0]) + int(header["teacher_frames"][0])
            offsets = np.frombuffer(f.read(8 * (count + 1)), "<i8")
            numbers = np.asarray(numbers) + (int(header["frames"][0]) if teacher else 0)
            first, last = int(numbers.min()), int(numbers.max())
            f.seek(offsets[first])
            data = f.read(int(offsets[last + 1] - offsets[first]))
        start = offsets - offsets[first]
        return [data[start[i] : start[i + 1]] for i in numbers]
