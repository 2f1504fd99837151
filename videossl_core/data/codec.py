"""Reading and writing one video file with PyAV, and saying why one cannot be used."""

import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np

from videossl_core.data import files

MAX_SIDE, MAX_FRAMES = 8192, 100_000
"""Larger videos are rejected: a damaged header can claim any size, and a clip needs no hour of video."""

_FORMATS = "avi,mov,matroska,webm,mpegts,mpeg,mpegvideo,flv,asf,ogg,m4v,h264,hevc,ivf,rm,dv,mxf,nut,gif"
# Play lists and concatenations would read other files; only these containers and this one file are opened.
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}


class VideoError(ValueError):
    """A video cannot be used; the message is the reason."""


def decode(path: Path) -> Iterator[av.VideoFrame]:
    """All frames of a video's first video stream, in order.

    Raises:
        VideoError: the file is missing, unreadable, without a video stream or frames, truncated, or of an
            implausible size or number of frames.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise VideoError("unreadable: not a regular file")
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError("missing") from None
    except OSError as error:
        raise VideoError(f"unreadable: {error.strerror}") from None
    count, first, last = 0, None, None
    try:
        with av.open(f"file:{path}", options=_OPTIONS) as container:
            if not container.streams.video:
                raise VideoError("no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError("unreadable: unknown codec")
            # processes share the cores, and threads may hang in workers
            stream.codec_context.thread_count = 1
            _check_size(stream.codec_context.width, stream.codec_context.height)
            for frame in container.decode(stream):
                _check_size(frame.width, frame.height)
                if count == MAX_FRAMES:
                    raise VideoError(f"implausible: more than {MAX_FRAMES} frames; cut it into parts")
                count += 1
                first, last = frame.time if first is None else first, frame.time
                yield frame
            if count:
                _check_whole(container, stream, count, (last or 0) - (first or 0))
    except VideoError:
        raise
    except Exception as error:  # PyAV tells of broken files by more than its own errors
        what = f"truncated: breaks off after {count} frames" if count else "unreadable"
        raise VideoError(f"{what} ({getattr(error, 'strerror', None) or error})") from None
    if not count:
        raise VideoError("zero frames")


def stated_frames(path: Path) -> float:
    """How many frames the header states, or its length and rate amount to; nothing is decoded.

    Raises:
        VideoError: the file cannot be opened as a video.
    """
    try:
        with av.open(f"file:{path}", options=_OPTIONS) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 25)
            return stream.frames or (container.duration or 0) / av.time_base * rate
    except Exception as error:  # PyAV tells of broken files by more than its own errors
        raise VideoError(f"unreadable ({error})") from None


def _check_size(width: int, height: int) -> None:
    small, large = sorted((width, height))
    if large > MAX_SIDE or (small and (small < 4 or large > 32 * small)):
        raise VideoError(f"implausible: {width} x {height} pixels")


def _check_whole(container, stream, count: int, seconds: float) -> None:
    """Fewer frames than the header states; where it states none, much less time than it states."""
    if stream.frames and count < 0.9 * stream.frames:
        raise VideoError(f"truncated: {count} of {stream.frames} frames")
    stated = (container.duration or 0) / av.time_base
    if not stream.frames and seconds < 0.7 * stated - 1:
        raise VideoError(f"truncated: {seconds:.1f} of {stated:.1f} s")


def pixels(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB at this size, turned upright as the file's rotation mark asks.

    Raises:
        VideoError: the frame's pixel format cannot be converted.
    """
    turns = quarter_turns(frame)
    if turns % 2:
        width, height = height, width
    try:
        frame = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"unreadable: cannot be converted to RGB ({error})") from None
    return np.rot90(frame.to_ndarray(), turns)


def quarter_turns(frame: av.VideoFrame) -> int:
    """By how many quarters the picture must be turned anticlockwise to stand upright."""
    return round((frame.rotation or 0) / 90) % 4


def for_browser(path: Path, side: int = 320, seconds: float = 10) -> bytes:
    """A file that any browser plays: the video itself if it is a small one in MP4 or WebM, else its first
    ten seconds as H.264, with a long side of at most ``side`` pixels.

    Raises:
        VideoError: the video cannot be decoded.
    """
    if _plays_as_it_is(path):
        return path.read_bytes()
    frames, first = [], None
    for frame in decode(path):
        first = frame.time if first is None else first
        if frame.time is not None and first is not None and frame.time - first > seconds:
            break
        height, width = frame.height, frame.width
        scale = min(1, side / max(height, width))
        if quarter_turns(frame) % 2:
            height, width = width, height
        last = frame.time
        frames.append(pixels(frame, *(max(2, round(n * scale) // 2 * 2) for n in (width, height))))
    fps = (len(frames) - 1) / (last - first) if len(frames) > 1 and last and last > first else 25
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "clip.mp4"
        write(made, frames, min(60, max(1, fps)))
        return made.read_bytes()


def _plays_as_it_is(path: Path) -> bool:
    if path.suffix.lower() not in (".mp4", ".m4v", ".webm") or path.stat().st_size > 4e6:
        return False
    try:
        with av.open(f"file:{path}", options=_OPTIONS) as container:
            context = container.streams.video[0].codec_context
            return context.name in ("h264", "vp8", "vp9", "libdav1d", "av1") and context.pix_fmt == "yuv420p"
    except Exception:  # decoding it will say what is wrong
        return False


def write(path: Path, frames: Iterable[np.ndarray], fps: float = 25.0, qp: int = 22) -> None:
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
