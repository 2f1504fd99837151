"""How a player shows a decoded frame: turned and mirrored by its marks, HDR as SDR, without combs."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from itertools import chain, groupby
from threading import get_ident

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, VideoReformatter

# Codes of ITU-T H.273: PQ and HLG transfer; the primaries of BT.2020 and of P3; nothing stated.
_HDR, _WIDE, _UNSTATED = (16, 18), (9, 11, 12), (2, 3)
_SDR = "out_transfer=bt709:out_primaries=bt709:out_color_matrix=bt709:out_range=tv"


class VideoError(ValueError):
    """A video cannot be used; the message is the reason."""


def deinterlaced(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    kinds = groupby(frames, key=lambda f: (f.interlaced_frame, f.width, f.height, f.format.name))
    for (interlaced, *_), group in kinds:
        yield from through(group, ("bwdif", "mode=send_frame")) if interlaced else group


def through(frames: Iterable[av.VideoFrame], *filters: tuple[str, str]) -> Iterator[av.VideoFrame]:
    """Frames as FFmpeg's filters give them."""
    graph = None
    for frame in chain(frames, [None]):
        if graph is None and frame is not None:
            graph = _graph(_source(frame), filters)
        if graph is not None:
            graph.vpush(frame)
            with suppress(av.BlockingIOError, av.EOFError):  # it wants more, or has given all
                while True:
                    yield graph.vpull()


def _source(frame: av.VideoFrame) -> str:
    """What a graph needs to know of the frames that go into it."""
    size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={frame.time_base}"
    return f"{size}:colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"


def _graph(source: str, filters: Iterable[tuple[str, str]]) -> Graph:
    graph = Graph()
    graph.threads = 1
    nodes = [graph.add("buffer", source), *(graph.add(*f) for f in filters), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


@lru_cache(8)
def _converter(source: str, filters: Iterable[tuple[str, str]], *_: int) -> Graph:
    """A graph for all videos of this kind, in this thread: FFmpeg takes seconds to make its table for HDR."""
    return _graph(source, filters)


class Scaler:
    """Frames as upright RGB pictures of one size; set up once for all frames of a video that are alike."""

    def __init__(self) -> None:
        self._resizer = VideoReformatter()
        self._kind: tuple = ()

    def __call__(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """(H, W, 3) uint8: the frame at this size, then turned as its marks ask, HDR and wide colours as a
        BT.709 screen shows them, transparency over black. A format that cannot be converted is a VideoError.
        """
        marks = frame.format.name, frame.color_trc, frame.color_primaries, frame.colorspace, frame.rotation
        kind = width, height, frame.width, frame.height, *marks
        try:
            if kind != self._kind:
                self._set_up(frame, width, height)
                self._kind = kind
            if self._graph:
                self._graph.vpush(frame)
                resized = self._graph.vpull()
            else:
                resized = self._resizer.reformat(
                    frame, width, height, "rgb24", self._colours, None, "AREA", threads=1
                )
        except (av.FFmpegError, ValueError) as error:
            _converter.cache_clear()  # it may hold the frame that failed
            raise VideoError(f"unreadable: cannot be converted to RGB ({error})") from None
        picture = resized.to_ndarray()
        return (picture.swapaxes(0, 1) if self._sideways else picture)[self._flips]

    def _set_up(self, frame: av.VideoFrame, width: int, height: int) -> None:
        filters = _conversion(frame, width, height)
        colours = frame.color_trc, frame.color_primaries
        self._graph = _converter(_source(frame), filters, *colours, get_ident()) if filters else None
        # where nothing is stated, players take pictures of more than standard definition for BT.709
        large = frame.width >= 1280 or frame.height > 576
        self._colours = Colorspace.ITU709 if large and frame.colorspace in _UNSTATED else None
        a, b, c, d = _matrix(frame)
        self._sideways = sideways(frame)
        x, y = (c, b) if self._sideways else (a, d)
        self._flips = slice(None, None, -1 if y < 0 else None), slice(None, None, -1 if x < 0 else None)


def _conversion(frame: av.VideoFrame, width: int, height: int) -> tuple[tuple[str, str], ...]:
    """The filters for a frame that resizing alone would show wrong; none for any other."""
    resize, rgb = ("scale", f"{width}:{height}:flags=area"), ("format", "rgb24")
    if frame.color_trc in _HDR or frame.color_primaries in _WIDE:
        stated = frame.color_primaries not in _UNSTATED
        # to RGB by its own matrix first: both in one step mixes up the two matrices (FFmpeg 8)
        return resize, ("format", "gbrp16"), ("scale", _SDR if stated else f"in_primaries=bt2020:{_SDR}"), rgb
    if _has_alpha(frame.format.name):
        return ("format", "gbrap"), ("premultiply", "inplace=1"), ("format", "gbrp"), resize, rgb
    return ()


@cache
def _has_alpha(pixel_format: str) -> bool:
    return any(component.is_alpha for component in av.VideoFormat(pixel_format).components)


def _matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d of the display matrix: the pixel (x, y) is shown at (ax + cy, bx + dy)."""
    if Type.DISPLAYMATRIX not in frame.side_data:
        return 1, 0, 0, 1
    side_data = frame.side_data[Type.DISPLAYMATRIX]  # type: ignore[typeddict-item]  # PyAV's stub is wrong
    a, b, _, c, d, *_ = np.frombuffer(side_data, np.int32).tolist()
    return a, b, c, d


def sideways(frame: av.VideoFrame) -> bool:
    """Does a player turn the picture by a quarter, so that its width becomes its height?"""
    a, b, c, d = _matrix(frame)
    return abs(b) + abs(c) > abs(a) + abs(d)
