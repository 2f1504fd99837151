"""A finished run as one file that needs no code of this project: a video's frames in, probabilities out.

What comes before the network is inside: frames of any size are resized and cut as the frame store does it.
They do not become JPEGs on the way, and it is red, green and blue that are resized, not the colours as the
video has them; docs/use.md says what this costs.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental import _config

from videossl_core import probe, runs, teacher, training
from videossl_core.data import files
from videossl_core.linear import NEIGHBOURS, TEMPERATURE
from videossl_core.methods import METHODS
from videossl_core.models import folded
from videossl_core.params import Params

PART = 64
"""So many frames a frozen teacher is given at once; the prediction for more is the mean over such parts."""


MANY = 1024
"""The same for a network whose clips are spread over the video."""


class Network(nn.Module):
    """The network of a run: frames (T, H, W, 3) uint8, RGB, of any T, H and W, to probabilities (C,).

    They are the mean softmax of the consecutive clips, as in ``evaluation.predict``; less than a clip is
    looped. It takes one video at a time, for videos differ in length and size: the clips are the batch.
    """

    def __init__(self, p: Params, network: nn.Module):
        super().__init__()
        self.p, self.network = p, folded(network)
        self.network.heads = nn.ModuleDict({"classes": self.network.get_submodule("heads.classes")})

    def forward(self, video: Tensor) -> Tensor:
        p, count, length = self.p, video.shape[0], self.p.clip_frames
        padded = p.last_clip == "pad" and p.clips == "consecutive"
        clips = torch.sym_max((count + (length - 1 if padded else 0)) // length, 1)
        clip, number = torch.arange(clips)[:, None], torch.arange(length)
        if p.clips == "spread":  # both as sampling.clip_frames
            number = clip + number * count // length
        else:
            start = clip * length
            number = start + number % (count - start).clamp(max=length)
        frames = resized(video, p.frame_size, p.frame_size, p.crop_size)[number.flatten()]
        logits = self.network(frames.unflatten(0, (clips, length)).transpose(1, 2))["classes"]
        return logits.softmax(-1).mean(0)


class Probe(nn.Module):
    """The same of a run without a network, for the frames that its frozen teacher sees: one prediction for
    all of them, as in ``probe.Probe``."""

    def __init__(self, p: Params, fitted: probe.Probe):
        super().__init__()
        self.p, self.kinds = p, fitted.scale.sizes.tolist()
        self.teacher = teacher.Classifier(p.teacher, p.teacher_weights)
        self.fitted = nn.ParameterDict({name: value.float() for name, value in fitted.state_dict().items()})

    def forward(self, video: Tensor) -> Tensor:
        count, *size, _ = video.shape
        short: int = torch.sym_min(*size)  # type: ignore[assignment]
        row = self.teacher.row
        height, width = ((2 * side * row.short + short) // (2 * short) for side in size)  # rounded
        frames = resized(video, height, width, row.side)
        self.teacher.net((frames - self.teacher.mean) / self.teacher.std)
        quarters = teacher.quarters(self.teacher.last.maps)  # (T, F, 2, 2)
        x = quarters.mean((0, 2, 3))
        if len(self.kinds) > 1:
            number, half = torch.arange(count), count // 2
            sign = (number >= count - half).float() - (number < half).float()
            motion = torch.einsum("t,tfij->fij", sign, quarters) / sign.relu().sum().clamp(min=1)
            x = torch.cat([x, motion.flatten()])
        fitted = self.fitted
        parts = ((x - fitted["mean"]) / fitted["by"]).split(self.kinds)
        x = torch.cat([F.normalize(part, dim=0) for part in parts])
        if self.p.probe_classifier == "linear":
            return (fitted["weight"] @ x + fitted["bias"]).softmax(0)
        alike = fitted["near"] @ F.normalize(x, dim=0)
        alike, nearest = alike.topk(min(NEIGHBOURS, len(alike)))
        return (alike / TEMPERATURE).softmax(0) @ fitted["votes"][nearest]


def resized(video: Tensor, height: int, width: int, side: int) -> Tensor:
    """(T, 3, side, side) float32: the central square of frames (T, H, W, 3) that are resized to this size."""
    rows, columns = (_shares(*pair, side) for pair in zip(video.shape[1:3], (height, width), strict=True))
    return rows @ video.permute(0, 3, 1, 2).float() @ columns.T


def _shares(length: int, to: int, side: int) -> Tensor:
    """(side, length): how much each of ``length`` pixels gives to the central ``side`` of ``to``. It is what
    FFmpeg calls area: the mean of what a pixel covers, and where that is less than one, bilinear."""
    step, pixel = length / to, torch.arange(length)
    centre = ((to - side) // 2 + 0.5 + torch.arange(side)[:, None]) * step
    half = torch.sym_max(step, 1.0) / 2
    covered = torch.minimum(centre + half, pixel + 1) - torch.maximum(centre - half, pixel)
    return F.normalize(covered.clamp(min=0), p=1)


def portable(p: Params) -> tuple[nn.Module, dict]:
    """A run as a module that can be exported, in fp32 on the CPU, and all that there is to know about it.

    That begins with the classes, ``fps`` and ``stride`` of the frames, how many ``frames`` are given at once,
    and the ``least`` of them that count beside others.

    Raises:
        runs.RunError: the run is not finished.
    """
    run, p = runs.Run(p.run_dir), p.but(device="cpu")
    if not run.finished:
        raise runs.RunError(f"{run.folder} is not finished: train it to its end first")
    checkpoint, facts = run.read_checkpoint(), run.read_provenance()
    if METHODS[p.method].features:
        model: nn.Module = Probe(p, probe.Probe.load(p, checkpoint))
        stride, frames, least = p.stride * p.teacher_stride, PART, PART // 2
    else:
        model = Network(p, training.load_network(run, p, exact=True)[0])
        stride, frames, least = p.stride, p.clip_frames, 1 if p.last_clip == "pad" else p.clip_frames
        frames = MANY if p.clips == "spread" else frames
    about = {"classes": checkpoint["classes"], "fps": p.fps, "stride": stride}
    about |= {"frames": frames, "least": least}
    about |= {name: getattr(p, name) for name in ("dataset", "method", "variant", "label_pct", "seed")}
    about["test"] = [row for row in checkpoint["metrics"] if row["subset"] == "test"][-1]
    versions = {name: facts["versions"].get(name) for name in ("python", "torch", "av")}
    # contiguous: torch.export.save warns of other layouts
    model = model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    return model, about | {"provenance": facts | {"versions": versions}}


def write(p: Params, folder: Path, onnx: bool = False) -> list[Path]:
    """Write model.pt2, and with ``onnx`` model.onnx, which hold all that there is to know about them, and
    model.json, which tells it to people, with their sha256. Returns the paths of the models."""
    model, about = portable(p)
    text = json.dumps(about)
    example = torch.zeros(2 * about["frames"], 60, 80, 3, dtype=torch.uint8)
    sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    # without this setting one clip, or one frame, would be refused
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(model, (example,), dynamic_shapes=(sizes,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # folders of this machine
    paths = [folder / "model.pt2"]
    with files.atomic(paths[0]) as temporary:
        torch.export.save(program, temporary, extra_files={"about": text})
    if onnx:
        converted = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["video"], output_names=["probs"]
        )
        assert converted is not None
        converted.model.metadata_props["about"] = text
        paths.append(folder / "model.onnx")
        with files.atomic(paths[1]) as temporary:
            converted.save(temporary)
    about["sha256"] = {path.name: files.sha256_of(path) for path in paths}
    files.write_text(folder / "model.json", json.dumps(about, indent=1) + "\n")
    return paths
