"""The frozen teacher with a linear layer on its features: no network is trained, a fit takes seconds.

Not in the paper. It is the first thing to compare VideoSSL with, for it uses the same image classifier.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch
from threadpoolctl import ThreadpoolController

from videossl_core import sampling, teacher
from videossl_core.data.frames import FrameStore
from videossl_core.data.splits import source_of
from videossl_core.devices import device
from videossl_core.distributed import Ranks
from videossl_core.evaluation import Predictions
from videossl_core.methods import METHODS
from videossl_core.params import Params
from videossl_core.prepare import Data
from videossl_core.progress import track
from videossl_core.teacher import Targets

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Weights of the labelled videos against the L2 penalty that cross-validation chooses among."""
STRENGTH = 100.0
"""The weight where there are too few labels to choose it."""
NEIGHBOURS, TEMPERATURE = 20, 0.07
"""kNN: as many of the nearest labelled videos vote, each with exp(cosine / temperature)."""


def features(quarters: np.ndarray, kind: str) -> np.ndarray:
    """Features of a video, or of a clip, from those of its frames (frames, F, 2, 2).

    ``mean`` (F,) says what is there. ``mean_and_motion`` (5 F,) adds how each quarter of the picture differs
    between the later and the earlier half of the frames.
    """
    mean, half = quarters.mean((0, 2, 3)), len(quarters) // 2
    if kind == "mean":
        return mean
    motion = quarters[-half:].mean(0) - quarters[:half].mean(0) if half else np.zeros_like(quarters[0])
    return np.concatenate([mean, motion.ravel()])


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
    def fit(cls, x: np.ndarray, labels: np.ndarray, classes: int, strength: float = 0) -> "Neighbours":
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
    rows = []
    for strength in STRENGTHS:
        probs = cross_validated(x, labels, sources, classes, strength)
        right = float((probs.argmax(1) == labels).mean())
        loss = float(-np.log(np.maximum(probs[np.arange(len(x)), labels], 1e-12)).mean())
        rows.append({"strength": strength, "cv_top1": 100 * right, "loss": loss})
    return sorted(rows, key=lambda row: row["loss"])


def kind_of(p: Params) -> str:
    """Which features the run uses: ``probe_features``, or those of its method."""
    return p.probe_features or METHODS[p.method].features


def sizes_of(p: Params) -> tuple[int, ...]:
    """How many there are of each kind: of the mean, and of the motion."""
    size = teacher.TEACHERS[p.teacher].features
    return (size,) if kind_of(p) == "mean" else (size, 4 * size)


class Probe:
    """A fitted classifier on the features of videos, with all that its checkpoint holds.

    ``scale`` and ``classifier`` are what ``fit`` made.
    """

    def __init__(self, p: Params, classes: list[str], scale: Scale, classifier: Linear | Neighbours):
        self.p, self.classes, self.scale, self.classifier = p, classes, scale, classifier

    def state_dict(self) -> dict[str, torch.Tensor]:
        arrays = vars(self.scale) | vars(self.classifier)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def load(cls, p: Params, checkpoint: dict) -> "Probe":
        arrays = {name: tensor.numpy() for name, tensor in checkpoint["model"].items()}
        scale = Scale(*(arrays.pop(name) for name in ("mean", "by", "sizes")))
        return cls(p, checkpoint["classes"], scale, CLASSIFIERS[p.probe_classifier](**arrays))

    def predict(
        self, rows: pd.DataFrame, store: FrameStore, targets: Targets, every_clip: bool = False
    ) -> Predictions:
        """Predict these videos (video, class_name, label), which the teacher has seen: the clip prediction
        from the frames of the centre clip, the video prediction from all frames; see ``evaluation.predict``.
        """
        p, kind, probs = self.p, kind_of(self.p), []
        counts = store.table.frames.reindex(rows.video).astype(int)
        for video, count in track(counts.items(), len(counts), "evaluating"):
            seen = targets.features(video)
            starts = [sampling.centre_start(count, p.clip_frames)]
            starts += sampling.clip_starts(count, p.clip_frames, p.last_clip) if every_clip else []
            clips = [features(seen[self._of_clip(len(seen), start)], kind) for start in starts]
            # video by video: the features of all clips would take gigabytes
            probs.append(self.classifier.probs(self.scale(np.stack([features(seen, kind), *clips]))))
        none = np.zeros((0, len(self.classes)))
        of_videos, of_clips = (np.vstack([none, *(part[i] for part in probs)]) for i in (0, 1))
        of_every = np.vstack([none, *(part[2:] for part in probs)]) if every_clip else None
        return Predictions.of(rows, self.classes, of_clips, of_videos, of_every)

    def _of_clip(self, count: int, start: int) -> list[int]:
        """Which of the frames that the teacher saw lie in the clip, or else the one nearest to its middle."""
        p, stride = self.p, self.p.teacher_stride
        inside = [i for i in range(count) if start <= i * stride < start + p.clip_frames]
        return inside or [min(count - 1, round((start + p.clip_frames / 2) / stride))]


def fit(p: Params, data: Data) -> tuple[Probe, list[dict]]:
    """Fit the run's classifier on its labelled videos; the rows are those of ``choose_strength``."""
    assert data.targets is not None
    kind, split = kind_of(p), data.split[data.split.role != "test"]
    seen = track(map(data.targets.features, split.video), len(split), "reading the teacher's features")
    x = np.stack([features(quarters, kind) for quarters in seen])
    scale = Scale.of(x, sizes_of(p))
    known = (split.role == "labelled").to_numpy()
    labelled = split[known]
    x, labels = scale(x[known]), labelled.label.to_numpy()
    rows = choose_strength(x, labels, labelled.video.map(source_of).to_numpy(), len(data.classes))
    classifier = CLASSIFIERS[p.probe_classifier].fit(x, labels, len(data.classes), rows[0]["strength"])
    return Probe(p, data.classes, scale, classifier), rows


class ProbeTrainer:
    """What ``training.Trainer`` is for a network. One fit is its one step, and the rows of log.csv are the
    strengths tried, best first."""

    precision, evaluation_due = "fp64", False

    def __init__(self, p: Params, data: Data, ranks: Ranks | None = None):
        self.p, self.data, self.device = p, data, device(p)
        self.probe: Probe | None = None
        self.seconds = 0.0
        self.log: list[dict] = []
        self.metrics: list[dict] = []
        self.test_predictions: Predictions | None = None

    def __iter__(self) -> Iterator[dict]:
        for rows in self.steps():
            yield from rows

    def steps(self) -> Iterator[list[dict]]:
        if self.probe is None:
            begun = time.perf_counter()
            self.probe, tried = fit(self.p, self.data)
            self.log += [{"step": 1, **row} for row in tried]
            for subset in ("test", "unlabelled"):
                videos = self.data.rows(subset)
                videos = videos[videos.label >= 0]  # nobody knows the class of a user's unlabelled videos
                if len(videos):
                    assert self.data.targets is not None
                    predictions = self.probe.predict(videos, self.data.store, self.data.targets)
                    facts = {"step": 1, "subset": subset} | predictions.top1()
                    self.metrics.append(facts | {"videos": len(videos)})
                    self.test_predictions = predictions if subset == "test" else self.test_predictions
            self.seconds = time.perf_counter() - begun
            yield [*self.log, *self.metrics]

    def facts(self) -> dict:
        return self.data.facts() | {"method": self.p.method}

    def state_dict(self) -> dict:
        """The fit, as tensors and plain containers."""
        model = self.probe.state_dict() if self.probe else None
        rows = {"log": self.log, "metrics": self.metrics}
        return {"step": 1, "seconds": self.seconds, "model": model} | rows | self.facts()

    def load_state_dict(self, state: dict) -> None:
        self.probe, self.seconds = Probe.load(self.p, state), state["seconds"]
        self.log[:], self.metrics[:] = state["log"], state["metrics"]

    def check_weights(self) -> None:
        """A fit is finite, or raised an error."""
