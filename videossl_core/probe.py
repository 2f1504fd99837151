"""The frozen teacher with a linear layer on its features: no network is trained, a fit takes seconds.

Not in the paper. It is the first thing to compare VideoSSL with, for it uses the same image classifier.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
import torch

from videossl_core import sampling, teacher
from videossl_core.data.frames import FrameStore
from videossl_core.data.splits import source_of
from videossl_core.devices import device
from videossl_core.distributed import Ranks
from videossl_core.evaluation import Predictions
from videossl_core.linear import CLASSIFIERS, Linear, Neighbours, Scale, choose_strength
from videossl_core.methods import METHODS
from videossl_core.params import Params
from videossl_core.prepare import Data
from videossl_core.progress import track
from videossl_core.teacher import Targets


def features(quarters: np.ndarray, kind: str) -> np.ndarray:
    """Features of a video, or of a clip, from those of its frames (frames, F, 2, 2); float32.

    ``mean`` (F,) says what is there. ``mean_and_motion`` (5 F,) adds how each quarter of the picture differs
    between the later and the earlier half of the frames.
    """
    mean, half = _mean(quarters, (0, 2, 3)), len(quarters) // 2
    if kind == "mean":
        return mean
    none = np.zeros(quarters.shape[1:], np.float32)
    motion = _mean(quarters[-half:], 0) - _mean(quarters[:half], 0) if half else none
    return np.concatenate([mean, motion.ravel()])


def _mean(quarters: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean over the frames, and perhaps more axes, with a thousand of them in memory."""
    parts = [quarters[i : i + 1000] for i in range(0, len(quarters), 1000)]
    total = sum(part.astype(np.float32).sum(axis) for part in parts)
    return total / np.float32(quarters.size / np.size(total))


def kind_of(p: Params) -> str:
    """Which features the run uses: ``probe_features``, or those of its method."""
    return p.probe_features or METHODS[p.method].features


def sizes_of(p: Params, count: int) -> tuple[int, ...]:
    """How many of so many features there are of each kind: of the mean, and of the motion."""
    return (count,) if kind_of(p) == "mean" else (count // 5, 4 * (count // 5))


@dataclass
class Probe:
    """A fitted classifier on the features of videos, with all that its checkpoint holds.

    ``scale`` and ``classifier`` are what ``fit`` made.
    """

    p: Params
    classes: list[str]
    scale: Scale
    classifier: Linear | Neighbours

    def state_dict(self) -> dict[str, torch.Tensor]:
        arrays = vars(self.scale) | vars(self.classifier)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def load(cls, p: Params, checkpoint: dict) -> "Probe":
        arrays = {name: tensor.numpy() for name, tensor in checkpoint["model"].items()}
        scale = Scale(*(arrays.pop(name) for name in ("mean", "by", "sizes")))
        return cls(p, checkpoint["classes"], scale, CLASSIFIERS[p.probe_classifier](**arrays))

    def predict(
        self, rows: pd.DataFrame, store: FrameStore, targets: Targets | None = None, every_clip: bool = False
    ) -> Predictions:
        """Predict these videos (video, class_name, label): the clip prediction from the frames of the centre
        clip, the video prediction from all frames; see ``evaluation.predict``. Without ``targets``, the
        teacher sees the videos first."""
        p, kind, probs = self.p, kind_of(self.p), []
        targets = targets or teacher.build_targets(p, store, list(rows.video), device(p), features=True)
        counts = store.table.frames.reindex(rows.video).astype(int)
        for video, count in track(counts.items(), len(counts), "evaluating"):
            seen = targets.features(video)
            starts = [sampling.centre_start(p, count)]
            starts += sampling.clip_starts(p, count) if every_clip else []
            parts = chain([seen], (seen[self._of_clip(len(seen), start)] for start in starts))
            x = (self.scale(features(part, kind)[None]) for part in parts)  # those of a film are gigabytes
            probs.append(np.vstack([self.classifier.probs(row) for row in x]))
        none = np.zeros((0, len(self.classes)))
        of_videos, of_clips = (np.vstack([none, *(part[i] for part in probs)]) for i in (0, 1))
        of_every = np.vstack([none, *(part[2:] for part in probs)]) if every_clip else None
        return Predictions(rows, self.classes, of_clips, of_videos, of_every)

    def _of_clip(self, count: int, start: int) -> list[int]:
        """Which of the frames that the teacher saw lie in the clip; two at least, for one alone has no
        motion: if need be those nearest to its middle."""
        p, stride = self.p, self.p.teacher_stride
        if p.clips == "spread":  # each is of the whole video
            return list(range(count))
        inside = range(-(-start // stride), min(count, -(-(start + p.clip_frames) // stride)))
        if len(inside) > 1:
            return list(inside)
        middle = start + (p.clip_frames - 1) / 2
        around = min(count - 1, int(middle / stride))
        near = range(max(0, around - 2), min(count, around + 3))
        return sorted(sorted(near, key=lambda i: abs(i * stride - middle))[:2])


def features_of(p: Params, targets: Targets, videos: Sequence[str]) -> np.ndarray:
    """(V, D) float32, not yet scaled, of videos that the teacher has seen."""
    seen = track(map(targets.features, videos), len(videos), "reading the teacher's features")
    return np.stack([features(quarters, kind_of(p)) for quarters in seen])


def fit(p: Params, data: Data) -> tuple[Probe, list[dict]]:
    """Fit the run's classifier on its labelled videos; the rows are those of ``choose_strength``, or of kNN,
    which has nothing to choose, one without values."""
    assert data.targets is not None
    split = data.split[data.split.role.isin(["labelled", "unlabelled"])]
    x, known = features_of(p, data.targets, split.video), (split.role == "labelled").to_numpy()
    scale, labelled = Scale.of(x, sizes_of(p, x.shape[1])), split[known]
    x, labels = scale(x[known]), labelled.label.to_numpy()
    if p.probe_classifier == "knn":
        return Probe(p, data.classes, scale, Neighbours.fit(x, labels, len(data.classes))), [{}]
    rows = choose_strength(x, labels, labelled.video.map(source_of).to_numpy(), len(data.classes))
    classifier = Linear.fit(x, labels, len(data.classes), rows[0]["strength"])
    return Probe(p, data.classes, scale, classifier), rows


class ProbeTrainer:
    """What ``training.Trainer`` is for a network. One fit is its one step, and the rows of log.csv are the
    strengths tried, best first."""

    precision, evaluation_due, best = "fp64", False, None

    def __init__(self, p: Params, data: Data, ranks: Ranks | None = None):
        self.p, self.data, self.device = p, data, device(p)
        self.probe: Probe | None = None
        self.seconds = 0.0
        self.log: list[dict] = []
        self.metrics: list[dict] = []
        self.test_predictions: Predictions | None = None

    def steps(self) -> Iterator[list[dict]]:
        """One step, all or nothing: what is interrupted leaves no half of it to be saved."""
        begun, metrics, of_test = time.perf_counter(), [], None
        assert self.data.targets is not None
        fitted, tried = fit(self.p, self.data)
        for subset in ("val", "test", "unlabelled"):
            videos = self.data.rows(subset)
            videos = videos[videos.label >= 0]  # nobody knows the class of a user's unlabelled videos
            if len(videos):
                predictions = fitted.predict(videos, self.data.store, self.data.targets)
                metrics.append({"step": 1, "subset": subset, **predictions.top1(), "videos": len(videos)})
                of_test = predictions if subset == "test" else of_test
        self.log, self.metrics = [{"step": 1, **row} for row in tried], metrics
        self.seconds, self.test_predictions = time.perf_counter() - begun, of_test
        self.probe = fitted
        yield [*self.log, *self.metrics]

    def facts(self) -> dict:
        return self.data.facts() | {"method": self.p.method}

    def state_dict(self) -> dict:
        """The fit, as tensors and plain containers."""
        model = self.probe.state_dict() if self.probe else None
        rows = {"log": self.log, "metrics": self.metrics}
        return {"step": 1, "seconds": self.seconds, "model": model} | rows | self.facts()

    def load_state_dict(self, state: dict) -> None:
        """A fit takes seconds: it is made again."""

    def check_weights(self) -> None:
        """A fit is finite, or raised an error."""
