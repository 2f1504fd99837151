"""What a notebook shows of prepared data: roles, clips as the network sees them, the teacher's answers."""

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from videossl_core import sampling
from videossl_core.data.frames import FrameStore
from videossl_core.params import Params
from videossl_core.prepare import Data
from videossl_lab import plots

ROLES = ["labelled", "val", "unlabelled", "test"]


@cache
def teacher_classes(count: int) -> list[str]:
    """Names of the teacher's M classes: those of ImageNet if there are 1000, otherwise their numbers."""
    if count != 1000:
        return [f"class {number}" for number in range(count)]
    from torchvision.models import ResNet50_Weights  # here, for it loads as long as torch does

    return ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


def role_table(split: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Videos per class and role, with their sum."""
    names = split.class_name.replace("", "(unknown)")
    rows = [*classes, "(unknown)"] if "(unknown)" in set(names) else classes
    roles = [role for role in ROLES if role != "val" or "val" in set(split.role)]
    counts = pd.crosstab(names, split.role).reindex(index=rows, columns=roles, fill_value=0)
    counts.loc["all"] = counts.sum()
    return counts.rename_axis(index=None, columns=None)


def role_bars(split: pd.DataFrame, classes: list[str]) -> Figure:
    """Training videos per class: the labelled ones and the rest."""
    counts = role_table(split, classes).drop(index="all").drop(columns="test")
    colors = {"labelled": "#d55e00", "val": "#0072b2", "unlabelled": "#cccccc"}
    axis = counts.plot.bar(stacked=True, color=colors, width=0.8, figsize=(9, 3), rot=60)
    axis.set(ylabel="training videos")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    if len(counts) > 40:
        axis.set(xticks=[], xlabel="classes")
    words = [f"{n.sum()} {role}, {n.min()} to {n.max()} a class" for role, n in counts.items()]
    return plots.described(axis.figure, f"Training videos of {len(counts)} classes: {'; '.join(words)}.")


def draw(picture: np.ndarray, axis: Axes, title: str = "") -> None:
    """Show (height, width, 3) uint8, pixels as they are; that also makes a smaller PNG."""
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(title, fontsize=8)
    axis.axis("off")


def centre_clip(data: Data, p: Params, video: str) -> tuple[np.ndarray, Tensor]:
    """The clip in the middle of a video, cropped in the middle: its frames' numbers, (3, T, S, S) uint8."""
    count = int(data.store.table.loc[video, "frames"])
    numbers = sampling.clip_frames(p, count, sampling.centre_start(p, count))
    return numbers, sampling.centre_crop(sampling.read_clip(data.store, video, numbers), p.crop_size)


def middle_frame(store: FrameStore, video: str) -> tuple[int, np.ndarray]:
    """The number of the middle frame, of those that the teacher sees, and its (height, width, 3) uint8."""
    stride = store.settings.teacher_stride
    place = int(store.table.loc[video, "frames"]) // 2 // stride
    return place * stride, store.images(video, np.array([place]), teacher=True)[0]


def _examples(data: Data, n: int) -> pd.DataFrame:
    """A labelled video of each of n classes, spread over the classes."""
    first = data.rows("labelled").groupby("class_name", sort=True).head(1)
    return first.iloc[np.linspace(0, len(first) - 1, min(n, len(first))).astype(int)]


def clip_rows(data: Data, p: Params, rows: pd.DataFrame | None = None, columns: int = 8) -> Figure:
    """Frames of the centre clips of these rows, or of four labelled videos, as the network sees them."""
    rows = _examples(data, 4) if rows is None else rows
    figure, axes = plt.subplots(len(rows), columns, figsize=(10, 1.35 * len(rows)), squeeze=False)
    shown = np.linspace(0, p.clip_frames - 1, columns).round().astype(int)
    look = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 8}
    for line, row in zip(axes, rows.itertuples(), strict=True):
        numbers, clip = centre_clip(data, p, row.video)
        for axis, t in zip(line, shown, strict=True):
            draw(clip[:, t].permute(1, 2, 0).numpy(), axis, f"frame {numbers[t]}")
        line[0].text(-0.1, 0.5, row.class_name.replace("_", " "), transform=line[0].transAxes, **look)
    text = f"{columns} frames each of the middle clips of {len(rows)} videos, cropped to {p.crop_size} pixels"
    return plots.described(figure, f"{text}: {', '.join(rows.class_name)}.")


def teacher_bars(data: Data, videos: int = 4, names: int = 5) -> Figure:
    """One frame of some training videos and the teacher's most likely ImageNet classes for it."""
    rows, words, classes = _examples(data, videos), [], teacher_classes(data.targets.classes)
    size = (2.6 * len(rows), 4)
    figure, axes = plt.subplots(2, len(rows), figsize=size, height_ratios=(3, 2), squeeze=False)
    for (above, below), row in zip(axes.T, rows.itertuples(), strict=True):
        number, picture = middle_frame(data.store, row.video)
        draw(picture, above, row.class_name)
        h = data.targets.of(row.video, number) if classes else np.zeros(0)  # a feature model
        best = h.argsort()[::-1][:names]
        below.barh(range(len(best)), h[best], color="#56b4e9")
        below.set(yticks=[], xlim=(0, 1), ylim=(names - 0.5, -0.5), xlabel="h(a)")
        for i, m in enumerate(best):
            below.annotate(classes[m], (0.02, i), va="center", fontsize=8)
        words.append(f"{row.class_name}: " + ", ".join(f"{classes[m]} {h[m]:.2f}" for m in best))
    text = f"A frame of {len(rows)} videos and the teacher's most likely classes. {'; '.join(words)}."
    return plots.described(figure, text)
