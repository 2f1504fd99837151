"""Predictions for videos without a label, beside the videos themselves."""

from html import escape

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure

from videossl_core.predict import VideoPredictions
from videossl_lab import films, plots

HATCHES = ["", "//", "..", "xx", "++", "oo"]


def show_uncertain(predictions: VideoPredictions, n: int = 6, along: bool = False) -> HTML:
    """The first n usable videos of the table, which starts with the smallest margin, playable."""
    parts = []
    for row in predictions.table[predictions.table.reason == ""].head(n).itertuples():
        part = films.part_shown(predictions.store, row.video)
        caption = f"<b>{escape(row.video)}</b><br>{escape(_in_words(row))}" + (f"<br>{part}" if part else "")
        parts.append(films.playing(films.for_browser(predictions.root / row.video), caption, 240))
        if along:
            figure = confidences(predictions, row.video)
            picture = plots.bundle(figure)[0]["text/html"]
            parts.append(f'<div style="display:inline-block;max-width:100%">{picture}</div><br>')
            plt.close(figure)
    return HTML("".join(parts) or "<i>no video to show</i>")


def show_along(predictions: VideoPredictions, n: int = 3) -> HTML:
    """The first n usable videos, each beside its clips' predictions along its seconds."""
    return show_uncertain(predictions, n, along=True)


def confidences(predictions: VideoPredictions, video: str, most: int = 6, bars: int = 200) -> Figure:
    """Probability of the classes in each clip of a video, stacked, along the video's seconds.

    A class looks the same in every such figure; those beyond the ``most`` likeliest or below 2 % are grey. Of
    a long film each bar is the mean of several clips.
    """
    rows = predictions.clips[predictions.clips.video == video]
    each = -(-len(rows) // bars)
    means = dict.fromkeys(rows.filter(regex="^p_"), "mean")
    rows = rows.groupby(np.arange(len(rows)) // each).agg({"start": "min", "end": "max", **means})
    probs = rows.filter(regex="^p_").rename(columns=lambda name: name.removeprefix("p_"))
    best = probs.mean().sort_values(ascending=False, kind="stable").index[:most]
    shown = probs[[name for name in best if probs[name].max() >= 0.02]]
    palette = sns.color_palette("colorblind", 10)
    looks = {name: (palette[i % 10], HATCHES[i % 6]) for i, name in enumerate(predictions.classes)}
    if shown.shape[1] < probs.shape[1]:
        shown = shown.assign(**{"all others": 1 - shown.sum(axis=1)})
    figure, axis = plt.subplots(figsize=(7, 2.8))
    bottom, width = np.zeros(len(rows)), rows.end - rows.start
    for name, height in shown.items():
        colour, hatch = looks.get(name, ("#dddddd", ""))
        look = {"align": "edge", "label": name, "color": colour, "hatch": hatch, "ec": "white"}
        look["linewidth"] = 1 if each == 1 else 0  # edges would hide narrow bars
        axis.bar(rows.start, height, width, bottom, **look)
        bottom += height.to_numpy()
    axis.set(xlabel="seconds", ylabel="confidence", ylim=(0, 1), xlim=(0, rows.end.max()), title=video)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    row = next(predictions.table[predictions.table.video == video].itertuples())
    text = f"Confidence of the {row.clips} clips of {video} along its seconds."
    text += f" Each bar is the mean of {each}." if each > 1 else ""
    return plots.described(figure, f"{text} All together: {_in_words(row)}.")


def _in_words(row) -> str:
    words = f"{row.predicted} ({row.confidence:.2f}, margin {row.margin:.2f}"
    if row.disagreement:
        words += f"; {row.disagreement:.0%} of its {row.clips} clips predict another class"
    return words + ")"
