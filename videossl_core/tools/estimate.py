"""What a data set will cost in disk and hours, from what ``make bench`` measured."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from videossl_core import methods, models
from videossl_core.data import codec, datasets
from videossl_core.params import ROOT
from videossl_core.teacher import IMAGENET_CLASSES

if TYPE_CHECKING:
    from videossl_core.params import Params

# (videos, mean frames a video): the counts of the published lists; frames as published for UCF101 and HMDB51,
# ten seconds at 25 to 30 a second for Kinetics.
KNOWN = {
    "ucf101": (13_320, 186),
    "hmdb51": (6_766, 93),
    "kinetics100": (92_988, 270),
    "kinetics400": (240_258, 270),
}


@dataclass(frozen=True)
class Cost:
    """``gigabytes`` of the frame store, hours of decoding, of the teacher, and of training one run."""

    videos: int
    gigabytes: float
    decoding: float
    teacher: float
    training: float

    def __str__(self) -> str:
        return (
            f"{self.videos} videos: about {self.gigabytes:.3g} GB of frames, {_hours(self.decoding)} of "
            f"decoding, {_hours(self.teacher)} of the teacher's time; one training run takes about "
            f"{_hours(self.training)}"
        )


def _hours(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 1 else f"{60 * hours:.2g} min"


def measured() -> dict:
    """``make bench`` on this machine, or else the published one."""
    for folder in (ROOT / "outputs" / "bench", ROOT / "outputs" / "reference" / "bench"):
        try:
            return json.loads((folder / "bench.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    raise FileNotFoundError("no outputs/bench/bench.json: run make bench")


def macs(p: "Params", classes: int = 101) -> float:
    """Multiply-adds of a training step of the method, over its clips: forward and backward, with the turned,
    distorted and averaged passes that its losses ask for. Nothing is computed."""
    method = methods.METHODS[p.method]
    k, n = method.labelled_clips(4), 4
    with torch.device("meta"):
        network = models.VideoNet(
            p.backbone, method.heads(classes, len(IMAGENET_CLASSES)), p.shortcut, p.width
        )
        clips = torch.zeros(n, 3, p.clip_frames, p.crop_size, p.crop_size, dtype=torch.uint8)
        batch = {"clips": clips, "labels": torch.zeros(k, dtype=torch.long)}
    if "strong" in method.needs:
        batch["strong"] = clips[k:]
    if "rotations" in method.needs:
        batch["turn"] = torch.ones(n, dtype=torch.long)  # any turn costs alike
    with FlopCounterMode(display=False) as counter:
        out = methods.forward(network, network if "ema" in method.needs else None, batch, method, p)
        sum(
            out[name].sum() for name in ("classes", "embedding", "strong_classes", "rotation") if name in out
        ).backward()
    return counter.get_total_flops() / 2 / n


def frames_per_video(index: datasets.Index, looked_at: int = 12) -> float:
    """Mean over a few videos, as their headers state it; 0 where none can be read."""
    found = []
    step = max(1, len(index.table) // looked_at)
    for video in index.table.video[::step][:looked_at]:
        try:
            found.append(codec.stated_frames(index.root / video))
        except codec.VideoError:
            continue
    return sum(found) / len(found) if found else 0.0


def cost(p: "Params", videos: int, frames: float) -> Cost:
    """Scale the measured rates by frames, pixels and multiply-adds; evaluation on the way is not counted."""
    m = measured()
    total = videos * frames
    pixels = (p.frame_size / 136) ** 2
    clips = p.steps * p.batch_size
    return Cost(
        videos,
        gigabytes=total
        * m["bytes_per_frame"]
        * (0.8 * pixels + 0.2)
        / 1e9,  # a fifth is the teacher's frames
        decoding=total / m["prep_frames_per_s"] / 3600,
        teacher=total / p.teacher_stride / m["teacher_frames_per_s"] / 3600,
        training=clips / m["loop_clips_per_s"] * (macs(p) / (m["gmacs_per_clip_step"] * 1e9)) / 3600,
    )


def known(name: str, p: "Params") -> Cost:
    return cost(p, *KNOWN[name])


def of_index(p: "Params", index: datasets.Index) -> str:
    """What preparing and training will cost, in a sentence; what is on disk already costs nothing."""
    try:
        machine = measured()["machine"]
    except FileNotFoundError as error:
        return f"no estimate: {error}"
    frames = frames_per_video(index)
    if not frames:
        return "no estimate: none of a dozen videos could be read"
    return f"{cost(p, len(index.table), frames)}. Measured on {machine}; what is on disk is not done again."
