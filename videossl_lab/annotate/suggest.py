"""What the labels so far teach: a guess for every video, its accuracy, and which video to label next."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from videossl_core.data.labels import Rows
from videossl_core.data.splits import source_of
from videossl_core.linear import STRENGTH, Linear, span, threads_for

FOLDS = 5
EVERY, MOST = 5, 20
"""The curve has a point at every fifth label, with more than a hundred at every tenth and so on, and one at
the last."""
BALANCE = 1
"""How much more a video counts whose guess is a class without labels than one of the class with most."""

Training = tuple[tuple[int, int], ...]
"""The number of the video and that of its class, for each training label in the order of the clicks."""


class Learner:
    """A linear layer on the frozen teacher's features, fitted again after each label.

    Only training labels count. A held-out label changes no guess, no accuracy and no suggestion; its video is
    merely not offered again.

    Args:
        x: (V, D) float32, the scaled features of the ``videos``.

    After ``learn`` there are ``count`` (C,), the training labels of each class; ``probs`` (V, C), or None
    before two classes have one; and ``curve``, pairs of a number of labels and the accuracy with these in
    percent.
    """

    def __init__(self, videos: list[str], x: np.ndarray, classes: list[str]):
        self.videos, self.x, self.classes = videos, x, classes
        self.number = {video: i for i, video in enumerate(videos)}
        some = x[:: 1 + len(x) // 2000]
        parts = np.array_split(x, 1 + len(x) // 1000)
        # the most similar one is left out: as a rule it is the video itself
        self.crowd = np.concatenate([np.sort(part @ some.T, axis=1)[:, -6:-1].sum(1) for part in parts])
        self.accuracy = lru_cache(1000)(self._cross_validate)
        self.learn({})

    def learn(self, rows: Rows) -> None:
        """Fit the training labels among ``rows``; of their curve only what is new is computed."""
        train: Training = tuple(
            (self.number[video], self.classes.index(label))
            for video, (label, split) in rows.items()
            if split == "train" and video in self.number
        )
        at, labels = np.array(train, int).reshape(-1, 2).T
        self.count = np.bincount(labels, minlength=len(self.classes))
        step = EVERY
        while len(train) > MOST * step:
            step *= 2
        points = [*range(step, len(train), step), len(train)]
        x = self.x[at].astype(float)
        with threads_for(x):
            curve = [(n, self.accuracy(train[:n])) for n in points]
            fitted = Linear.fit(x, labels, len(self.classes), STRENGTH)
            fitted = replace(fitted, weight=fitted.weight.astype(np.float32))
            self.probs = fitted.probs(self.x) if (self.count > 0).sum() > 1 else None
        self.curve = [(n, accuracy) for n, accuracy in curve if accuracy is not None]

    def _cross_validate(self, train: Training) -> float | None:
        """Each fifth is predicted by a fit on the others; the videos of one source stay together, and a video
        stays in its fifth when labels are added. None where nothing can be left out."""
        at, labels = np.array(train, int).reshape(-1, 2).T
        fold = pd.factorize(np.array([source_of(self.videos[i]) for i in at]))[0] % FOLDS
        if len(set(labels)) < 2 or len(set(fold)) < 2:
            return None
        (x, _), right = span(self.x[at].astype(float)), 0
        for k in set(fold):
            fitted = Linear.fit(x[fold != k], labels[fold != k], len(self.classes), STRENGTH)
            right += (fitted.probs(x[fold == k]).argmax(1) == labels[fold == k]).sum()
        return 100 * float(right) / len(at)

    def guess(self, video: str) -> list[tuple[str, float]]:
        """The classes and their probabilities, the likeliest first; none before two classes have a label."""
        if self.probs is None or not video:
            return []
        probs = self.probs[self.number[video]]
        return [(self.classes[i], float(probs[i])) for i in np.argsort(-probs, kind="stable")]

    def left(self, rows: Rows) -> np.ndarray:
        """The numbers of the videos that have no label and were not skipped."""
        return np.flatnonzero([video not in rows for video in self.videos])

    def sure(self, rows: Rows, delta: float) -> int:
        """How many of the videos that are left have a guess of at least this probability."""
        return 0 if self.probs is None else int((self.probs[self.left(rows)].max(1) >= delta).sum())

    def suggest(self, rows: Rows) -> str:
        """The video whose label is worth most, "" if none is left: one with a small margin between its two
        likeliest classes, rather one whose guess is a class of few labels. Before two classes have a label,
        it is one unlike those seen so far, but no oddity."""
        left = self.left(rows)
        if not len(left):
            return ""
        if self.probs is not None:
            second, first = np.sort(self.probs[left])[:, -2:].T
            rarity = 1 - self.count[self.probs[left].argmax(1)] / self.count.max()
            score = (1 - first + second) * (1 + BALANCE * rarity)
        else:
            known = (v for v, (_, split) in rows.items() if split != "test" and v in self.number)
            seen = [self.number[video] for video in known]
            alike = (self.x[left] @ self.x[seen].T).max(1, initial=0)
            score = (np.square(self.x[left]).sum(1) - alike) * self.crowd[left]
        return self.videos[left[score.argmax()]]

    def why(self, video: str) -> str:
        """What speaks for this video, in a few words."""
        if guess := self.guess(video):
            name, probability = guess[1]
            return f"the next guess would be {name}, {100 * probability:.0f} %"
        return "unlike those seen so far" if self.count.any() else "a typical video to begin with"
