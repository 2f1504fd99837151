"""The demo data set: videos that the project renders itself, each a noun that does a verb.

"Many, if not all, actions can be decomposed as one or more objects (noun) performing an activity (verb)"
(paper, section 1). The class is the pair. A single frame shows the noun but not the verb, because every verb
passes through the same positions; the motion alone shows the verb but not the noun. The nouns are drawn so
that an ImageNet classifier knows them, and all are mostly black and white on colourful backgrounds, so that
a few labelled videos do not teach what separates them.
"""

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from videossl_core.data import codec, files
from videossl_core.data.pool import map_unordered
from videossl_core.progress import track

SIDE, FRAMES, FPS = 144, 32, 25
SIZES = 0.35, 0.6  # of the objects, smallest and largest, as shares of the side
_S = 256  # side of the canvas for drawing
_CENTRE = (_S / 2, _S / 2)
_INK, _PAPER = (20, 20, 20, 255), (250, 250, 245, 255)


def _polar(radius: float, angle: float, centre=_CENTRE) -> tuple[float, float]:
    return centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)


def _clock(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    draw.ellipse((8, 8, 248, 248), fill=_PAPER, outline=_INK, width=14)
    for minute in range(60):
        hour = minute % 5 == 0
        angle = minute * math.pi / 30
        draw.line((_polar(104, angle), _polar(92 if hour else 99, angle)), fill=_INK, width=7 if hour else 2)
    for length, width in ((58, 10), (84, 6)):
        angle = rng.uniform(0, 2 * math.pi)
        draw.line((_polar(-10, angle), _polar(length, angle)), fill=_INK, width=width)


def _daisy(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    petals = int(rng.integers(13, 20))
    for k in range(petals):
        a, half = 2 * math.pi * k / petals, 0.75 * math.pi / petals
        shape = [(20, 0), (70, -1), (105, -1.1), (122, 0), (105, 1.1), (70, 1)]
        points = [_polar(radius, a + side * half) for radius, side in shape]
        draw.polygon(points, fill=_PAPER, outline=(190, 190, 200, 255))
    draw.ellipse((88, 88, 168, 168), fill=(245, 195, 30, 255), outline=(200, 140, 10, 255), width=6)


def _spider_web(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    spokes = int(rng.integers(12, 17))
    step = 2 * math.pi / spokes
    for k in range(spokes):
        draw.line((_CENTRE, _polar(126, k * step)), fill=_PAPER, width=4)
        for radius in range(14, 124, 12):
            middle = _polar(0.9 * radius, (k + 0.5) * step)
            draw.line((_polar(radius, k * step), middle, _polar(radius, (k + 1) * step)), _PAPER, width=3)


def _soccer_ball(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    draw.ellipse((6, 6, 250, 250), fill=_PAPER, outline=(60, 60, 60, 255), width=4)
    fifth = 2 * math.pi / 5
    start = rng.uniform(0, fifth)

    def pentagon(centre, radius: float, turn: float) -> None:
        draw.polygon([_polar(radius, turn + k * fifth, centre) for k in range(5)], fill=_INK)

    pentagon(_CENTRE, 36, start)
    for k in range(5):
        a = start + k * fifth
        seam, between = _polar(80, a), _polar(74, a + fifth / 2)
        lines = [_polar(36, a), seam, between, _polar(80, a + fifth)], [between, _polar(118, a + fifth / 2)]
        for line in lines:
            draw.line(line, fill=(50, 50, 50, 255), width=4)
        pentagon(_polar(104, a), 30, a + math.pi)


def _crossword(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    side = 240 / 9
    for (i, j), value in np.ndenumerate(rng.random((9, 9))):
        box = (8 + i * side, 8 + j * side, 8 + (i + 1) * side, 8 + (j + 1) * side)
        draw.rectangle(box, fill=_INK if value < 0.28 else _PAPER, outline=_INK, width=2)


def _envelope(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    draw.rectangle((6, 46, 250, 210), fill=_PAPER, outline=(110, 100, 80, 255), width=4)
    draw.line((6, 46, 128, int(rng.integers(125, 155)), 250, 46), fill=(110, 100, 80, 255), width=4)
    for corner, tip in ((6, 104), (250, 152)):
        draw.line((corner, 210, tip, 122), fill=(150, 140, 120, 255), width=3)


def _pinwheel(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    for k in range(8):
        a = k * math.pi / 4
        blade = [_CENTRE, _polar(124, a), _polar(96, a + 0.7)]
        draw.polygon(blade, fill=_PAPER if k % 2 else (70, 70, 80, 255), outline=_INK)
    draw.ellipse((116, 116, 140, 140), fill=(245, 195, 30, 255))


_DRAWINGS = (_clock, _crossword, _daisy, _envelope, _pinwheel, _soccer_ball, _spider_web)
NOUNS = {draw.__name__[1:]: draw for draw in _DRAWINGS}

# A verb gives the object's height, 0 at the top and 1 at the bottom, at time t in [0, 1]. Each verb spends as
# long at every height, so that single frames are alike.
VERBS: dict[str, Callable[[float], float]] = {"falls": lambda t: t, "rises": lambda t: 1 - t}


def _background(rng: np.random.Generator) -> Image.Image:
    """Soft blobs of several sizes around one random colour."""
    blobs = np.zeros((SIDE, SIDE, 3))
    for cells in (3, 6, 12):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        blobs += np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float) / cells
    mixed = 0.45 * blobs / sum(1 / c for c in (3, 6, 12)) + 0.55 * rng.uniform(20, 235, 3)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def frames(noun: str, verb: str, seed: int) -> np.ndarray:
    """One video, (FRAMES, SIDE, SIDE, 3) uint8: the same for the same arguments."""
    rng = np.random.default_rng([seed, *noun.encode(), *verb.encode()])
    background = _background(rng)
    size = int(SIDE * rng.uniform(*SIZES))
    drawing = Image.new("RGBA", (_S, _S), (0, 0, 0, 0))
    NOUNS[noun](ImageDraw.Draw(drawing), rng)
    rotated = drawing.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC)
    sprite = rotated.resize((size, size), Image.Resampling.BOX)
    x = int(rng.integers(0, SIDE - size))
    out = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    for i in range(FRAMES):
        picture = background.copy()
        picture.paste(sprite, (x, round(VERBS[verb](i / (FRAMES - 1)) * (SIDE - size))), sprite)
        out[i] = np.asarray(picture)
    return out


def _render(job: tuple[Path, str, str, int]) -> None:
    path, noun, verb, seed = job
    if not path.exists():
        codec.write(path, frames(noun, verb, seed), FPS)


def render(root: Path, per_class: int, workers: int | None = None, class_folders: bool = True) -> None:
    """Write ``root/{train,test}/<noun>_<verb>/<noun>_<verb>_<number>.mp4``, one in three a test video.
    Existing files stay. Without ``class_folders`` all lie in the root itself. A folder that holds a demo of
    another size is a ValueError."""
    marker = root / "demo.txt"
    content = f"{', '.join(NOUNS)}; {', '.join(VERBS)}"
    made_with = f"{per_class} videos a class, {FRAMES} frames of {SIDE} x {SIDE}: {content}; {SIZES}"
    jobs = []
    for noun, verb, k in product(NOUNS, VERBS, range(per_class)):
        name = f"{noun}_{verb}"
        folder = root / ("test" if k % 3 == 2 else "train") / name if class_folders else root
        jobs.append((folder / f"{name}_{k:03d}.mp4", noun, verb, k))
    results = map_unordered(_render, jobs, workers)
    if not marker.exists():  # without the lock: a finished demo may be read-only
        with files.locked(root):
            if not marker.exists():  # no other process has rendered it while this one waited
                for _, lost in track(results, len(jobs), "rendering the demo videos"):
                    if lost:
                        raise lost
                files.write_text(marker, f"{made_with}\n")
    if (existing := marker.read_text().strip()) != made_with:
        raise ValueError(f"{root} holds another demo ({existing}); delete it or name another dataset")
