"""Figure 5: the same test videos through several models."""

from html import escape

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from videossl_core.data.frames import FrameStore
from videossl_lab import clips, films, plots

Models = dict[str, pd.DataFrame]
"""method -> predictions_test.csv, all of the same test videos, as ``results.predictions`` returns it"""


def pick_videos(models: Models, n: int) -> pd.DataFrame:
    """Videos that are right by the last model and wrong by the first, the most confident first, cycling
    through the classes."""
    tables = list(models.values())
    first, last = tables[0], tables[-1]
    better = last[last.video_right.to_numpy() & ~first.video_right.to_numpy()]
    better = better.sort_values(["video_confidence", "video"], ascending=[False, True])
    order = better.groupby("class_name").cumcount().argsort(kind="stable")
    return better.iloc[order].head(n)


def predictions(models: Models, video: str) -> list[str]:
    """A line a model: whether it is right, the class it predicts and its confidence."""
    rows = {plots.TITLES[m]: table.set_index("video").loc[video] for m, table in models.items()}
    return [
        f"{'✓' if row.video_right else '✗'} {title}: {row.video_pred} ({row.video_confidence:.2f})"
        for title, row in rows.items()
    ]


def player(models: Models, store: FrameStore, video: str) -> str:
    """HTML that plays the video, with its true class and the models' predictions below."""
    name = next(iter(models.values())).set_index("video").class_name[video]
    lines = [f'<b title="{escape(video)}">{escape(name)}</b>', *map(escape, predictions(models, video))]
    return films.film(store, video, "<br>".join(lines), width=200)


def players(picked: pd.DataFrame, models: Models, store: FrameStore) -> HTML:
    """The picked videos side by side, playable."""
    shown = [player(models, store, video) for video in picked.video]
    return HTML("".join(shown) or "<i>nothing to show</i>")


def figure5(picked: pd.DataFrame, models: Models, store: FrameStore) -> Figure:
    """The middle frame of each picked video, its class, and the models' predictions."""
    columns, words = min(3, len(picked)), []
    lines = -(-len(picked) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.3 * columns, 3.4 * lines), squeeze=False)
    look = {"ha": "center", "va": "top", "fontsize": 8}
    for axis in axes.flat[len(picked) :]:
        axis.axis("off")
    for axis, row in zip(axes.flat, picked.itertuples(), strict=False):
        lines_below = predictions(models, row.video)
        clips.draw(clips.middle_frame(store, row.video)[1], axis, row.class_name)
        axis.text(0.5, -0.03, "\n".join(lines_below), transform=axis.transAxes, **look)
        words.append(f"{row.class_name} ({'; '.join(lines_below)})")
    text = f"Figure 5: {len(picked)} videos, and what each model predicts."
    return plots.described(figure, f"{text} {'. '.join(words)}.")
