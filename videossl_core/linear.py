"""Classifiers on the features of a few labelled videos: a linear layer, or the vote of the nearest ones.

Everything here is NumPy in float64, rows are videos.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Weights of the labelled videos against the L2 penalty that cross-validation chooses among."""
STRENGTH = 100.0
"""The weight where there are too few labels to choose it."""
NEIGHBOURS, TEMPERATURE = 20, 0.07
"""kNN: as many of the nearest labelled videos vote, each with exp(cosine / temperature)."""


@dataclass(frozen=True)
class Scale:
    """Standardises features by the training videos, then gives each kind, the mean and the motion, length 1
    in every video: both count alike, and so do all videos. ``sizes`` are those of the kinds."""

    mean: np.ndarray
    by: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, every: np.ndarray, sizes: Sequence[int]) -> "Scale":
        """From the features (V, D) of all training videos; the ``sizes`` add up to D."""
        spread = every.std(0, dtype=float)
        return cls(every.mean(0, dtype=float), np.where(spread > 1e-6, spread, np.inf), np.array(sizes))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        parts = np.split((x - self.mean) / self.by, np.cumsum(self.sizes)[:-1], axis=1)
        return np.hstack([_unit(part) for part in parts])


@dataclass(frozen=True)
class Linear:
    """Multinomial logistic regression: ``weight`` (C, D), ``bias`` (C,), -inf for a class without a label."""

    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> "Linear":
        """The weights W that minimise ``strength`` * cross-entropy (a sum) + ||W||² / 2."""
        from sklearn.linear_model import LogisticRegression  # here, for it loads as long as torch does

        present, weight, bias = np.unique(labels), np.zeros((classes, x.shape[1])), np.full(classes, -np.inf)
        bias[present] = 0
        if len(present) > 1:
            # the weights are sums of labelled videos: with fewer of these than features, fit in their span
            z, basis = span(x) if len(x) < x.shape[1] else (x, None)
            two = len(present) == 2  # then there is one logit, whose weights are the difference of the two
            fitted = LogisticRegression(C=strength * (1 + two), max_iter=2000, tol=1e-5)
            with warnings.catch_warnings(), threads_for(z):
                warnings.filterwarnings("ignore", "The number of unique classes is greater")
                fitted.fit(z, labels)
            share = np.array([[-0.5], [0.5]]) if two else np.eye(len(present))
            w = share @ fitted.coef_
            weight[present] = w if basis is None else w @ basis @ x
            bias[present] = share @ fitted.intercept_
        return cls(weight, bias)

    def probs(self, x: np.ndarray) -> np.ndarray:
        """(N, D) to (N, C), each row a distribution."""
        with threads_for(x):
            return _softmax(x @ self.weight.T + self.bias)


@dataclass(frozen=True)
class Neighbours:
    """kNN by cosine: the labelled videos (N, D), with length 1, and their ``votes`` (N, C)."""

    near: np.ndarray
    votes: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, labels: np.ndarray, classes: int) -> "Neighbours":
        return cls(_unit(x), np.eye(classes)[labels])

    def probs(self, x: np.ndarray) -> np.ndarray:
        alike = _unit(x) @ self.near.T
        kth = np.sort(alike, axis=1)[:, -min(NEIGHBOURS, alike.shape[1])]
        return _softmax(np.where(alike < kth[:, None], -np.inf, alike / TEMPERATURE)) @ self.votes


CLASSIFIERS: dict[str, type[Linear] | type[Neighbours]] = {"linear": Linear, "knn": Neighbours}


def threads_for(x: np.ndarray) -> AbstractContextManager:
    """In this block NumPy computes in one thread if x is small: threads would only wait for each other."""
    return _threads().limit(limits=1 if x.size < 1e6 else None)


@cache
def _threads() -> ThreadpoolController:
    import sklearn.linear_model  # noqa: F401 - what is loaded later is not seen

    return ThreadpoolController()


def span(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of x (N, D) in an orthonormal basis of what they span, (N, R), and this basis as sums of them,
    (R, N). It takes only their products, which for N far below D is quick."""
    values, vectors = np.linalg.eigh(x @ x.T)
    kept = values >= 1e-10 * values[-1]
    roots = np.sqrt(np.maximum(values[kept], 1e-12))
    return vectors[:, kept] * roots, (vectors[:, kept] / roots).T


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def cross_validated(
    x: np.ndarray, labels: np.ndarray, sources: np.ndarray, classes: int, strength: float, folds: int = 5
) -> np.ndarray:
    """(N, C) probabilities of each labelled video by a fit on the others.

    Videos cut from one source are left out together. There are at most ``folds`` folds, and no more than the
    rarest class has videos, but two at least.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rarest = np.unique(labels, return_counts=True)[1].min()
    cut = StratifiedGroupKFold(max(2, min(folds, rarest, len(set(sources)))), shuffle=True, random_state=0)
    probs = np.zeros((len(x), classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer videos than folds
        for train, held_out in cut.split(x, labels, sources):
            probs[held_out] = Linear.fit(x[train], labels[train], classes, strength).probs(x[held_out])
    return probs


def choose_strength(x: np.ndarray, labels: np.ndarray, sources: np.ndarray, classes: int) -> list[dict]:
    """The candidates by cross-validation on the labelled videos, best first: strength, cv_top1 in percent and
    loss, their mean cross-entropy, which decides. Only the default where a class has but one video."""
    if np.unique(labels, return_counts=True)[1].min() < 2 or len(set(sources)) < 2:
        return [{"strength": STRENGTH}]
    x, rows = span(x)[0], []
    for strength in STRENGTHS:
        probs = cross_validated(x, labels, sources, classes, strength)
        right = float((probs.argmax(1) == labels).mean())
        loss = float(-np.log(np.maximum(probs[np.arange(len(x)), labels], 1e-12)).mean())
        rows.append({"strength": strength, "cv_top1": 100 * right, "loss": loss})
    return sorted(rows, key=lambda row: row["loss"])
