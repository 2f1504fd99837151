"""Stored videos and any pictures as films that a browser plays, in the page itself."""

import base64
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from videossl_core.data import codec, frames


@lru_cache(maxsize=256)
def film(store: frames.FrameStore, video: str, caption: str = "", width: int = 160) -> str:
    """HTML that plays the stored frames of a video, at most the first ten seconds."""
    row = store.table.loc[video]
    fps = float(row.fps) or 25.0
    numbers = np.arange(min(int(row.frames), round(10 * fps)))
    return player(store.images(video, numbers), fps, caption, width)


def player(pictures: Iterable[np.ndarray], fps: float, caption: str = "", width: int = 160) -> str:
    """HTML that plays pictures, (height, width, 3) uint8."""
    even = (p[: p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2] for p in pictures)  # as H.264 needs them
    return playing(_encoded(even, fps), caption, width)


def for_browser(path: Path, side: int = 320, seconds: float = 10) -> bytes:
    """A video that any browser plays: the file itself if it is a small one in MP4 or WebM, else its first
    ten seconds as H.264, with a long side of at most ``side`` pixels; raises codec.VideoError."""
    if _plays_as_it_is(path):
        return path.read_bytes()
    video, scaled = codec.Video(path), codec.Scaler()
    pictures, times = [], []
    for frame in video:
        times.append(frame.time)
        if times[-1] - times[0] > seconds:
            break
        shown = video.shown_size(frame)
        scale = min(1, side / max(shown))
        width, height = (max(2, round(n * scale) // 2 * 2) for n in shown)
        pictures.append(scaled(frame, width, height))
    return _encoded(pictures, min(60, max(1, codec.mean_rate(times))))


def _plays_as_it_is(path: Path) -> bool:
    if path.suffix.lower() not in (".mp4", ".m4v", ".webm") or path.stat().st_size > 4e6:
        return False
    try:
        with codec.open_video(path) as container:
            context = container.streams.video[0].codec_context
            return context.name in ("h264", "vp8", "vp9", "libdav1d", "av1") and context.pix_fmt == "yuv420p"
    except Exception:  # decoding it will give the reason
        return False


def _encoded(pictures: Iterable[np.ndarray], fps: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        codec.write(path, pictures, fps)
        return path.read_bytes()


def playing(mp4: bytes, caption: str = "", width: int = 160) -> str:
    """HTML that plays the bytes of a film, with an HTML caption below."""
    data = base64.b64encode(mp4).decode()
    box = f"display:inline-block;margin:4px;width:{width}px;vertical-align:top"
    text = "font-size:80%;line-height:1.4;overflow-wrap:anywhere"
    return (
        f'<figure style="{box}"><video width="{width}" controls loop muted autoplay '
        f'playsinline src="data:video/mp4;base64,{data}"></video>'
        f'<figcaption style="{text}">{caption}</figcaption></figure>'
    )
