"""What a data set will cost in disk and hours, by the rates that ``make bench`` measured."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import av
import torch
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
    and of training one run."""

    videos: int
    gigabytes: float
    decoding: float
    teacher: float
    training: float

    def __str__(self) -> str:
        return (
            f"{self.videos} videos: about {self.gigabytes:.3g} GB, {_hours(self.decoding)} of "
            f"decoding, {_hours(self.teacher)} of the teacher's time; one training run takes about "
            f"{_hours(self.training)}"
        )


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
    heads = method.heads(classes, p)
    one = _macs(p.backbone, p.shortcut, p.width, p.clip_frames, p.crop_size, tuple(heads.items()))
    return one * (1 + sum(NEEDS[name].passes(p) for name in method.needs))


@cache
def _macs(backbone: str, shortcut: str, width: float, frames: int, side: int, heads: tuple) -> float:
    """Multiply-adds of one clip, forward and backward. Nothing is computed."""
    with torch.device("meta"):
        network = models.VideoNet(backbone, dict(heads), shortcut, width)
        clips = torch.zeros(2, 3, frames, side, side, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        sum(logits.sum() for logits in network(clips).values()).backward()
    return counter.get_total_flops() / 2 / len(clips)


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


def cost(p: Params, videos: int, frames: float) -> Cost:
    """Scale the measured rates by frames, pixels and multiply-adds; evaluation on the way is not counted."""
    rate = rates()
    total = videos * frames
    # a fifth is the teacher's frames
    stored = 0.8 * (p.frame_size / 136) ** 2 + 0.2 * (row_of(p.teacher).side / 224) ** 2
    teacher_bytes = 2 * _teacher_values(p.teacher) / p.teacher_stride  # a frame
    asked = p.teacher_view == "same" and "teacher" in METHODS[p.method].needs  # at every step
    seen = p.steps * p.batch_size * asked / rate["teacher_frames_per_s"]
    slowdown = macs(p) / (rate["gmacs_per_clip_step"] * 1e9)
    return Cost(
        videos,
        gigabytes=total * (rate["bytes_per_frame"] * stored + teacher_bytes) / 1e9,
        decoding=total / rate["prep_frames_per_s"] / 3600,
        teacher=total / p.teacher_stride / rate["teacher_frames_per_s"] / 3600,
        training=(p.steps * p.batch_size * slowdown / rate["loop_clips_per_s"] + seen) / 3600,
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
    return f"{cost(p, len(index.table), frames)}. Measured on {machine}; what is on disk is not done again."
