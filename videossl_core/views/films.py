"""Stored videos and any pictures as films that a browser plays, in a file or in the page itself."""

import base64
import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from videossl_core.data import codec, frames


def picture(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def stored(store: frames.FrameStore, video: str) -> tuple[Iterator[np.ndarray], float]:
    """The pictures of a stored video, at most ten seconds, and how many to show a second."""
    row = store.table.loc[video]
    fps = float(row.fps) or 25.0
    return map(picture, store.read(video, np.arange(min(int(row.frames), round(10 * fps))))), fps


def write(path: Path, pictures: Iterable[np.ndarray], fps: float) -> None:
    """Write pictures (height, width, 3) uint8 as a film that browsers play: H.264, which wants even sides."""
    codec.write(path, (p[: p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2] for p in pictures), fps)


def film(store: frames.FrameStore, video: str, caption: str = "", width: int = 160) -> str:
    """HTML of a playable video: its stored frames, at most ten seconds, encoded into the page itself."""
    return player(*stored(store, video), caption, width)


def player(pictures: Iterable[np.ndarray], fps: float, caption: str = "", width: int = 160) -> str:
    """HTML that plays pictures (height, width, 3) uint8, encoded into the page itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write(path, pictures, fps)
        return playing(path.read_bytes(), caption, width)


def playing(mp4: bytes, caption: str = "", width: int = 160) -> str:
    """HTML that plays a film's bytes."""
    data = base64.b64encode(mp4).decode()
    box = f"display:inline-block;margin:4px;width:{width}px;vertical-align:top"
    text = "font-size:80%;line-height:1.4;overflow-wrap:anywhere"
    return (
        f'<figure style="{box}"><video width="{width}" controls loop muted autoplay '
        f'playsinline src="data:video/mp4;base64,{data}"></video>'
        f'<figcaption style="{text}">{caption}</figcaption></figure>'
    )
