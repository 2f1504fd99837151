"""What a loss may need besides the labelled clips, one row each: drawn, batched and forwarded here.

A new need is a row of NEEDS, and its name in the ``needs`` of a row of ``methods.TERMS``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from videossl_core import sampling
from videossl_core.data.frames import FrameStore
from videossl_core.image_classifiers import row_of
from videossl_core.params import Params
from videossl_core.teacher import Targets, same_view

Batch = dict[str, Tensor]
"""One step's clips, labelled ones first: clips (B, 3, T, H, W) uint8, labels (K,), hidden (U,), the true
labels of the unlabelled clips (-1 where nobody knows), which only the log may see, and a tensor for each
need."""

Outputs = dict[str, Tensor]
"""What the network predicts, before any softmax: ``<head>`` (B, outputs) for the clips, ``<need>_<head>`` for
the views that a need adds, ``ema_classes`` (B, C) of the averaged network."""


@dataclass(frozen=True)
class Clip:
    """A clip of the batch while it is read: number ``i`` of the whole batch, from these frames of the video.

    ``size`` of the video: frames, height, width. ``whole`` (3, T, S, S) uint8 are the frames before the crop,
    ``view`` is how the batch shows them.
    """

    p: Params
    i: int
    labelled: bool
    video: str
    size: list[int]
    frames: np.ndarray
    whole: Tensor
    view: sampling.View
    draws: sampling.Draws
    store: FrameStore
    targets: Targets | None


@dataclass(frozen=True)
class Need:
    """A row of NEEDS.

    ``draw`` gives what the batch holds of one clip under the need's name, or None for a clip without it.
    ``views`` gives further clips for the one forward pass; their outputs are ``<need>_<head>``.
    ``averaged`` gives outputs of the averaged network (mean teacher); it gets no gradient.
    ``heads`` are the network's further heads, name -> outputs.
    ``passes`` is what it adds to the cost of a step, in forward and backward passes over the batch.
    """

    draw: Callable[[Clip], Tensor | None] = lambda clip: None
    views: Callable[[Batch, Params], Tensor] | None = None
    averaged: Callable[[nn.Module, Batch], Outputs] | None = None
    heads: Callable[[Params], dict[str, int]] = lambda p: {}
    passes: Callable[[Params], float] = lambda p: 0.0


def _teacher(clip: Clip) -> Tensor:
    """(M,) the teacher's softmax h(a) of one frame a of the clip (3.3); with ``teacher_view = same`` the
    picture (3, S, S) uint8 that ``Trainer.step`` shows the teacher."""
    assert clip.targets is not None
    frame = int(clip.frames[int(clip.draws.frame[clip.i] * clip.p.clip_frames)])
    if clip.p.teacher_view == "stored":
        return torch.from_numpy(clip.targets.of(clip.video, frame))
    count, height, width = clip.size
    number = clip.targets.nearest(frame, -(-count // clip.targets.stride))
    whole = sampling.read_clip(clip.store, clip.video, np.array([number]), teacher=True)
    view = same_view(clip.view, clip.store.settings, height, width)
    return sampling.cut_view(whole, view, whole.shape[-1])[:, 0]


def _other_crop(clip: Clip) -> Tensor | None:
    """(3, T, H, W) another crop of the same frames for the averaged network."""
    if clip.p.mt_view == "same":
        return None
    view = sampling.draw_view(clip.p, clip.draws, clip.i, "other_")
    return sampling.cut_view(clip.whole, view, clip.p.crop_size)


def _strong_view(clip: Clip) -> Tensor | None:
    """(3, T, H, W) another crop, distorted; of the unlabelled clips only."""
    if clip.labelled:
        return None
    draws, i, size = clip.draws, clip.i, clip.p.crop_size
    room = clip.p.frame_size - size + 1
    view = sampling.View(int(draws.other_y[i] * room), int(draws.other_x[i] * room), size, size)
    return sampling.strong_view(sampling.cut_view(clip.whole, view, size), draws, i)


def _turn(clip: Clip) -> Tensor:
    """() by how many quarters the clip is turned where it is shown at one rotation."""
    return torch.tensor(int(clip.draws.turn[clip.i] * 4))


def rotated_clips(batch: Batch, p: Params) -> slice:
    """Which clips S4L turns: all, or the unlabelled ones."""
    return slice(0 if p.s4l_rotate_on == "both" else len(batch["labels"]), None)


def _turned(batch: Batch, p: Params) -> Tensor:
    """The clips at their own rotation, or at 90, 180 and 270 degrees: the batch has the upright ones."""
    which = rotated_clips(batch, p)
    clips = batch["clips"][which]
    if p.s4l_rotations == "all":
        return torch.cat([torch.rot90(clips, turn, (3, 4)) for turn in (1, 2, 3)])
    turned = torch.stack([torch.rot90(clips, turn, (3, 4)) for turn in range(4)])
    return turned[batch["turn"][which], torch.arange(len(clips), device=clips.device)]  # without a wait


def _of_average(ema: nn.Module, batch: Batch) -> Outputs:
    """Mean teacher sees another crop of the same clips, or the same one."""
    return {"ema_classes": ema(batch.get("other", batch["clips"]))["classes"]}


NEEDS: dict[str, Need] = {
    "unlabelled": Need(),  # half of the batch (3.2)
    "teacher": Need(_teacher, heads=lambda p: {"embedding": row_of(p.teacher).classes}),
    "other": Need(_other_crop, averaged=_of_average, passes=lambda p: 1 / 3),  # a forward pass alone
    "strong": Need(_strong_view, views=lambda batch, p: batch["strong"], passes=lambda p: 0.5),
    "turn": Need(
        _turn,
        views=_turned,
        heads=lambda p: {"rotation": 4},
        passes=lambda p: (3 if p.s4l_rotations == "all" else 1) / (1 if p.s4l_rotate_on == "both" else 2),
    ),
}
