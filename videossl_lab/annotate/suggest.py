"""Which video to label next."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from videossl_core import teacher
from videossl_core.data.frames import FrameStore
from videossl_core.data.labels import Rows
from videossl_core.devices import device
from videossl_core.params import Params
from videossl_core.progress import track

BALANCE = 2  # how much more a video like a class without labels counts than one like the class with most


@dataclass(frozen=True)
class Likeness:
    """How alike videos are: the product of the ``roots`` (V, M) of their distributions over the teacher's
    classes, 1 for the same and 0 for disjoint ones. ``crowd`` (V,) sums that of the five nearest videos."""

    roots: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, softmax: np.ndarray) -> "Likeness":
        """From the teacher's mean softmax of each video, (V, M)."""
        roots = np.sqrt(softmax / softmax.sum(1, keepdims=True))
        parts = np.array_split(roots, 1 + len(roots) // 1000)
        # The most similar one, left out here, is the video itself.
        nearest = [np.sort(part @ roots.T, axis=1)[:, -6:-1].sum(1) for part in parts]
        return cls(roots, np.concatenate(nearest))


def mean_softmax(p: Params, store: FrameStore, videos: list[str]) -> np.ndarray:
    """(V, M): the teacher's mean softmax over three frames, spread over each video."""
    classifier = teacher.Classifier(p.teacher, p.teacher_weights).to(device(p))
    counts = teacher.frames_to_see(store, videos)
    means = []
    for video in track(videos, len(videos), f"the teacher looks at three frames a video ({p.teacher})"):
        spread = ((np.arange(3) + 0.5) / 3 * counts[video]).astype(int)
        means.append(classifier.look(store, video, spread)[0].mean(0).cpu().numpy())
    return np.stack(means)


def suggest(
    videos: list[str], likeness: Likeness, rows: Rows, classes: list[str], table: pd.DataFrame | None = None
) -> tuple[str, str]:
    """The video whose label is worth most, and why in a few words; ("", "") if none is left.

    After a training, prefers a small margin between the two likeliest classes. Before, prefers diverse but
    not outlying videos. Either way, videos of rare classes come sooner; the class is the predicted one, or
    that of the most similar labelled video.

    Args:
        rows: videos that have a label or are skipped already.
        table: by video, predicted class and margin of an earlier training; a video without has margin 0.
    """
    seen = np.array([video in rows for video in videos])
    left, labelled = np.flatnonzero(~seen), np.flatnonzero(seen)
    if not len(left):
        return "", ""
    if table is not None:
        latest = table.reindex([videos[i] for i in left])
        margin, guesses = latest.margin.fillna(0).to_numpy(), latest.predicted.fillna("")
        score = 1 - margin
        reasons = [
            f"taken for {name}, margin {m:.2f}" if name else "new since the last training"
            for name, m in zip(guesses, margin, strict=True)
        ]
    elif len(labelled):
        alike = likeness.roots[left] @ likeness.roots[labelled].T
        score = (1 - alike.max(1)) * likeness.crowd[left]
        guesses = [rows[videos[labelled[i]]][0] for i in alike.argmax(1)]
        reasons = ["unlike those seen so far"] * len(left)
    else:
        return videos[left[likeness.crowd[left].argmax()]], "a typical video to begin with"
    count = {name: sum(label == name for label, _ in rows.values()) for name in classes}
    most = max(1, *count.values())
    rarity = np.array([1 - count.get(name, most) / most for name in guesses])
    best = int((score * (1 + BALANCE * rarity)).argmax())
    return videos[left[best]], reasons[best]
