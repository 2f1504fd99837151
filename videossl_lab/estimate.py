"""What a data set will cost in disk, memory and hours, by the rates that ``make bench`` measured."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import av
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from videossl_core import models
from videossl_core.data import codec, datasets
from videossl_core.image_classifiers import row_of
from videossl_core.methods import METHODS
from videossl_core.needs import NEEDS
from videossl_core.params import Params
from videossl_core.paths import ROOT
from videossl_core.teacher import Classifier


@dataclass(frozen=True)
class Cost:
    """``gigabytes`` of frames and of the teacher's softmax and features, hours of decoding, of the teacher,
    and of training one run, which takes ``memory`` in gigabytes."""

    videos: int
    gigabytes: float
    decoding: float
    teacher: float
    training: float
    memory: float

    def __str__(self) -> str:
        return (
            f"{self.videos} videos: about {self.gigabytes:.3g} GB, {_hours(self.decoding)} of "
            f"decoding, {_hours(self.teacher)} of the teacher's time; one training run takes about "
            f"{_hours(self.training)} and {self.memory:.2g} GB of memory"
        )


LIBRARIES = 1.0
"""Gigabytes of a training's libraries, and of the notebook around it."""
RELATIVE = {"resnet50": 5.8, "efficientnet_lite0": 1.0, "untaught": 1.0}
"""The time of a frame relative to the teacher whose rate ``make bench`` measures, on AVX-512 cores. Another
teacher is taken to be as slow as resnet50."""


def _hours(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 1 else f"{60 * hours:.2g} min"


def matrix_rate(n: int = 2048) -> float:
    """GFLOP/s of a large fp32 matrix product on the processor, the best of ten: what times of different
    machines are compared by."""
    a, b = torch.randn(2, n, n)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds) / 1e9


def rates() -> dict:
    """What ``make bench`` measured on this machine, or else the published figures."""
    for folder in (ROOT / "outputs" / "bench", ROOT / "outputs" / "reference" / "bench"):
        if (folder / "bench.json").exists():
            return json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    raise FileNotFoundError("no outputs/bench/bench.json: run make bench")


def macs(p: Params, classes: int = 101) -> float:
    """Multiply-adds of a training step per clip: forward, backward, and the further passes of the method."""
    method = METHODS[p.method]
    if not method.terms:
        return 0  # a fit on the teacher's features takes seconds
    return _one_clip(p, classes)[0] * (1 + sum(NEEDS[name].passes(p) for name in method.needs))


def memory(p: Params, classes: int = 101) -> float:
    """Gigabytes that a training takes: what the backward pass needs of all clips and extra views, and the
    weights, their gradients and momentum.

    Half precision saves an eighth of it at most, which is not counted: batch norms keep fp32.
    """
    method = METHODS[p.method]
    if not method.terms:
        return LIBRARIES
    _, of_clip, weights = _one_clip(p, classes)
    views = sum(NEEDS[name].passes(p) for name in method.needs if NEEDS[name].views)
    return LIBRARIES + (p.batch_size * (1 + views) * of_clip + 3 * weights) / 1e9


def _one_clip(p: Params, classes: int) -> tuple[float, float, float]:
    heads = METHODS[p.method].heads(classes, p)
    return _counted(p.backbone, p.shortcut, p.width, p.clip_frames, p.crop_size, tuple(heads.items()))


@cache
def _counted(
    backbone: str, shortcut: str, width: float, frames: int, side: int, heads: tuple
) -> tuple[float, float, float]:
    """Of one clip in fp32 the multiply-adds, forward and backward, and the bytes that the one leaves for the
    other; and the bytes of the weights. Nothing is computed."""
    kept: dict[int, int] = {}  # bytes by storage: layers share some

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device("meta"):
        network = models.VideoNet(backbone, dict(heads), shortcut, width)
        clips = torch.zeros(2, 3, frames, side, side, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        out = sum(logits.sum() for logits in network(clips).values())
        weights = {w.untyped_storage()._cdata: w.untyped_storage().nbytes() for w in network.parameters()}
        left = sum(size for storage, size in kept.items() if storage not in weights)
        out.backward()
    return counter.get_total_flops() / 2 / len(clips), left / len(clips), sum(weights.values())


@cache
def _teacher_values(name: str) -> int:
    """How many numbers a frame's softmax and features are."""
    classifier = Classifier(name, trained=False)
    return classifier.row.classes + 4 * classifier.features


def frames_per_video(p: Params, index: datasets.Index, sample: int = 12) -> float:
    """Mean over a few videos, by their headers and the rate at which they are read; 0 where none can be."""
    counts = []
    for video in index.table.video[:: max(1, len(index.table) // sample)][:sample]:
        # any video that cannot be opened is left out, by whatever error PyAV has for it
        with suppress(Exception), codec.open_video(index.root / video) as container:
            stream = codec.main_stream(container)
            rate, seconds = codec.rate_of(stream), (container.duration or 0) / av.time_base
            counts.append((stream.frames or seconds * rate) * (p.fps or rate) / rate / p.stride)
    return sum(counts) / len(counts) if counts else 0.0


def cost(p: Params, videos: int, frames: float, seen: int | None = None) -> Cost:
    """Scale the measured rates by frames, pixels and multiply-adds; evaluation on the way is not counted.

    Args:
        seen: by the teacher, of the videos; None: all.
    """
    rate = rates()
    total, taught = videos * frames, (videos if seen is None else seen) * frames
    look = RELATIVE.get(p.teacher, RELATIVE["resnet50"]) / rate["teacher_frames_per_s"]  # seconds for a frame
    # a fifth is the teacher's frames
    stored = 0.8 * (p.frame_size / 136) ** 2 + 0.2 * (row_of(p.teacher).side / 224) ** 2
    teacher_bytes = 2 * _teacher_values(p.teacher) / p.teacher_stride  # a frame
    asked = p.teacher_view == "same" and "teacher" in METHODS[p.method].needs  # at every step
    looks = p.steps * p.batch_size * asked * look
    slowdown = macs(p) / (rate["gmacs_per_clip_step"] * 1e9)
    return Cost(
        videos,
        gigabytes=(total * rate["bytes_per_frame"] * stored + taught * teacher_bytes) / 1e9,
        decoding=total / rate["prep_frames_per_s"] / 3600,
        teacher=taught / p.teacher_stride * look / 3600,
        training=(p.steps * p.batch_size * slowdown / rate["loop_clips_per_s"] + looks) / 3600,
        memory=memory(p),
    )


def of_index(p: Params, index: datasets.Index) -> str:
    """What preparing and training will cost, in a sentence."""
    try:
        machine = rates()["machine"]
    except FileNotFoundError as error:
        return f"no estimate: {error}"
    frames = frames_per_video(p, index)
    if not frames:
        return "no estimate: none of a dozen videos could be read"
    videos = len(index.table)
    seen = videos if METHODS[p.method].features else int((index.table.split == "train").sum())
    costs = cost(p, videos, frames, seen)
    return f"{costs}. Measured on {machine}; what is on disk is not done again."
