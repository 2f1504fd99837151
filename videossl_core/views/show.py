"""What a notebook shows of videos: roles, clips, films, answers. And, under one name, of work in progress."""

from html import escape
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure
from torch import Tensor

from videossl_core import sampling
from videossl_core.data import codec, frames
from videossl_core.teacher import IMAGENET_CLASSES
from videossl_core.views import figures, films
from videossl_core.views.progress import LiveTraining, progress

if TYPE_CHECKING:
    from videossl_core.classify import Answers
    from videossl_core.params import Params
    from videossl_core.prepare import Data

__all__ = ["LiveTraining", "progress"]  # a notebook finds here whatever it shows

ROLES = ["labelled", "unlabelled", "test"]

_PALETTE, _HATCHES = sns.color_palette("colorblind", 10), ["", "//", "..", "xx", "++", "oo"]


def role_table(split: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Videos per class and role, with the sum."""
    named = split.class_name.replace("", "(unknown)")
    classes = classes + ["(unknown)"] * bool((named == "(unknown)").any())
    counts = pd.crosstab(named, split.role).reindex(index=classes, columns=ROLES, fill_value=0)
    return pd.concat([counts, counts.sum().rename("all").to_frame().T]).rename_axis(columns=None)


def role_bars(split: pd.DataFrame, classes: list[str]) -> Figure:
    """Training videos per class: the labelled ones and the rest."""
    counts = role_table(split, classes).drop(index="all")
    figure, axis = plt.subplots(figsize=(9, 3))
    axis.bar(counts.index, counts.unlabelled + counts.labelled, color="#cccccc", label="unlabelled")
    axis.bar(counts.index, counts.labelled, color="#d55e00", label="labelled")
    axis.set(ylabel="training videos")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    if len(counts) <= 40:
        axis.tick_params(axis="x", rotation=60)
    else:
        axis.set(xticks=[], xlabel="classes")
    return figures.described(
        figure,
        f"""Bars of the training videos of {len(counts)} classes: {counts.labelled.sum()} labelled,
        {counts.labelled.min()} to {counts.labelled.max()} a class, and {counts.unlabelled.sum()} unlabelled,
        {counts.unlabelled.min()} to {counts.unlabelled.max()} a class.""",
    )


def _draw(picture: np.ndarray, axis, title: str = "") -> None:
    axis.imshow(picture, interpolation="nearest")  # pixels as they are; it also makes a smaller PNG
    axis.set_title(title, fontsize=8)
    axis.axis("off")


def _some(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """One video of each of n classes, spread over the classes."""
    first = rows.groupby("class_name", sort=True).head(1)
    return first.iloc[np.linspace(0, len(first) - 1, min(n, len(first))).astype(int)]


def centre_clip(data: "Data", p: "Params", video: str) -> tuple[np.ndarray, Tensor]:
    """The clip in the middle of a video, cropped in the middle: its frames' numbers, (3, T, S, S) uint8."""
    count = int(data.store.table.loc[video, "frames"])
    numbers = sampling.clip_frames(count, sampling.centre_start(count, p.clip_frames), p.clip_frames)
    return numbers, sampling.crop(sampling.read_clip(data.store, video, numbers), p.crop_size, 0.5, 0.5)


def clip_rows(data: "Data", p: "Params", rows: pd.DataFrame | None = None, columns: int = 8) -> Figure:
    """The centre clips of these rows of the split, or of four labelled videos, as the network sees them:
    evenly spaced frames of each."""
    rows = _some(data.rows("labelled"), 4) if rows is None else rows
    figure, axes = plt.subplots(len(rows), columns, figsize=(10, 1.35 * len(rows)), squeeze=False)
    shown = np.linspace(0, p.clip_frames - 1, columns).round().astype(int)
    for line, row in zip(axes, rows.itertuples(), strict=True):
        numbers, clip = centre_clip(data, p, row.video)
        for axis, t in zip(line, shown, strict=True):
            _draw(clip[:, t].permute(1, 2, 0).numpy(), axis, f"frame {numbers[t]}")
        name = row.class_name.replace("_", " ")
        line[0].text(
            -0.1, 0.5, name, transform=line[0].transAxes, rotation=90, ha="right", va="center", fontsize=8
        )
    return figures.described(
        figure,
        f"""{columns} frames each of the middle clips of {len(rows)} videos, cropped to {p.crop_size} pixels:
        {", ".join(rows.class_name)}.""",
    )


def teacher_bars(data: "Data", p: "Params", videos: int = 4, names: int = 5) -> Figure:
    """One frame of some training videos and the teacher's most likely ImageNet classes for it."""
    rows = _some(data.rows("labelled"), videos)
    figure, axes = plt.subplots(
        2, len(rows), figsize=(2.6 * len(rows), 4), height_ratios=(3, 2), squeeze=False
    )
    words = []
    for (above, below), row in zip(axes.T, rows.itertuples(), strict=True):
        middle = int(data.store.table.loc[row.video, "frames"]) // 2 // data.store.settings.teacher_stride
        jpeg = data.store.read(row.video, np.array([middle]), teacher=True)[0]
        _draw(films.picture(jpeg), above, row.class_name)
        h = data.targets.of(row.video, middle * data.store.settings.teacher_stride)
        best = h.argsort()[::-1][:names]
        below.barh(range(names), h[best], color="#56b4e9")
        below.set(yticks=[], xlim=(0, 1), xlabel="h(a)")
        below.invert_yaxis()
        for i, m in enumerate(best):
            below.annotate(IMAGENET_CLASSES[m], (0.02, i), va="center", fontsize=8)
        words.append(f"{row.class_name}: " + ", ".join(f"{IMAGENET_CLASSES[m]} {h[m]:.2f}" for m in best))
    return figures.described(
        figure, f"A frame of {len(rows)} videos and the teacher's surest answers. {'; '.join(words)}."
    )


def store_table(data: "Data") -> pd.DataFrame:
    """What the frame store holds of this data set."""
    table = data.store.table.loc[data.split.video]
    facts = {
        "videos": len(table),
        "frames": table.frames.sum(),
        "shortest video, frames": table.frames.min(),
        "longest video, frames": table.frames.max(),
        "MB": round(table.stored_bytes.sum() / 1e6, 1),
        "KB per frame, with the teacher's": round(table.stored_bytes.sum() / table.frames.sum() / 1e3, 2),
        "folder": str(data.store.folder),
    }
    return pd.Series(facts).to_frame("frame store")


def instructive(models: dict[str, pd.DataFrame], n: int) -> pd.DataFrame:
    """Figure 5's videos: right by the last model and wrong by the first, surest first, classes in turn.

    Args:
        models: method -> predictions_test.csv, all of the same test split.
    """
    first, last = next(iter(models.values())), list(models.values())[-1]
    better = last[last.video_right.to_numpy() & ~first.video_right.to_numpy()]
    better = better.sort_values(["video_confidence", "video"], ascending=[False, True])
    turn = better.groupby("class_name").cumcount()
    return better.assign(turn=turn).sort_values("turn", kind="stable").drop(columns="turn").head(n)


def answers(models: dict[str, pd.DataFrame], video: str) -> list[str]:
    said = {m: table.set_index("video").loc[video] for m, table in models.items()}
    return [f"{figures.TITLES[m]}: {row.video_pred} ({row.video_confidence:.2f})" for m, row in said.items()]


def figure5(chosen: pd.DataFrame, models: dict[str, pd.DataFrame], store: frames.FrameStore) -> Figure:
    """Figure 5: the middle frame of each video, its class, and what each model said."""
    if chosen.empty:
        figure, axis = plt.subplots(figsize=(5, 1))
        axis.text(0, 0.5, "No test video that the last model gets right and the first gets wrong.")
        axis.axis("off")
        return figures.described(figure, axis.texts[0].get_text())
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.3 * columns, 3.4 * lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, chosen.itertuples(), strict=False):
        middle = int(store.table.loc[row.video, "frames"]) // 2 // store.settings.teacher_stride
        _draw(films.picture(store.read(row.video, np.array([middle]), teacher=True)[0]), axis)
        axis.set_title(row.class_name, fontsize=9)
        axis.text(0.5, -0.03, "\n".join(answers(models, row.video)), transform=axis.transAxes,
                  ha="center", va="top", fontsize=8)  # fmt: skip
    words = (f"{row.class_name} ({'; '.join(answers(models, row.video))})" for row in chosen.itertuples())
    return figures.described(
        figure,
        f"Figure 5: the middle frame of {len(chosen)} videos, and what each model said. {'. '.join(words)}.",
    )


def doubtful(answers: "Answers", n: int = 6) -> HTML:
    """The first n videos of ``answers``, playable, with what was said of each."""
    shown = [
        films.playing(codec.for_browser(answers.path(r.video)), _said(r), 240) for r in _usable(answers, n)
    ]
    return HTML("".join(shown) or "<i>no video to show</i>")


def confidences(answers: "Answers", video: str, most: int = 6) -> Figure:
    """How sure each clip of a video is of the classes, stacked, along the video's seconds. A class looks the
    same in every such figure; beyond the ``most`` likeliest, and below 2 % in every clip, they are grey."""
    rows = answers.clips[answers.clips.video == video]
    probs = rows.filter(regex="^p_").rename(columns=lambda name: name.removeprefix("p_"))
    best = probs.mean().sort_values(ascending=False, kind="stable").index[:most]
    best = [name for name in best if probs[name].max() >= 0.02]
    looks = {name: (_PALETTE[i % 10], _HATCHES[i % 6]) for i, name in enumerate(answers.classes)}
    stacks = [(probs[name], name, *looks[name]) for name in best]
    if len(best) < probs.shape[1]:
        stacks.append((1 - probs[best].sum(axis=1), "all others", "#dddddd", ""))
    figure, axis = plt.subplots(figsize=(7, 2.8))
    base, width = np.zeros(len(rows)), rows.end - rows.start
    for height, name, colour, hatch in stacks:
        axis.bar(
            rows.start, height, width, base, align="edge", label=name, color=colour, hatch=hatch, ec="white"
        )
        base = base + height.to_numpy()
    axis.set(xlabel="seconds", ylabel="confidence", ylim=(0, 1), xlim=(0, rows.end.max()), title=video)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    row = next(answers.table[answers.table.video == video].itertuples())
    return figures.described(
        figure,
        f"Confidence of the {row.clips} clips of {video} along its seconds. All together: {_plain(row)}.",
    )


def along(answers: "Answers", n: int = 3) -> HTML:
    """The first n videos, each beside what its clips say along its seconds."""
    lines = []
    for row in _usable(answers, n):
        figure = confidences(answers, row.video)
        picture = (
            f'<div style="display:inline-block;max-width:100%">{figures.bundle(figure)[0]["text/html"]}</div>'
        )
        lines.append(films.playing(codec.for_browser(answers.path(row.video)), _said(row), 240) + picture)
        plt.close(figure)
    return HTML("<br>".join(lines) or "<i>no video to show</i>")


def _usable(answers: "Answers", n: int) -> list:
    return list(answers.table[answers.table.reason == ""].head(n).itertuples())


def _plain(row) -> str:
    others = (
        f"; {row.disagreement:.0%} of its {row.clips} clips say another class" if row.disagreement else ""
    )
    return f"{row.predicted} ({row.confidence:.2f}, margin {row.margin:.2f}{others})"


def _said(row) -> str:
    return f"<b>{escape(row.video)}</b><br>{escape(_plain(row))}"


def players(chosen: pd.DataFrame, models: dict[str, pd.DataFrame], store: frames.FrameStore) -> HTML:
    """The chosen videos side by side, playable, with the models' answers below each."""
    shown = []
    for row in chosen.itertuples():
        caption = "<br>".join([f"<b>{row.class_name}</b>", *answers(models, row.video)])
        shown.append(films.film(store, row.video, caption, width=200))
    return HTML("".join(shown) or "<i>nothing to show</i>")


def agreement(models: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Test videos by which models get them right."""
    right = pd.DataFrame({figures.TITLES[m]: t.video_right.to_numpy() for m, t in models.items()})
    right = right.replace({True: "right", False: "wrong"})
    return right.value_counts().rename("test videos").reset_index()
