"""Clip and video top-1 as the paper reports them (4.1), per video and per class; one code for all methods."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import nn

from videossl_core.batches import EvalClips, loader, prefetch
from videossl_core.data.frames import FrameStore
from videossl_core.devices import enough_memory
from videossl_core.distributed import Ranks
from videossl_core.models import folded
from videossl_core.params import Params
from videossl_core.progress import track


@dataclass(frozen=True)
class Predictions:
    """A network's predictions for some videos, the ``rows`` (video, class_name, label).

    ``clip_probs`` and ``video_probs`` are (videos, C) float64, each row a distribution; ``every_clip`` is
    (clips, C), of all consecutive clips in order of video and start, if they were kept.
    """

    rows: pd.DataFrame
    classes: list[str]
    clip_probs: np.ndarray
    video_probs: np.ndarray
    every_clip: np.ndarray | None = None

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a video: video, class_name, label, and of both protocols the predicted class, its
        confidence and whether it is right (clip_pred, clip_confidence, clip_right, video_pred, ...; not right
        or wrong, but empty, where the label is unknown, -1)."""
        table = self.rows[["video", "class_name", "label"]].reset_index(drop=True)
        for kind, probs in (("clip", self.clip_probs), ("video", self.video_probs)):
            best = probs.argmax(1)
            table[f"{kind}_pred"] = [self.classes[i] for i in best]
            table[f"{kind}_confidence"] = probs.max(1)
            table[f"{kind}_right"] = (table.label == best).where(table.label >= 0)
        return table

    def top1(self) -> dict[str, float]:
        """clip_top1 and video_top1 in percent."""
        return {f"{kind}_top1": 100 * float(self.table[f"{kind}_right"].mean()) for kind in ("clip", "video")}

    def per_class(self) -> pd.DataFrame:
        """Per class, in order of label: videos, clip_top1 and video_top1 in percent."""
        groups = self.table.groupby(["label", "class_name"])
        top1 = 100 * groups[["clip_right", "video_right"]].mean()
        top1.columns = ["clip_top1", "video_top1"]
        top1.insert(0, "videos", groups.size())
        return top1.reset_index()


@torch.inference_mode()
def predict(
    network: nn.Module,
    p: Params,
    rows: pd.DataFrame,
    classes: list[str],
    store: FrameStore,
    device: str,
    ranks: Ranks | None = None,
    every_clip: bool = False,
) -> Predictions:
    """Predict every clip of these videos.

    The clip prediction is that of the centre clip (centre in time and space); the video prediction is the
    mean of the softmax over all consecutive non-overlapping clips.

    Args:
        network: maps clips to {"classes": (N, C) logits}; it stays as it is.
        rows: videos with the columns video, class_name, label.
        ranks: the processes that share the work; each takes its own videos and gets all predictions.
        every_clip: keep the probabilities of every single clip too (in one process only).

    Raises:
        FloatingPointError: names the video whose prediction is not finite.
        MemoryError: the device's memory is too small for ``batch_size``.
    """
    ranks = ranks or Ranks()
    mine = np.arange(len(rows))[ranks.rank :: ranks.count]
    clips = EvalClips(p, list(rows.video.iloc[mine]), store)
    both = clip_probs, video_probs = np.zeros((2, len(rows), len(classes)))
    every = [np.zeros((0, len(classes)))]
    batches = loader(clips, p, device)
    with enough_memory(p):
        network = folded(network)
        for pixels, video, centre in track(prefetch(batches, device), len(batches), "evaluating"):
            video, centre = video.cpu().numpy(), centre.cpu().numpy()
            probs = network(pixels)["classes"].cpu().double().softmax(-1).numpy()
            if not np.isfinite(probs).all():
                bad = clips.videos[video[~np.isfinite(probs).all(1)][0]]
                raise FloatingPointError(f"{bad}: the network's prediction is not finite")
            video = mine[video]
            clip_probs[video[centre]] = probs[centre]
            np.add.at(video_probs, video[~centre], probs[~centre])
            if every_clip:
                every.append(probs[~centre])
    # a video is predicted by one process, and zero in all others
    clip_probs, video_probs = np.sum(ranks.gather(both), axis=0)
    video_probs /= video_probs.sum(1, keepdims=True)
    every_probs = np.concatenate(every) if every_clip else None
    return Predictions(rows, classes, clip_probs, video_probs, every_probs)


def evenly_spaced(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """At most n rows, the same each time, spread evenly over the table (sorted by video, so by class)."""
    if len(rows) <= n:
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, n).round().astype(int)]
