"""What a notebook shows of videos and of work in progress: bars, live curves, clips, films."""

import base64
import io
import tempfile
import time
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure
from PIL import Image

from videossl_core import codec, figures, frames, sampling
from videossl_core.teacher import IMAGENET_CLASSES

if TYPE_CHECKING:
    from videossl_core.classify import Answers
    from videossl_core.params import Params
    from videossl_core.prepare import Data

ROLES = ["labelled", "unlabelled", "test"]


def progress(items: Iterable, total: int, label: str) -> Iterator:
    """Show one bar that updates in place about once a second, in JupyterLab and in executed notebooks."""
    if not total:  # everything is there already
        return
    start = shown = time.perf_counter()
    handle = display(_bar(0, total, label, 0), raw=True, display_id=True)
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.perf_counter()
        if handle and now - shown > 1:
            handle.update(_bar(done, total, label, now - start), raw=True)
            shown = now
    if handle:
        handle.update(_bar(done, total, label, time.perf_counter() - start), raw=True)


def _bar(done: int, total: int, label: str, seconds: float) -> dict[str, str]:
    text = f"{label}: {done} of {total}"
    if done >= total:
        text += f", {_duration(seconds)}"
    elif done:
        text += f", {_duration(seconds * (total - done) / done)} left"
    bar = f'<progress value="{done}" max="{max(total, 1)}" style="width:16em"></progress>'
    return {"text/html": f"<div>{bar} {text}</div>", "text/plain": text}


def _duration(seconds: float) -> str:
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{seconds:.0f} s"


class LiveCurves:
    """Training curves that are redrawn after each evaluation; pass its ``on_eval`` to ``training.train``."""

    def __init__(self):
        self.drawn = False
        self.handle = display(HTML("<i>The curves appear after the first evaluation.</i>"), display_id=True)

    def on_eval(self, log: pd.DataFrame, metrics: pd.DataFrame) -> None:
        self.drawn = True
        figure = figures.training_curves(log, metrics)
        if self.handle:
            self.handle.update(figure)
        plt.close(figure)

    def close(self) -> None:
        """Take the live picture away: the finished one is drawn from the run's files."""
        if self.handle:
            self.handle.update(HTML(""))


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
    return figure


def _picture(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _draw(picture: np.ndarray, axis, title: str = "") -> None:
    axis.imshow(picture)
    axis.set_title(title, fontsize=8)
    axis.axis("off")


def _some(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """One video of each of n classes, spread over the classes."""
    first = rows.groupby("class_name", sort=True).head(1)
    return first.iloc[np.linspace(0, len(first) - 1, min(n, len(first))).astype(int)]


def clip_rows(data: "Data", p: "Params", videos: int = 4, columns: int = 8) -> Figure:
    """The centre clips of some labelled videos as the network sees them, evenly spaced frames of each."""
    rows = _some(data.rows("labelled"), videos)
    figure, axes = plt.subplots(len(rows), columns, figsize=(10, 1.35 * len(rows)), squeeze=False)
    shown = np.linspace(0, p.clip_frames - 1, columns).round().astype(int)
    for line, row in zip(axes, rows.itertuples(), strict=True):
        count = int(data.store.table.loc[row.video, "frames"])
        numbers = sampling.clip_frames(count, sampling.centre_start(count, p.clip_frames), p.clip_frames)
        clip = sampling.crop(sampling.read_clip(data.store, row.video, numbers), p.crop_size, 0.5, 0.5)
        for axis, t in zip(line, shown, strict=True):
            _draw(clip[:, t].permute(1, 2, 0).numpy(), axis, f"frame {numbers[t]}")
        name = row.class_name.replace("_", " ")
        line[0].text(
            -0.1, 0.5, name, transform=line[0].transAxes, rotation=90, ha="right", va="center", fontsize=8
        )
    return figure


def teacher_bars(data: "Data", p: "Params", videos: int = 4, names: int = 5) -> Figure:
    """One frame of some training videos and the teacher's most likely ImageNet classes for it."""
    rows = _some(data.rows("labelled"), videos)
    figure, axes = plt.subplots(
        2, len(rows), figsize=(2.6 * len(rows), 4), height_ratios=(3, 2), squeeze=False
    )
    for (above, below), row in zip(axes.T, rows.itertuples(), strict=True):
        middle = int(data.store.table.loc[row.video, "frames"]) // 2 // data.store.settings.teacher_stride
        jpeg = data.store.read(row.video, np.array([middle]), teacher=True)[0]
        _draw(_picture(jpeg), above, row.class_name)
        h = data.targets.of(row.video, middle * data.store.settings.teacher_stride)
        best = h.argsort()[::-1][:names]
        below.barh(range(names), h[best], color="#56b4e9")
        below.set(yticks=[], xlim=(0, 1), xlabel="h(a)")
        below.invert_yaxis()
        for i, m in enumerate(best):
            below.annotate(IMAGENET_CLASSES[m], (0.02, i), va="center", fontsize=8)
    return figure


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


def _answers(models: dict[str, pd.DataFrame], video: str) -> list[str]:
    said = {m: table.set_index("video").loc[video] for m, table in models.items()}
    return [f"{figures.TITLES[m]}: {row.video_pred} ({row.video_confidence:.2f})" for m, row in said.items()]


def figure5(chosen: pd.DataFrame, models: dict[str, pd.DataFrame], store: frames.FrameStore) -> Figure:
    """Figure 5: the middle frame of each video, its class, and what each model said."""
    if chosen.empty:
        figure, axis = plt.subplots(figsize=(5, 1))
        axis.text(0, 0.5, "No test video that the last model gets right and the first gets wrong.")
        axis.axis("off")
        return figure
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.3 * columns, 3.4 * lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, chosen.itertuples(), strict=False):
        middle = int(store.table.loc[row.video, "frames"]) // 2 // store.settings.teacher_stride
        _draw(_picture(store.read(row.video, np.array([middle]), teacher=True)[0]), axis)
        axis.set_title(row.class_name, fontsize=9)
        axis.text(0.5, -0.03, "\n".join(_answers(models, row.video)), transform=axis.transAxes,
                  ha="center", va="top", fontsize=8)  # fmt: skip
    return figure


def film(store: frames.FrameStore, video: str, caption: str = "", width: int = 160) -> str:
    """HTML of a playable video: its stored frames, at most ten seconds, encoded into the page itself."""
    row = store.table.loc[video]
    fps = float(row.fps) or 25.0
    pictures = map(_picture, store.read(video, np.arange(min(int(row.frames), round(10 * fps)))))
    even = (p[: p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2] for p in pictures)  # H.264 wants even sides
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        codec.write(path, even, fps)
        return _player(path.read_bytes(), caption, width)


def _player(video: bytes, caption: str, width: int) -> str:
    data = base64.b64encode(video).decode()
    box = f"display:inline-block;margin:4px;width:{width}px;vertical-align:top"
    return (
        f'<figure style="{box}"><video width="{width}" controls loop muted autoplay '
        f'playsinline src="data:video/mp4;base64,{data}"></video>'
        f'<figcaption style="font-size:80%;overflow-wrap:anywhere">{caption}</figcaption></figure>'
    )


def doubtful(answers: "Answers", n: int = 6) -> HTML:
    """The first n videos of ``answers``, playable, with what was said of each."""
    films = [_player(codec.for_browser(answers.path(r.video)), _said(r), 240) for r in _usable(answers, n)]
    return HTML("".join(films) or "<i>no video to show</i>")


def along(answers: "Answers", n: int = 3) -> HTML:
    """The first n videos, each beside what its clips say along its seconds."""
    lines = []
    for row in _usable(answers, n):
        buffer = io.BytesIO()
        figure = figures.confidences(answers.clips, row.video)
        figure.savefig(buffer, format="png")
        plt.close(figure)
        picture = base64.b64encode(buffer.getvalue()).decode()
        alt = escape(f"Confidence of the {row.clips} clips of {row.video} along its seconds. {_plain(row)}")
        lines.append(
            _player(codec.for_browser(answers.path(row.video)), _said(row), 240)
            + f'<img alt="{alt}" src="data:image/png;base64,{picture}" style="width:630px;max-width:100%">'
        )
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
    films = []
    for row in chosen.itertuples():
        caption = "<br>".join([f"<b>{row.class_name}</b>", *_answers(models, row.video)])
        films.append(film(store, row.video, caption, width=200))
    return HTML("".join(films) or "<i>nothing to show</i>")


def agreement(models: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Test videos by which models get them right."""
    right = pd.DataFrame({figures.TITLES[m]: t.video_right.to_numpy() for m, t in models.items()})
    right = right.replace({True: "right", False: "wrong"})
    return right.value_counts().rename("test videos").reset_index()
