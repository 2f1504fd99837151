"""The curves of a run and what it gained: one style for all figures, safe for colour-blind readers, and a
text for those who do not see the picture."""

import base64
from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from videossl_core.evaluation import Gain
from videossl_core.methods import METHODS

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
COLUMN = 3.35
"""Width of a column of a two-column paper, inches."""
PRINT = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "figure.dpi": 200,
}


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


def at_column_width(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A figure whose text is readable where it is printed as wide as a column."""

    @wraps(draw)
    def drawn(*given, **named) -> Figure:
        with plt.rc_context(PRINT):
            return draw(*given, **named)

    return drawn


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
    """Write the figure as PNG, and as SVG and PDF for print, each with its text alternative inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dpi = max(figure.dpi, plt.rcParams["savefig.dpi"])
    figure.savefig(path.with_suffix(".png"), dpi=dpi, metadata={"Description": alt(figure)})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Title": alt(figure)})
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None, "Title": alt(figure)})
    return figure


def saved(path: Path, width: int = 900) -> HTML:
    """A figure that was saved as PNG before, with its text alternative."""
    png, text = (
        base64.b64encode(path.read_bytes()).decode(),
        Image.open(path).text.get("Description", path.stem),
    )
    return HTML(f'<img alt="{escape(text)}" width="{width}" src="data:image/png;base64,{png}">')


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
    rates = sorted({float(f"{rate:.3g}") for rate in log.lr})
    axes[0, 1].set_yticks(rates, [f"{rate:g}" for rate in rates])
    axes[0, 1].minorticks_off()
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
    accuracy(axes[1, 1], metrics)
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
        {first.lr:.2g} to {last.lr:.2g}.{sure} {in_words(metrics)}""",
    )


def accuracy(axis, metrics: pd.DataFrame) -> None:
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
                    color=colour,
                    label=f"{kind}, {subset}",
                )
    axis.set(ylabel="top-1, %", ylim=(0, 102))
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if axis.lines:
        axis.legend()


def in_words(metrics: pd.DataFrame) -> str:
    """First and last clip and video top-1 of each subset."""
    words = []
    for subset, rows in metrics.groupby("subset"):
        for kind in ("clip", "video"):
            values = rows[f"{kind}_top1"]
            words.append(f"{kind} top-1 on {subset} from {values.iloc[0]:.1f} to {values.iloc[-1]:.1f} %")
    return f"Accuracy: {', '.join(words)}." if words else "No evaluation yet."


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
