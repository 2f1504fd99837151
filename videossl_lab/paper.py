"""The paper's tables and figures, from finished runs, at the width of its columns."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from videossl_core.methods import METHODS
from videossl_lab import plots
from videossl_lab.results import paper_results

COLUMN = 3.35  # width of a column of a two-column paper, inches
_PRINT = sns.plotting_context("paper", font_scale=0.83) | {"lines.markersize": 3.5, "figure.dpi": 200}
at_column_width = plt.rc_context(_PRINT)
"""Decorates a function that draws a figure: its text is readable when printed as wide as a column."""


@at_column_width
def figure4(metrics: pd.DataFrame, title: str = "") -> Figure:
    """Figure 4: clip and video top-1 over the iterations."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.4))
    plots.accuracy(axis, metrics)
    axis.set(xlabel="iteration", title=title)
    return plots.described(figure, f"Figure 4, {title}, over the iterations. {plots.in_words(metrics)}")


@at_column_width
def figure1(results: pd.DataFrame, methods: tuple[str, ...] = ("supervised", "videossl", "probe")) -> Figure:
    """Figure 1: video top-1 against the label fraction, a bar from the lowest to the highest seed."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.4))
    shown = results[results.method.isin(methods)]
    for name, rows in shown.groupby("method"):
        seeds = rows.groupby("label_pct").video_top1
        mean, look = seeds.mean(), {"color": plots.COLOURS[name], "label": plots.TITLES[name]}
        ends = [mean - seeds.min(), seeds.max() - mean]
        axis.errorbar(mean.index, mean, ends, marker="o", capsize=2, elinewidth=0.8, **look)
    fractions = sorted(shown.label_pct.unique())
    if len(fractions) > 2:
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(fractions, [f"{pct:g}" for pct in fractions])
    axis.set(xlabel="labelled videos, %", ylabel="video top-1, %", ylim=(0, 100))
    axis.legend(loc="lower right")
    means = shown.groupby(["method", "label_pct"]).video_top1.mean()
    words = ", ".join(f"{plots.TITLES[m]} {top1:.1f} at {pct:g} % labels" for (m, pct), top1 in means.items())
    return plots.described(figure, f"Figure 1: video top-1 in % against the share of labels. {words}.")


@at_column_width
def figure6(gain: pd.Series, method: str = "VideoSSL", names: int = 5) -> Figure:
    """Figure 6: gain per class over the supervised baseline, from ``claims.improved``, the best few named."""
    colours = np.where(gain >= 0, "#d55e00", "#7f7f7f")
    few = len(gain) <= 3 * names
    figure, axis = plt.subplots(figsize=(COLUMN, 0.8 + 0.22 * len(gain) if few else 2.2))
    if few:  # there is room for every name
        bars = axis.barh(gain.index, gain, color=colours, height=0.75, lw=0)
        axis.bar_label(bars, fmt="%+.1f", padding=2, fontsize=7)
        axis.grid(False, axis="y")
        axis.set(xlabel="gain in clip top-1, points", xmargin=0.2, ylim=(len(gain) - 0.5, -0.5))
    else:
        best = "\n".join(f"{name} {value:+.1f}" for name, value in gain.head(names).items())
        axis.bar(range(len(gain)), gain, color=colours, width=1.0, lw=0)
        axis.text(0.97, 0.95, best, ha="right", va="top", fontsize=7, transform=axis.transAxes)
        axis.set(xlabel="class, sorted", ylabel="gain in clip top-1, points", xticks=[])
    title = f"{100 * (gain > 0).mean():.0f} % of the classes improve, mean gain {gain.mean():+.1f}"
    # over the whole width: names take much of it
    figure.suptitle(f"{method}\n{title}", fontsize=8, fontweight="bold")
    ends = gain if len(gain) <= 2 * names else pd.concat([gain.head(names), gain.tail(names)])
    words = ", ".join(f"{name} {value:+.1f}" for name, value in ends.items())
    text = f"Figure 6: gain of {method} in clip top-1 by class. {title}. Best to worst: {words}."
    return plots.described(figure, text)


@at_column_width
def intervals(gains: pd.Series, baseline: str) -> Figure:
    """Differences from a baseline, ``claims.Difference`` by name, with their 95 % intervals."""
    figure, axis = plt.subplots(figsize=(COLUMN, 0.85 + 0.22 * len(gains)))
    points, low, high = (np.array([getattr(g, n) for g in gains]) for n in ("points", "low", "high"))
    y, single = np.arange(len(gains)), np.isnan(low)
    axis.axvline(0, color="black", lw=0.8)
    axis.errorbar(points, y, xerr=[points - low, high - points], fmt="none", capsize=2, color="#0072b2")
    faces = np.where(single, "white", "#0072b2")  # a full dot would look certain
    axis.scatter(points, y, 12, faces, edgecolors="#0072b2", zorder=3)
    axis.set_yticks(y, np.where(single, gains.index + " (one seed)", gains.index))
    axis.grid(False, axis="y")
    axis.set(xlabel=f"points of video top-1\nover {baseline}", ylim=(len(gains) - 0.5, -0.5))
    words = ", ".join(f"{name} {value}" for name, value in gains.items())
    return plots.described(figure, f"Gain in video top-1 over {baseline}, points with intervals: {words}.")


def caption(dataset: str) -> str:
    """``Table 1: ucf101``, where the paper has one."""
    tables = paper_results().query("dataset == @dataset").table
    return f"Table {tables.iloc[0]}: {dataset}" if len(tables) else dataset


def results_table(results: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """A table of the paper for one data set: label fraction by method, clip and video top-1, mean over seeds,
    with the paper's number in brackets; of cells that were not run only that."""
    paper = paper_results()
    tables = [table[table.dataset == dataset] for table in (results, paper)]
    fractions = sorted({pct for table in tables for pct in table.label_pct})
    names = [m for m in METHODS if m in {*paper.method, *tables[0].method}]
    if tables[0].settings.nunique() > 1:
        warnings.warn(f"{dataset}: runs of different settings (results.csv) share this table", stacklevel=2)
    cells = {
        (plots.TITLES[name], kind): [
            _cell(*(t[(t.method == name) & (t.label_pct == pct)][f"{kind}_top1"] for t in tables))
            for pct in fractions
        ]
        for name in names
        for kind in ("clip", "video")
    }
    return pd.DataFrame(cells, index=[f"{pct:g}" for pct in fractions]).rename_axis("% labels")


def _cell(ours: pd.Series, theirs: pd.Series) -> str:
    mean = "–" if ours.empty else f"{ours.mean():.1f}" + (f" ± {ours.std():.1f}" if len(ours) > 1 else "")
    return mean + (f" ({theirs.iloc[0]:.1f})" if len(theirs) else "")
