"""Clip and video top-1 as the paper reports them (4.1), per video and per class; one code for all methods."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import nn

from videossl_core.data.frames import FrameStore
from videossl_core.data.pool import quiet
from videossl_core.distributed import Ranks
from videossl_core.models import folded
from videossl_core.sampling import TestClips, ahead, loader

if TYPE_CHECKING:
    from videossl_core.params import Params


@dataclass(frozen=True)
class Predictions:
    """What a network says of some videos.

    ``table`` has one row a video: video, class_name, label, and of both protocols the predicted class, its
    confidence and whether it is right (clip_pred, clip_confidence, clip_right, video_pred, ...; not right or
    wrong, but empty, where the label is unknown, -1). ``clip_probs`` and ``video_probs`` are (videos, C)
    float64, each row a distribution; ``every_clip`` is (clips, C), of all consecutive clips in order of
    video and start, if they were asked for.
    """

    table: pd.DataFrame
    clip_probs: np.ndarray
    video_probs: np.ndarray
    every_clip: np.ndarray | None = None

    def top1(self) -> dict[str, float]:
        """clip_top1 and video_top1 in percent."""
        return {f"{kind}_top1": 100 * float(self.table[f"{kind}_right"].mean()) for kind in ("clip", "video")}

    def per_class(self) -> pd.DataFrame:
        """Per class, in order of label: videos, clip_top1 and video_top1 in percent."""
        groups = self.table.groupby(["label", "class_name"])
        both = 100 * groups[["clip_right", "video_right"]].mean()
        both.columns = ["clip_top1", "video_top1"]
        return both.assign(videos=groups.size()).reset_index()[
            ["label", "class_name", "videos", "clip_top1", "video_top1"]
        ]


@torch.inference_mode()
def predict(
    network: nn.Module,
    p: "Params",
    rows: pd.DataFrame,
    classes: list[str],
    store: FrameStore,
    device: str,
    progress=quiet,
    ranks: Ranks | None = None,
    every_clip: bool = False,
) -> Predictions:
    """Look at every clip of these videos.

    The clip prediction is that of the centre clip (centre in time and space); the video prediction is the
    mean of the softmax over all consecutive non-overlapping clips.

    Args:
        network: maps clips to {"classes": (N, C) logits}; it stays as it is.
        rows: videos with the columns video, class_name, label.
        ranks: the processes that share the work; each looks at its own videos and gets all answers.
        every_clip: keep what it says of every single clip too (in one process only).
    """
    ranks = ranks or Ranks()
    mine = list(rows.video)[ranks.rank :: ranks.count]
    clips = TestClips(p, mine, store)
    clip_probs = np.zeros((len(mine), len(classes)))
    video_probs = np.zeros((len(mine), len(classes)))
    batches = loader(clips, p, device, batch_size=p.batch_size)
    each = []
    network = folded(network)
    for pixels, video, centre in progress(ahead(batches), len(batches), "evaluating"):
        probs = network(pixels.to(device, non_blocking=True))["classes"].double().softmax(-1).cpu().numpy()
        if not np.isfinite(probs).all():
            bad = clips.videos[int(video[~np.isfinite(probs).all(1)][0])]
            raise FloatingPointError(f"{bad}: what the network says of it is not finite")
        video, centre = video.numpy(), centre.numpy()
        clip_probs[video[centre]] = probs[centre]
        np.add.at(video_probs, video[~centre], probs[~centre])
        if every_clip:
            each.append(probs[~centre])
    video_probs /= video_probs.sum(1, keepdims=True)
    clip_probs, video_probs = _together(ranks.gather((clip_probs, video_probs)), len(rows))
    table = rows[["video", "class_name", "label"]].reset_index(drop=True)
    for kind, probs in (("clip", clip_probs), ("video", video_probs)):
        best = probs.argmax(1)
        table[f"{kind}_pred"] = [classes[i] for i in best]
        table[f"{kind}_confidence"] = probs.max(1)
        table[f"{kind}_right"] = (table.label == best).where(table.label >= 0)
    return Predictions(table, clip_probs, video_probs, np.concatenate(each) if every_clip else None)


@dataclass(frozen=True)
class Gain:
    """How much better one network is than another on the same videos, in points of top-1.

    ``won`` and ``lost`` count the videos that only it, only the other gets right; ``low`` to ``high`` is a
    95 % interval.
    """

    videos: int
    won: int
    lost: int
    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"gain in video top-1: {self.points:+.1f} points (95 % interval {self.low:+.1f} to "
            f"{self.high:+.1f}; {self.videos} videos: {self.won} won, {self.lost} lost)"
        )


def paired_gain(first: np.ndarray, last: np.ndarray) -> Gain:
    """The gain of the last over the first, from which videos each gets right, (videos,) bool.

    Both are asked about the same videos, so only those count on which they differ. The interval is the
    normal one after half a video was added to each cell of the fourfold table, which keeps it honest when
    there are few videos (Agresti and Min, 2005).
    """
    n, won, lost = len(first), int((last & ~first).sum()), int((first & ~last).sum())
    b, c, m = won + 0.5, lost + 0.5, n + 2
    centre, half = (b - c) / m, 1.96 * np.sqrt(b + c - (b - c) ** 2 / m) / m
    low, high = max(-100.0, 100 * (centre - half)), min(100.0, 100 * (centre + half))
    return Gain(n, won, lost, 100 * (won - lost) / n, float(low), float(high))


def _together(shares: list[tuple[np.ndarray, np.ndarray]], n: int) -> list[np.ndarray]:
    """Put the rows of every process back into their places."""
    whole = []
    for parts in zip(*shares, strict=True):
        out = np.empty((n, parts[0].shape[1]))
        for rank, part in enumerate(parts):
            out[rank :: len(parts)] = part
        whole.append(out)
    return whole


def at_most(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """The same n rows each time, spread evenly over the table (which is sorted by video, so by class)."""
    if len(rows) <= n:
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, n).round().astype(int)]
