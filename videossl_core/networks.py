"""The network of a run, and the weights that its backbone starts from (``init``)."""

import json
import re
import warnings
from pathlib import Path
from textwrap import shorten
from typing import get_args

import torch
from torch import Tensor

from videossl_core import methods, models, teacher
from videossl_core.data import files
from videossl_core.params import InitName, ParameterError, Params, TorchvisionName, nearest
from videossl_core.paths import places


def build_network(p: Params, classes: int) -> models.VideoNet:
    """The network with the heads its method trains; the same seed gives the same first weights.

    Where ``init`` gives the backbone others, ``network.init`` holds their sha256 and normalisation: mean and
    standard deviation on the scale 0 to 1, or None for those of a network from scratch.

    Raises:
        ParameterError: ``init`` leads to no weights of this backbone.
    """
    torch.manual_seed(p.seed)
    heads = methods.METHODS[p.method].heads(classes, p)
    network = models.VideoNet(p.backbone, heads, p.shortcut, p.width)
    if p.init == "scratch":
        return network
    published = models.kinetics400(p.backbone) if p.backbone in get_args(TorchvisionName) else None
    try:
        weights, normalisation = _first_weights(p, published)
        head = getattr(network.backbone, "cut", "no head")
        weights = {name: w for name, w in weights.items() if not name.startswith(f"{head}.")}
        network.backbone.load_state_dict(weights)
    except Exception as error:  # torch raises a different type for every kind of damage
        what = shorten(str(error).rstrip("."), 300, placeholder=" ...")
        file = f"a file of weights of {p.backbone}{f' ({published.url})' if published else ''}"
        raise ParameterError(f"init = {p.init}: {what}. Give {file} or a run's folder") from error
    sha256 = teacher.weights_hash(network.backbone.state_dict())
    network.init = {"sha256": sha256, "normalisation": normalisation}
    if normalisation:
        network.normalise(*normalisation)
    return network


def _first_weights(p: Params, published) -> tuple[dict[str, Tensor], list[list[float]] | None]:
    """What ``init`` names: weights of the backbone, and their normalisation."""
    if p.init == "kinetics400":
        state = published.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
    else:
        path = Path(p.init)
        if not path.exists():
            raise FileNotFoundError(f"no such file{nearest(path.name, get_args(InitName))}; {places()}")
        path = path / "checkpoint.pt" if path.is_dir() else path
        state = torch.load(path, "cpu", weights_only=True)
        if "classes" in state:  # a checkpoint of this project
            return _of_run(p, state, path.with_name("params.json"))
    if not published:
        return state, None
    clips, length = published.transforms(), re.search(r"clip_len=(\d+)", published.meta["_docs"])
    frames, side = int(length[1]) if length else p.clip_frames, clips.crop_size[0]
    if (frames, side) != (p.clip_frames, p.crop_size):
        warnings.warn(
            f"the weights of {p.backbone} were trained on clips of {frames} frames at {side} x {side}; here "
            f"clip_frames = {p.clip_frames} and crop_size = {p.crop_size}",
            stacklevel=2,  # shown once, whoever asks
        )
    return state, [clips.mean, clips.std]


def _of_run(p: Params, state: dict, record: Path) -> tuple[dict[str, Tensor], list[list[float]] | None]:
    """The network that is evaluated, of a checkpoint and, where it lies beside it, params.json."""
    recorded = json.loads(files.read_text(record)) if record.exists() else {}
    for name in ("backbone", "shortcut", "width"):
        if (was := recorded.get(name, now := getattr(p, name))) != now:
            raise ValueError(f"that run has {name} = {was}, this one {now}")
    averaged = None if recorded.get("eval_model") == "student" else state.get("ema")
    evaluated = state["best"]["weights"] if state.get("best") else averaged or state["model"]
    named = ((name.partition("backbone."), w) for name, w in evaluated.items())
    return {name: w for (_, found, name), w in named if found}, state.get("init", {}).get("normalisation")
