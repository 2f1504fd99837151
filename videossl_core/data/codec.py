"""Reading and writing one video file with PyAV, and the reason why a file cannot be used."""

import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter as Resizer

from videossl_core.data import files

MAX_SIDE, MAX_FRAMES = 8192, 100_000
"""Larger videos are rejected: a damaged header can claim any size, and a clip needs no hour of video."""

_FORMATS = (
    "avi,mov,matroska,webm,mpegts,mpeg,mpegvideo,flv,asf,ogg,m4v,h264,hevc,ivf,rm,dv,mxf,nut,gif,yuv4mpegpipe,"
    "mjpeg,obu,wtv,gxf,dhav"
)


class VideoError(ValueError):
    """A video cannot be used; the message is the reason."""


def open_video(path: Path) -> InputContainer:
    """Only these containers and this one file: play lists and concatenations would read other files."""
    return av.open(f"file:{path}", options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"})


def decode(path: Path) -> Iterator[av.VideoFrame]:
    """All frames of a video's first video stream, in order.

    Raises:
        VideoError: the file is missing, unreadable, truncated, without frames, or implausibly large.
    """
    count, first, last = 0, None, None
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise VideoError("unreadable: not a regular file")
        with open_video(path) as container:
            if not container.streams.video:
                raise VideoError("no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError("unreadable: unknown codec")
            # processes share the cores, and threads may hang in workers
            stream.codec_context.thread_count = 1
            _check_size(stream.codec_context.width, stream.codec_context.height)
            for count, frame in enumerate(container.decode(stream), 1):
                _check_size(frame.width, frame.height)
                if count > MAX_FRAMES:
                    raise VideoError(f"implausible: more than {MAX_FRAMES} frames; cut it into parts")
                first, last = frame.time if first is None else first, frame.time
                yield frame
            if not count:
                raise VideoError("zero frames")
            seconds, stated = (last or 0) - (first or 0), (container.duration or 0) / av.time_base
            if count < 0.9 * stream.frames:
                raise VideoError(f"truncated: {count} of {stream.frames} frames")
            if not stream.frames and seconds < 0.7 * stated - 1:  # the header states no number of frames
                raise VideoError(f"truncated: {seconds:.1f} of {stated:.1f} s")
    except VideoError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError("missing") from None
    except Exception as error:  # PyAV reports broken files by more than its own errors
        what = f"truncated: breaks off after {count} frames" if count else "unreadable"
        raise VideoError(f"{what} ({getattr(error, 'strerror', None) or error})") from None


def _check_size(width: int, height: int) -> None:
    small, large = sorted((width, height))
    if large > MAX_SIDE or (small and (small < 4 or large > 32 * small)):
        raise VideoError(f"implausible: {width} x {height} pixels")


def mean_rate(times: list[float]) -> float:
    """Frames per second from the frames' times, also where the rate varies; 25 where they do not tell."""
    return (len(times) - 1) / (times[-1] - times[0]) if times and times[-1] > times[0] else 25.0


def pixels(frame: av.VideoFrame, width: int, height: int, by: Resizer | None = None) -> np.ndarray:
    """The frame at this size, then turned upright as its rotation mark asks: (H, W, 3) uint8 RGB. A format
    that cannot be converted is a VideoError. ``by`` is set up once for all frames of a video, at one size."""
    try:
        resized = (by or Resizer()).reformat(frame, width, height, "rgb24", None, None, "AREA", threads=1)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"unreadable: cannot be converted to RGB ({error})") from None
    return np.rot90(resized.to_ndarray(), quarter_turns(frame))


def quarter_turns(frame: av.VideoFrame) -> int:
    """By how many quarters the picture must be turned anticlockwise to stand upright."""
    return round((frame.rotation or 0) / 90) % 4


def write(path: Path, frames: Iterable[np.ndarray], fps: float = 25.0, qp: int = 22) -> None:
    """Write (H, W, 3) uint8 frames of even size as H.264 in MP4, playable in any browser."""
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: no frames to write")
    with files.atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        # x264's look-ahead makes files that differ from one time to the next; ultrafast has none
        options = {"qp": str(qp), "preset": "ultrafast"}
        stream = container.add_stream("libx264", round(fps), options, pix_fmt="yuv420p")
        stream.height, stream.width = first.shape[:2]
        stream.codec_context.thread_count = 1
        for frame in chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
