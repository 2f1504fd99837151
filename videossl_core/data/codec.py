"""Reading and writing one video file with PyAV, and the reason why a file cannot be used.

Edit lists, several streams and jumps in time are read as a player does. Damage costs the frames that are
damaged. How a frame looks is the business of ``pictures``.
"""

import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from videossl_core.data import files, pictures
from videossl_core.data.pictures import VideoError

MAX_SIDE, MAX_FRAMES = 8192, 1_000_000
"""Larger videos are rejected: a damaged header can claim any size. A million frames are nine hours."""

_FORMATS = (
    "avi,mov,matroska,webm,mpegts,mpeg,mpegvideo,flv,asf,ogg,m4v,h264,hevc,ivf,rm,dv,mxf,nut,gif,yuv4mpegpipe,"
    "mjpeg,obu,wtv,gxf,dhav"
)
_STATED = ("avi", "mov,mp4", "matroska", "flv", "asf", "nut", "rm", "mxf")
"""Containers whose header states the length. For the others FFmpeg takes it from what there is."""
_STANDSTILL = {"mpegts": 10, "mpeg": 10}
"""Seconds after which the clock has jumped; 600 for the others. Broadcasts are cut together."""


def open_video(path: Path) -> InputContainer:
    """Only these containers and this one file: play lists and concatenations would read other files."""
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    return av.open(f"file:{path}", options=options, metadata_errors="replace")  # a title in any encoding


def main_stream(container: InputContainer) -> VideoStream:
    """The stream that a player shows: FFmpeg's best, but no cover, nor a single picture beside a film.

    Raises:
        VideoError: there is none.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    films = [s for s in streams if not 0 < announced(container, s)[0] * rate_of(s) < 1.5] or streams
    if not films:
        raise VideoError("no video stream")
    best = container.streams.best("video")
    return best if best in films else films[0]


def rate_of(stream: VideoStream) -> float:
    """Frames per second by the header; 25 where it states none."""
    return float(stream.average_rate or 25)


def _tick(stream: Stream) -> Fraction:
    """The unit of a stream's times, in seconds."""
    return stream.time_base or Fraction(1, av.time_base)


class Video:
    """The frames of a video file as a player shows them, to be iterated over once.

    With ``fps`` they are those on screen every 1/fps seconds, else the frames as they come. ``damaged``
    counts the frames that could not be decoded or only in part, ``missing`` those that the file announces
    and does not hold, ``decoded`` those that came; they are known at the end.

    Raises (while iterating):
        VideoError: the file is missing, unreadable, without frames, or implausibly large.
    """

    def __init__(self, path: Path, fps: float | None = None):
        self.path, self.fps = path, fps
        self.decoded = self.damaged = self.missing = 0
        self.aspect = Fraction(1)  # width of a pixel divided by its height

    def shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Width and height of the picture with square pixels, before it is turned."""
        return round(frame.width * self.aspect), frame.height

    def __iter__(self) -> Iterator[av.VideoFrame]:
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise VideoError("unreadable: not a regular file")
            if not status.st_size:
                raise VideoError("unreadable: an empty file")
            with open_video(self.path) as container:
                frames = pictures.deinterlaced(self._decoded(container))
                if self.fps:
                    frames = pictures.through(frames, ("fps", f"fps={self.fps}:eof_action=pass"))
                count = 0
                for count, frame in enumerate(frames, 1):
                    if count > 1000 * (10 + self.decoded):  # each frame of a few stands for many minutes
                        raise VideoError(f"implausible: {count} frames of {self.decoded}; do not set fps")
                    if count > MAX_FRAMES:
                        raise VideoError(f"implausible: more than {MAX_FRAMES} frames; cut it into parts")
                    yield frame
            if not count:
                raise VideoError(f"zero frames at {self.fps:g} frames a second")
        except VideoError:
            raise
        except (FileNotFoundError, NotADirectoryError):
            raise VideoError("missing") from None
        except Exception as error:  # PyAV reports broken files by more than its own errors
            raise VideoError(f"unreadable ({getattr(error, 'strerror', None) or error})") from None

    def _decoded(self, container: InputContainer) -> Iterator[av.VideoFrame]:
        """All frames that can be decoded, in order, each with a time."""
        stream = main_stream(container)
        if stream.codec_context is None:
            raise VideoError("unreadable: unknown codec")
        stream.codec_context.thread_count = 1  # processes share the cores, and threads may hang in workers
        _check_size(stream.codec_context.width, stream.codec_context.height)
        aspect = stream.sample_aspect_ratio or 1
        self.aspect = Fraction(aspect if 1 / 8 < aspect < 8 else 1)  # anything else is damage
        rate, (stated, lasting) = rate_of(stream), announced(container, stream)
        # a damaged header may announce more than its file can hold
        if stated * (self.fps or rate) > MAX_FRAMES and self.path.stat().st_size > 8 * MAX_FRAMES:
            raise VideoError(f"implausible: {stated * (self.fps or rate):.0f} frames; cut it into parts")
        clock = _Clock(_tick(stream), 1 / rate, _STANDSTILL.get(container.format.name, 600))
        packets, reason = 0, ""
        ends = {s: 0 for s in lasting}  # in units of their time bases
        lengths = {s: round(1 / rate / _tick(s)) for s in lasting}  # where a packet does not say it
        for packet in _packets(container, lasting):
            at = packet.stream
            start = packet.dts if packet.pts is None else packet.pts
            if start is not None:
                ends[at] = max(ends[at], start + (packet.duration or lengths[at]))
            packets += at is stream and packet.size > 0
            try:
                frames = packet.decode() if at is stream else []
            except av.FFmpegError as error:
                frames, reason = [], f" ({error.strerror})"
                self.damaged += 1
            for frame in frames:
                _check_size(frame.width, frame.height)
                clock.set(frame)
                self.decoded += 1
                self.damaged += frame.is_corrupt
                yield frame
        if not self.decoded:
            raise VideoError(f"unreadable: no frame can be decoded{reason}" if reason else "zero frames")
        end = max(float(ends[s] * _tick(s)) for s in lasting)
        if stated > end > 0:  # at the rate of what is there: the header's may be that of another clock
            self.missing = int((stated - end) * min(rate, packets / end))


class _Clock:
    """Times that begin at zero and only go forward. A frame that has none, lies before the last one, or comes
    after a longer standstill, follows the last one at once: there two recordings meet, or a time is damaged.
    """

    def __init__(self, tick: Fraction, step: float, standstill: float):
        self._tick, self._standstill = tick, round(standstill / tick)
        self._step = round(min(step, 1.0) / tick)
        self._last: int | None = None
        self._shift = 0

    def set(self, frame: av.VideoFrame) -> None:
        given = frame.pts or 0
        if self._last is None:
            self._shift = -given
        elif frame.pts is None or not 0 <= given + self._shift - self._last <= self._standstill:
            self._shift = self._last + self._step - given
        time = given + self._shift
        if frame.duration > self._standstill:
            frame.duration = self._step
        frame.pts, frame.time_base, self._last = time, self._tick, time


def announced(container: InputContainer, stream: VideoStream) -> tuple[float, list[Stream]]:
    """The seconds that the header states, 0 where it states none, and the streams one of which lasts so long:
    sound may go on after the last picture."""
    if not container.format.name.startswith(_STATED):
        return 0.0, [stream]
    whole = (container.duration or 0) / av.time_base
    seconds = float((stream.duration or 0) * _tick(stream))
    if container.format.name == "avi":  # its duration is that of the file as it is; frames may be empty
        seconds = stream.frames / rate_of(stream)
    if tag := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):  # Matroska's
        seconds = min(3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]), whole)
    return (seconds, [stream]) if seconds else (whole, [stream, *container.streams.audio])


def _packets(container: InputContainer, streams: list[Stream]) -> Iterator[Packet]:
    with suppress(av.FFmpegError):  # where a file breaks off; what is missing then is counted
        yield from container.demux(streams)


def _check_size(width: int, height: int) -> None:
    small, large = sorted((width, height))
    if large > MAX_SIDE or (small and (small < 4 or large > 32 * small)):
        raise VideoError(f"implausible: {width} x {height} pixels")


def mean_rate(times: Sequence[float]) -> float:
    """Frames per second from the frames' times, also where the rate varies; 25 where they do not tell."""
    return (len(times) - 1) / (times[-1] - times[0]) if times and times[-1] > times[0] else 25.0


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
