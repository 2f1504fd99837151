"""The paper's tables and figures, from finished runs, at the width of its columns."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from videossl_core.methods import METHODS
from videossl_core.params import ROOT
from videossl_core.views import figures


@figures.at_column_width
def figure4(metrics: pd.DataFrame, title: str = "") -> Figure:
    """Figure 4: clip and video top-1 over the iterations."""
    figure, axis = plt.subplots(figsize=(figures.COLUMN, 2.4))
    figures.accuracy(axis, metrics)
    axis.set(xlabel="iteration", title=title)
    return figures.described(
        figure, f"Figure 4, {title}: chart over {metrics.step.max()} iterations. {figures.in_words(metrics)}"
    )


@figures.at_column_width
def figure1(results: pd.DataFrame, methods: tuple[str, ...] = ("supervised", "videossl")) -> Figure:
    """Figure 1: video top-1 against the label fraction; seeds as a band from the lowest to the highest, or as
    a line where the fractions beside have one seed only."""
    figure, axis = plt.subplots(figsize=(figures.COLUMN, 2.4))
    shown = results[results.method.isin(methods)]
    for name in [m for m in methods if m in set(shown.method)]:
        seeds = shown[shown.method == name].groupby("label_pct").video_top1
        colour, several = figures.COLOURS.get(name), seeds.size() > 1
        low, high = seeds.min(), seeds.max()
        axis.plot(seeds.mean(), marker="o", color=colour, label=figures.TITLES.get(name, name))
        axis.fill_between(low.index, low, high, where=several, color=colour, alpha=0.2, lw=0)
        axis.vlines(low.index[several], low[several], high[several], color=colour, lw=1)
    fractions = sorted(shown.label_pct.unique())
    if len(fractions) > 2:
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(fractions, [f"{pct:g}" for pct in fractions])
    axis.set(xlabel="labelled videos, %", ylabel="video top-1, %", ylim=(0, 100))
    axis.legend(loc="lower right")
    means = shown.groupby(["method", "label_pct"]).video_top1.mean()
    words = (
        f"{figures.TITLES.get(m, m)} {value:.1f} at {pct:g} % labels" for (m, pct), value in means.items()
    )
    return figures.described(
        figure, f"Figure 1: video top-1 in % against the share of labels. {', '.join(words)}."
    )


@figures.at_column_width
def figure6(gain: pd.Series, names: int = 5) -> Figure:
    """Figure 6: gain per class over the supervised baseline in points of top-1, sorted, the best few named.

    Args:
        gain: by class, sorted, as ``compare.improved`` gives it.
    """
    colours = np.where(gain >= 0, "#d55e00", "#7f7f7f")
    few = len(gain) <= 3 * names
    figure, axis = plt.subplots(figsize=(figures.COLUMN, 0.8 + 0.22 * len(gain) if few else 2.2))
    best = "\n".join(f"{name} {value:+.1f}" for name, value in gain.head(names).items())
    if few:  # all have room for their names
        bars = axis.barh(gain.index, gain, color=colours, height=0.75, lw=0)
        axis.bar_label(bars, fmt="%+.1f", padding=2, fontsize=7)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.grid(False, axis="y")
        axis.set(xlabel="gain in clip top-1, points")
    else:
        axis.bar(range(len(gain)), gain, color=colours, width=1.0, lw=0)
        axis.text(0.97, 0.95, best, ha="right", va="top", fontsize=7, transform=axis.transAxes)
        axis.set(xlabel="class, sorted", ylabel="gain in clip top-1, points", xticks=[])
    share = 100 * (gain > 0).mean()
    title = f"{share:.0f} % of the classes improve, mean gain {gain.mean():+.1f}"
    figure.suptitle(title, fontsize=8, fontweight="bold")  # over the whole width: names take much of it
    ends = gain if len(gain) <= 2 * names else pd.concat([gain.head(names), gain.tail(names)])
    words = ", ".join(f"{name} {value:+.1f}" for name, value in ends.items())
    return figures.described(
        figure, f"Figure 6: gain in clip top-1 by class. {title}. Best to worst: {words}."
    )


@figures.at_column_width
def intervals(gains: pd.Series, against: str) -> Figure:
    """Differences to one method with their 95 % intervals, a row each.

    Args:
        gains: by name, each with points, low and high.
    """
    figure, axis = plt.subplots(figsize=(figures.COLUMN, 0.85 + 0.22 * len(gains)))
    axis.axvline(0, color="black", lw=0.8)
    points, low, high = (np.array([getattr(g, n) for g in gains]) for n in ("points", "low", "high"))
    at, alone = np.arange(len(gains)), np.isnan(low)
    axis.errorbar(points, at, xerr=[points - low, high - points], fmt="none", capsize=2, color="#0072b2")
    axis.plot(points[~alone], at[~alone], "o", color="#0072b2")
    axis.plot(points[alone], at[alone], "o", color="#0072b2", mfc="white")  # a bare dot would look certain
    axis.set_yticks(
        at, [f"{name} (one seed)" if a else name for name, a in zip(gains.index, alone, strict=True)]
    )
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set(xlabel=f"points of video top-1\nover {against}", ylim=(len(gains) - 0.5, -0.5))
    words = ", ".join(f"{name} {value}" for name, value in gains.items())
    return figures.described(
        figure, f"Difference in video top-1 to {against}, points with 95 % interval: {words}."
    )


def paper_results() -> pd.DataFrame:
    """Tables 1 to 4 of the paper, a row a cell: table, dataset, label_pct, method, clip_top1, video_top1."""
    return pd.read_csv(ROOT / "params" / "paper_results.csv")


def caption(dataset: str) -> str:
    """``Table 1: ucf101``, where the paper has one."""
    of = paper_results().query("dataset == @dataset").table
    return f"Table {of.iloc[0]}: {dataset}" if len(of) else dataset


def results_table(results: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """A table of the paper for one data set: label fraction by method, clip and video top-1, mean over seeds.

    "a (b)" is ours with the paper's number in brackets; cells that were not run show only the paper's.
    """
    paper = paper_results().query("dataset == @dataset")
    ours = results[results.dataset == dataset]
    cells: dict[tuple[str, str], dict[float, str]] = {}
    fractions = sorted({*paper.label_pct, *ours.label_pct})
    for name in [m for m in METHODS if m in {*paper_results().method, *ours.method}]:
        for kind in ("clip", "video"):
            column = cells.setdefault((figures.TITLES[name], kind), {})
            for pct in fractions:
                mine = ours[(ours.method == name) & (ours.label_pct == pct)][f"{kind}_top1"]
                theirs = paper[(paper.method == name) & (paper.label_pct == pct)][f"{kind}_top1"]
                column[pct] = _cell(mine, theirs)
    table = pd.DataFrame(cells)
    table.index = [f"{pct:g}" for pct in table.index]
    return table.rename_axis("% labels")


def _cell(mine: pd.Series, theirs: pd.Series) -> str:
    own = "–" if mine.empty else f"{mine.mean():.1f}" + (f" ± {mine.std():.1f}" if len(mine) > 1 else "")
    return own + (f" ({theirs.iloc[0]:.1f})" if len(theirs) else "")
