"""Which clips, crops and flips make the batch of step i: pure functions of (seed, i).

There is no sampler state, so a resumed run, any number of loader processes and a replay see the same clips.
"""

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videossl_core.data.frames import FrameStore
from videossl_core.data.splits import Stream
from videossl_core.params import Params


@lru_cache(maxsize=1024)  # class_balance = sampler has an order for each class
def _order(seed: int, stream: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, Stream.ORDER, stream, epoch]).permutation(n)


def videos_of_step(seed: int, step: int, stream: int, n: int, k: int) -> np.ndarray:
    """(k,) positions, out of n videos, drawn without replacement until all were seen, then again."""
    turns = np.arange(step * k, (step + 1) * k)
    return np.array([_order(seed, stream, int(i // n), n)[i % n] for i in turns], dtype=int)


def balanced_videos_of_step(seed: int, step: int, labels: np.ndarray, k: int) -> np.ndarray:
    """(k,) positions of videos with these labels, each class as often as any other: the classes take turns in
    random order, and so do the videos of a class, whose n-th turn comes in round n."""
    classes = np.unique(labels)
    rounds = (np.arange(step * k, (step + 1) * k) // len(classes)).tolist()
    turns = zip(rounds, videos_of_step(seed, step, 2, len(classes), k), strict=True)
    groups = [np.flatnonzero(labels == label) for label in classes]
    return np.array([groups[c][videos_of_step(seed, n, 3 + c, len(groups[c]), 1)[0]] for n, c in turns])


Draws = namedtuple(
    "Draws",
    "start y x flip frame other_y other_x other_flip turn first first_by second second_by hole_y hole_x "
    "area ratio brightness contrast saturation other_area other_ratio other_brightness other_contrast "
    "other_saturation",
)
"""Uniform numbers in [0, 1) for the clips of one step, each (batch_size,).

Their order is the random stream: append new ones, for one in between would change all after it and every
published number (test_pins.py)."""


def draws_of_step(seed: int, step: int, batch_size: int) -> Draws:
    rng = np.random.default_rng([seed, Stream.CLIPS, step])
    return Draws(*rng.random((len(Draws._fields), batch_size)))


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """What a network drops in a step is a pure function of these too."""
    torch.manual_seed(int(np.random.default_rng([seed, Stream.DROPOUT, step, rank]).integers(2**63)))


def clip_frames(p: Params, count: int, start: int) -> np.ndarray:
    """Numbers of a clip's frames, (T,), in a video of ``count`` frames: from ``start`` on the next ones, and
    looped where the video ends; or, with ``clips = spread``, equally far apart over the whole video."""
    numbers = np.arange(p.clip_frames)
    if p.clips == "spread":
        return start + numbers * count // p.clip_frames
    return start + numbers % min(p.clip_frames, count - start)


def starts(p: Params, count: int) -> int:
    """How many first frames a clip can have: 0, 1, ... below this."""
    return max(1, count // p.clip_frames if p.clips == "spread" else count - p.clip_frames + 1)


def centre_start(p: Params, count: int) -> int:
    """First frame of the clip in the middle of the video, or of the spread clips in the middle of all."""
    return (starts(p, count) - 1) // 2


def clip_starts(p: Params, count: int) -> list[int]:
    """First frames of all clips of an evaluation, which share no frame. Consecutive ones (4.1) may leave a
    shorter rest, which is dropped, or looped; spread ones lie between each other."""
    if p.clips == "spread":
        return list(range(starts(p, count)))
    whole = max(1, count // p.clip_frames) if p.last_clip == "drop" else -(-count // p.clip_frames)
    return [i * p.clip_frames for i in range(whole)]


def read_clip(store: FrameStore, video: str, numbers: np.ndarray, teacher: bool = False) -> Tensor:
    """(3, T, S, S) uint8: the frames with these numbers at the store's size S, or those for the teacher."""
    return torch.from_numpy(store.images(video, numbers, teacher)).permute(3, 0, 1, 2)


def centre_crop(clip: Tensor, size: int) -> Tensor:
    """The square of this side in the middle of all frames (.., S, S)."""
    margin = (clip.shape[-1] - size) // 2
    return clip[..., margin : margin + size, margin : margin + size]


@dataclass(frozen=True)
class View:
    """How a clip is shown: a box of the stored frames in pixels, mirrored or not, and the factors of its
    brightness, contrast and saturation (none: as they are)."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    colours: tuple[float, ...] = ()


# augment = standard: areas as in TSN's multi-scale crop (sides of 0.66 to 1), aspect ratios as in
# torchvision's RandomResizedCrop (3/4 to 4/3), colours changed by up to 0.4 as in SlowFast and MoCo v2.
AREA, RATIO, JITTER = (0.44, 1.0), 4 / 3, 0.4


def draw_view(p: Params, draws: Draws, i: int, which: str = "") -> View:
    """The view of clip ``i`` in its batch; ``which`` = ``other_`` is the one of mean teacher's teacher."""

    def number(name: str, low: float = 0, high: float = 1) -> float:
        return low + (high - low) * float(getattr(draws, which + name)[i])

    standard, whole = p.augment == "standard", p.frame_size
    height = width = p.crop_size
    colours: tuple[float, ...] = ()
    if standard:
        area, ratio = number("area", *AREA), RATIO ** number("ratio", -1, 1)  # ratio of width to height
        # a side that would be longer than the frame's ends with it
        height, width = (min(whole, round(whole * math.sqrt(a))) for a in (area / ratio, area * ratio))
        names = ("brightness", "contrast", "saturation")
        colours = tuple(number(name, 1 - JITTER, 1 + JITTER) for name in names)
    top, left = int(number("y", 0, whole - height + 1)), int(number("x", 0, whole - width + 1))
    return View(top, left, height, width, (p.hflip or standard) and number("flip") < 0.5, colours)


def cut_view(clip: Tensor, view: View, size: int) -> Tensor:
    """(3, T, size, size) uint8: a view of the clip (3, T, S, S) uint8, all frames alike."""
    part = clip[..., view.top : view.top + view.height, view.left : view.left + view.width]
    if view.colours or part.shape[-2:] != (size, size):
        from torchvision.transforms.v2 import functional as F  # here, for it loads as long as torch does

        frames = F.resize(part.transpose(0, 1), [size, size])
        changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
        for change, by in zip(changes, view.colours, strict=False):
            frames = change(frames, by)
        part = frames.transpose(0, 1)
    return part.flip(-1) if view.flip else part


# What a strong view may undergo, by torchvision's F: (T, 3, H, W) uint8 and a number in [0, 1) to its like.
DISTORTIONS: tuple[Callable[[Any, Tensor, float], Tensor], ...] = (
    lambda F, x, by: F.adjust_brightness(x, 0.5 + by),
    lambda F, x, by: F.adjust_contrast(x, 0.5 + by),
    lambda F, x, by: F.adjust_saturation(x, 2 * by),
    lambda F, x, by: F.adjust_hue(x, by - 0.5),
    lambda F, x, by: F.adjust_sharpness(x, 2 * by),
    lambda F, x, by: F.posterize(x, 4 + int(4 * by)),
    lambda F, x, by: F.solarize(x, 128 + 127 * by),
    lambda F, x, by: F.rotate(x, 60 * by - 30),
    lambda F, x, by: F.equalize(x),
    lambda F, x, by: F.horizontal_flip(x),
)


def strong_view(clip: Tensor, draws: Draws, i: int) -> Tensor:
    """FixMatch's strong view of a clip (3, T, S, S) uint8: two distortions and a grey square, in all frames
    alike (RandAugment with two operations, then Cutout of half the side)."""
    from torchvision.transforms.v2 import functional as F  # here, for it loads as long as torch does

    frames = clip.transpose(0, 1)
    for which, by in ((draws.first[i], draws.first_by[i]), (draws.second[i], draws.second_by[i])):
        frames = DISTORTIONS[int(which * len(DISTORTIONS))](F, frames, float(by))
    half = clip.shape[-1] // 2
    y, x = (int(at * clip.shape[-1]) - half // 2 for at in (draws.hole_y[i], draws.hole_x[i]))
    frames = frames.clone()  # a distortion may give back what it was given
    frames[..., max(0, y) : y + half, max(0, x) : x + half] = 127
    return frames.transpose(0, 1)
