"""Stored videos and any pictures as films that a browser plays, in the page itself."""

import base64
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from videossl_core.data import codec, frames
from videossl_core.data.pictures import Scaler

SECONDS = 10
"""A film shows at most so much of the beginning of a video."""


@lru_cache(maxsize=256)
def film(store: frames.FrameStore, video: str, caption: str = "", width: int = 160) -> str:
    """HTML that plays the stored frames of a video, at most the first SECONDS."""
    row = store.table.loc[video]
    fps = float(row.fps) or 25.0
    numbers = np.arange(min(int(row.frames), round(SECONDS * fps)))
    return player(store.images(video, numbers), fps, caption, width)


def player(pictures: Iterable[np.ndarray], fps: float, caption: str = "", width: int = 160) -> str:
    """HTML that plays pictures, (height, width, 3) uint8."""
    even = (p[: p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2] for p in pictures)  # as H.264 needs them
    return playing(_encoded(even, fps), caption, width)


def for_browser(path: Path, side: int = 320) -> bytes:
    """The beginning of a video (SECONDS) as it is stored, as H.264, which any browser plays, with a long side
    of at most ``side`` pixels; raises codec.VideoError."""
    video, scaled = codec.Video(path), Scaler()
    pictures, times = [], []
    for frame in video:
        times.append(frame.time)
        if times[-1] - times[0] > SECONDS:
            break
        shown = video.shown_size(frame)
        scale = min(1, side / max(shown))
        width, height = (max(2, round(n * scale) // 2 * 2) for n in shown)
        pictures.append(scaled(frame, width, height))
    return _encoded(pictures, min(60, max(1, codec.mean_rate(times))))


def part_shown(store: frames.FrameStore, video: str) -> str:
    """How much of a long video its film shows, in words; empty if all."""
    seconds = store.table.frames[video] / store.table.fps[video]
    return f"the first {SECONDS} of its {seconds:.0f} seconds are shown" if seconds > SECONDS + 0.5 else ""


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
