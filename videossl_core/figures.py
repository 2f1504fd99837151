"""The paper's figures and tables and the curves of a run: one style, safe for colour-blind readers, and a
text for those who do not see the picture."""

import base64
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from videossl_core.evaluation import Gain
from videossl_core.methods import METHODS
from videossl_core.params import ROOT

# Okabe and Ito's colours, told apart by people with any colour vision; grey for the plain baseline.
COLOURS = {
    "supervised": "#7f7f7f",
    "pseudo_label": "#e69f00",
    "mean_teacher": "#cc79a7",
    "s4l": "#f0e442",
    "sd": "#56b4e9",
    "mt_sd": "#009e73",
    "videossl": "#d55e00",
    "fixmatch": "#0072b2",
    "videossl_plus": "#000000",
}
TITLES = {name: method.title for name, method in METHODS.items()}


def style() -> None:
    """Set the project's plot style, and give figures their text alternative; every notebook calls it once."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    plt.rcParams |= {
        "figure.dpi": 90,
        "savefig.dpi": 150,
        "axes.titleweight": "bold",
        "axes.titlesize": "medium",
    }
    plt.rcParams |= {
        "svg.hashsalt": "videossl",
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
    shell = get_ipython()
    if hasattr(shell, "kernel"):
        shell.run_line_magic("matplotlib", "inline")  # now: later it would take its own formatter for PNG
        shell.display_formatter.formatters["image/png"].pop(Figure, None)
        shell.display_formatter.mimebundle_formatter.for_type(Figure, bundle)


def described(figure: Figure, text: str) -> Figure:
    """Give the figure its text alternative: what a reader who does not see it needs to know of it."""
    figure.alt = " ".join(text.split())
    return figure


def alt(figure: Figure) -> str:
    """The text alternative; of a figure that got none, its titles and what its axes measure."""
    if hasattr(figure, "alt"):
        return figure.alt
    charts = (", ".join(filter(None, (a.get_title(), a.get_xlabel(), a.get_ylabel()))) for a in figure.axes)
    return "Chart: " + "; ".join(filter(None, charts))


def bundle(figure: Figure, include=None, exclude=None) -> tuple[dict, dict]:
    """What a notebook keeps of a figure. nbconvert takes its text from the metadata of the PNG; JupyterLab
    heeds it only in HTML."""
    png, text = base64.b64encode(print_figure(figure)).decode(), alt(figure)
    html = f'<img alt="{escape(text)}" src="data:image/png;base64,{png}">'
    return {"image/png": png, "text/html": html, "text/plain": text}, {"image/png": {"alt": text}}


def save(figure: Figure, path: Path) -> Figure:
    """Write the figure as PNG and SVG beside each other, both with its text alternative inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), metadata={"Description": alt(figure)})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Title": alt(figure)})
    return figure


def training_curves(log: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """Loss parts, learning rate, confident pseudo-labels and their accuracy, clip and video top-1."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
    names = [c for c in log.columns if c.startswith("loss_")]
    for name, colour in zip(names, sns.color_palette("colorblind"), strict=False):
        axes[0, 0].plot(log.step, log[name], label=name.removeprefix("loss_"), color=colour)
    axes[0, 0].set(title="Loss parts", ylabel="mean over the clips", yscale="log")
    axes[0, 0].legend()
    axes[0, 1].plot(log.step, log.lr, color="black")
    axes[0, 1].set(title="Learning rate", yscale="log")
    if "confident_pct" in log:
        axes[1, 0].plot(log.step, log.confident_pct, label="confident, % of the unlabelled", color="#0072b2")
        known = log.dropna(subset="confident_top1")
        if len(known):
            axes[1, 0].plot(
                known.step, known.confident_top1, ".", label="of these right, %", color="#d55e00", ms=4
            )
        axes[1, 0].set(ylim=(0, 102))
        axes[1, 0].legend()
    else:
        axes[1, 0].text(0.5, 0.5, "no unlabelled clips", ha="center", transform=axes[1, 0].transAxes)
    axes[1, 0].set(title="Pseudo-labels", xlabel="iteration", ylabel="%")
    _accuracy(axes[1, 1], metrics)
    axes[1, 1].set(title="Accuracy", xlabel="iteration")
    first, last = log.iloc[0], log.iloc[-1]
    losses = ", ".join(f"{n.removeprefix('loss_')} from {first[n]:.2g} to {last[n]:.2g}" for n in names)
    sure = (
        f" {last.confident_pct:.0f} % of the unlabelled clips are confident."
        if "confident_pct" in log
        else ""
    )
    return described(
        figure,
        f"""Four charts over {last.step:.0f} iterations. Loss parts: {losses}. Learning rate from
        {first.lr:.2g} to {last.lr:.2g}.{sure} {_in_words(metrics)}""",
    )


def _accuracy(axis, metrics: pd.DataFrame) -> None:
    """Figure 4's lines: solid for the unlabelled training videos, dashed for the test split."""
    for subset, line in (("unlabelled", "-"), ("test", "--")):
        rows = metrics[metrics.subset == subset]
        for kind, colour in (("clip", "#56b4e9"), ("video", "#d55e00")):
            if len(rows):
                axis.plot(
                    rows.step,
                    rows[f"{kind}_top1"],
                    line,
                    marker="o",
                    ms=3,
                    color=colour,
                    label=f"{kind}, {subset}",
                )
    axis.set(ylabel="top-1, %", ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if axis.lines:
        axis.legend()


def _in_words(metrics: pd.DataFrame) -> str:
    """First and last clip and video top-1 of each subset."""
    words = []
    for subset, rows in metrics.groupby("subset"):
        for kind in ("clip", "video"):
            values = rows[f"{kind}_top1"]
            words.append(f"{kind} top-1 on {subset} from {values.iloc[0]:.1f} to {values.iloc[-1]:.1f} %")
    return f"Accuracy: {', '.join(words)}." if words else "No evaluation yet."


def figure4(metrics: pd.DataFrame, title: str = "") -> Figure:
    """Figure 4: clip and video top-1 over the iterations."""
    figure, axis = plt.subplots(figsize=(6, 4))
    _accuracy(axis, metrics)
    axis.set(xlabel="iteration", title=title)
    return described(
        figure, f"Figure 4, {title}: chart over {metrics.step.max()} iterations. {_in_words(metrics)}"
    )


def figure1(results: pd.DataFrame) -> Figure:
    """Figure 1: video top-1 against the label fraction; seeds as a band from the lowest to the highest."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for name, rows in results.groupby("method"):
        seeds = rows.groupby("label_pct").video_top1
        axis.plot(seeds.mean(), marker="o", color=COLOURS.get(name), label=TITLES.get(name, name))
        axis.fill_between(
            seeds.min().index, seeds.min(), seeds.max(), color=COLOURS.get(name), alpha=0.2, lw=0
        )
    axis.set(xlabel="labelled videos, %", ylabel="video top-1, %", ylim=(0, None))
    axis.legend()
    means = results.groupby(["method", "label_pct"]).video_top1.mean()
    words = (f"{TITLES.get(m, m)} {value:.1f} at {pct:g} % labels" for (m, pct), value in means.items())
    return described(figure, f"Figure 1: video top-1 in % against the share of labels. {', '.join(words)}.")


def figure6(ours: pd.DataFrame, baseline: pd.DataFrame, kind: str = "clip", names: int = 5) -> Figure:
    """Figure 6: gain per class over the baseline in points of top-1, sorted, the best few named.

    Args:
        ours, baseline: per_class tables of two runs on the same test split.
    """
    gain = ours.set_index("class_name")[f"{kind}_top1"] - baseline.set_index("class_name")[f"{kind}_top1"]
    gain = gain.sort_values(ascending=False)
    figure, axis = plt.subplots(figsize=(8, 3.5))
    axis.bar(range(len(gain)), gain, color=np.where(gain >= 0, "#d55e00", "#7f7f7f"), width=0.85)
    for i, (name, value) in enumerate(gain.head(names).items()):
        axis.annotate(
            f"{name} {value:+.1f}",
            (i, value),
            rotation=30,
            fontsize=8,
            xytext=(2, 2),
            textcoords="offset points",
        )
    share = 100 * (gain > 0).mean()
    axis.set(xlabel="class, sorted", ylabel=f"gain in {kind} top-1, points", xticks=[])
    title = f"{share:.0f} % of the classes improve, mean gain {gain.mean():+.1f} points"
    axis.set_title(title, loc="left")
    axis.margins(y=0.3)
    ends = gain if len(gain) <= 2 * names else pd.concat([gain.head(names), gain.tail(names)])
    words = ", ".join(f"{name} {value:+.1f}" for name, value in ends.items())
    return described(figure, f"Figure 6: gain in {kind} top-1 by class. {title}. Best to worst: {words}.")


def confusion(table: pd.DataFrame, classes: list[str]) -> Figure:
    """Rows: the true class; columns: the class said of the whole video; share of a row in percent."""
    counts = pd.crosstab(table.class_name, table.video_pred).reindex(
        index=classes, columns=classes, fill_value=0
    )
    share = 100 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    side = min(14, 2.5 + 0.35 * len(classes))
    figure, axis = plt.subplots(figsize=(side + 1, side))
    few = len(classes) <= 20
    sns.heatmap(share, annot=few, fmt=".0f", cmap="cividis", vmin=0, vmax=100, square=True, ax=axis,
                cbar_kws={"label": "% of the class's videos"}, annot_kws={"size": 8},
                xticklabels=few or 5, yticklabels=few or 5)  # fmt: skip
    axis.set(xlabel="said", ylabel="true")
    wrong = table[table.class_name != table.video_pred]
    pairs = wrong.groupby(["class_name", "video_pred"]).size().sort_values(ascending=False).head(5)
    words = ", ".join(f"{true} taken for {said} ({n})" for (true, said), n in pairs.items())
    return described(
        figure,
        f"""Confusion matrix of {len(classes)} classes: {len(table) - len(wrong)} of {len(table)} videos are
        right. {f"Most frequent mistakes: {words}." if words else ""}""",
    )


def gain(table: pd.DataFrame, won: Gain) -> Figure:
    """Held-out video_top1 of two methods, and the difference with its interval.

    Args:
        table: by method, the column video_top1.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.4), width_ratios=(3, 2))
    names = list(table.index)
    bars = left.barh([TITLES[n] for n in names], table.video_top1, color=[COLOURS[n] for n in names])
    left.bar_label(bars, fmt="%.1f", padding=3)
    left.invert_yaxis()
    left.set(xlabel=f"video top-1 on {won.videos} held-out videos, %", xlim=(0, 112))
    right.axvline(0, color="black", lw=1)
    right.errorbar(
        [won.points], [0], xerr=[[won.points - won.low], [won.high - won.points]], fmt="o", capsize=5,
        color=COLOURS[names[-1]],
    )  # fmt: skip
    right.set(yticks=[], xlabel="gain, points (95 % interval)")
    said = " and ".join(f"{TITLES[n]} {value:.1f} %" for n, value in table.video_top1.items())
    return described(figure, f"Video top-1 on the held-out videos: {said}; {won}.")


def paper_results() -> pd.DataFrame:
    """Tables 1 to 4 of the paper, a row a cell: table, dataset, label_pct, method, clip_top1, video_top1."""
    return pd.read_csv(ROOT / "params" / "paper_results.csv")


def results_table(results: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """A table of the paper for one data set: label fraction by method, clip and video top-1, mean over seeds.

    "a (b)" is ours with the paper's number in brackets; cells that were not run show only the paper's.
    """
    paper = paper_results().query("dataset == @dataset")
    ours = results[results.dataset == dataset]
    cells: dict[tuple[str, str], dict[float, str]] = {}
    fractions = sorted({*paper.label_pct, *ours.label_pct})
    for name in METHODS:
        for kind in ("clip", "video"):
            column = cells.setdefault((TITLES[name], kind), {})
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
