"""The curves of a run and what it gained: one style for all figures, safe for colour-blind readers, and a
text for those who do not see the picture."""

import base64
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from videossl_core.methods import METHODS
from videossl_core.params import WhichRun
from videossl_lab import live, results
from videossl_lab.claims import Gain

# Okabe and Ito's colours, told apart by people with any colour vision; grey for the plain baseline.
COLOURS = {
    "supervised": "#7f7f7f",
    "pseudo_label": "#e69f00",
    "mean_teacher": "#cc79a7",
    "s4l": "#f0e442",
    "sd": "#56b4e9",
    "mt_sd": "#009e73",
    "videossl": "#d55e00",
    "probe": "#882255",
    "probe_motion": "#332288",
    "fixmatch": "#0072b2",
    "videossl_plus": "#000000",
}
TITLES = {name: method.title for name, method in METHODS.items()}
STYLE = {
    "figure.dpi": 90,
    "axes.titleweight": "bold",
    "svg.hashsalt": "videossl",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def style() -> None:
    """What every notebook calls once: style of plots and tables, text alternatives of figures, progress of
    long work."""
    live.show_progress()
    pd.set_option("display.max_colwidth", None)  # a reason is read to its end
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9, rc=STYLE, palette="colorblind")
    shell = get_ipython()
    if hasattr(shell, "kernel"):
        shell.run_line_magic("matplotlib", "inline")  # now: later it would take its own formatter for PNG
        shell.display_formatter.formatters["image/png"].pop(Figure, None)
        shell.display_formatter.mimebundle_formatter.for_type(Figure, bundle)


def described(figure: Figure, text: str) -> Figure:
    """Give the figure its text alternative: what a reader who does not see it needs to know."""
    figure.alt = " ".join(text.split())
    return figure


def alt(figure: Figure) -> str:
    """The text alternative; of a figure that got none, what its axes measure."""
    axes = "; ".join(f"{axis.get_xlabel()}, {axis.get_ylabel()}" for axis in figure.axes)
    return getattr(figure, "alt", f"Chart: {axes}")


def bundle(figure: Figure, include=None, exclude=None) -> tuple[dict, dict]:
    """What a notebook keeps of a figure. nbconvert takes its text from the metadata of the PNG; JupyterLab
    heeds it only in HTML."""
    png, text = base64.b64encode(print_figure(figure)).decode(), alt(figure)
    return {"image/png": png, "text/html": _img(png, text), "text/plain": text}, {"image/png": {"alt": text}}


def _img(png: str, text: str, more: str = "") -> str:
    return f'<img alt="{escape(text)}" {more}src="data:image/png;base64,{png}">'


def run_path(p: WhichRun, kind: str) -> Path:
    """Where a picture of a run belongs, without an ending: ``.../figures/confusion-videossl-10-seed0``."""
    return p.figures_dir / f"{kind}-{p.run_name.replace('/', '-')}"


def save(figure: Figure, path: Path) -> Figure:
    """Write it as PNG, SVG and PDF, each with its text alternative inside; ``path`` has no ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = alt(figure)
    figure.savefig(f"{path}.png", dpi=max(figure.dpi, 150), metadata={"Description": text})
    figure.savefig(f"{path}.svg", metadata={"Date": None, "Title": text})
    figure.savefig(f"{path}.pdf", metadata={"CreationDate": None, "Title": text})
    return figure


def saved(path: Path, width: int = 900) -> HTML:
    """A figure that ``save`` wrote, as HTML with its text alternative."""
    png = Path(f"{path}.png")
    text = Image.open(png).text["Description"]
    return HTML(_img(base64.b64encode(png.read_bytes()).decode(), text, f'width="{width}" '))


def training_curves(log: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """Loss parts, learning rate, confident pseudo-labels and their accuracy, clip and video top-1; of a fit
    on the teacher's features how its strength was chosen."""
    if "lr" not in log:
        return strengths(log, metrics)
    figure, ((losses, rate), (pseudo, top1)) = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
    rows = log.set_index("step")
    parts = rows.filter(regex="^loss_").rename(columns=lambda name: name.removeprefix("loss_"))
    parts.plot(ax=losses, logy=True, title="Loss parts", ylabel="mean over the clips")
    rows.lr.plot(ax=rate, color="black", ylim=(0, None), title="Learning rate")
    labels = {"confident_pct": "confident, % of the unlabelled", "confident_top1": "of these right, %"}
    text = f"Loss parts, learning rate, pseudo-labels and accuracy over {rows.index[-1]} iterations"
    if "confident_pct" in log:
        rows[[*labels]].rename(columns=labels).plot(ax=pseudo, style=["-", "."], ylim=(-2, 102))
        text += f", at last {rows.confident_pct.iloc[-1]:.0f} % of the unlabelled clips confident"
    else:
        pseudo.text(0.5, 0.5, "no unlabelled clips", ha="center", transform=pseudo.transAxes)
    pseudo.set(title="Pseudo-labels", xlabel="iteration", ylabel="%")
    accuracy(top1, metrics)
    top1.set(title="Accuracy", xlabel="iteration")
    ends = parts.assign(lr=rows.lr).iloc[[0, -1]]
    changes = [f"{name} from {first:.2g} to {last:.2g}" for name, (first, last) in ends.items()]
    return described(figure, f"{text}: {', '.join(changes)}. {in_words(metrics)}")


def strengths(log: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """The log of a fit on the teacher's features: loss and top-1 by cross-validation on labelled videos."""
    tried = log.reindex(columns=["strength", "loss", "cv_top1"]).set_index("strength").sort_index()
    if tried.loss.isna().all():
        figure, axis = plt.subplots(figsize=(5, 1))
        axis.axis("off")
        few = "strength" in log and f"Strength {log.strength[0]:g}: too few labels to choose it."
        axis.text(0, 0.5, words := few or "Nothing to choose: the nearest labelled videos vote.")
        return described(figure, f"{words} {in_words(metrics)}")
    best, (figure, axes) = log.strength[0], plt.subplots(1, 2, figsize=(10, 3))
    for axis, name in zip(axes, tried, strict=True):
        tried[name].plot(ax=axis, marker="o", logx=True, color="#332288")
        axis.axvline(best, color="black", lw=1, ls=":")
        axis.set(xlabel="strength (dotted: chosen)")
    axes[0].set(title="Cross-validated loss", ylabel="mean cross-entropy")
    axes[1].set(title="Cross-validated accuracy", ylabel="top-1, %", ylim=(-2, 102))
    text = ", ".join(f"{s:g}: loss {row.loss:.2f}, top-1 {row.cv_top1:.0f} %" for s, row in tried.iterrows())
    return described(
        figure, f"Strengths tried by cross-validation: {text}. Chosen: {best:g}. {in_words(metrics)}"
    )


def accuracy(axis: Axes, metrics: pd.DataFrame) -> None:
    """Figure 4's lines: solid for the unlabelled training videos, dashed for the test split."""
    for subset, line in (("unlabelled", "-"), ("test", "--")):
        rows = metrics[metrics.subset == subset].set_index("step")[["clip_top1", "video_top1"]]
        rows.columns = [f"clip, {subset}", f"video, {subset}"]
        if len(rows):
            rows.plot(ax=axis, style=line, marker="o", color=["#56b4e9", "#d55e00"])
    axis.set(ylabel="top-1, %", ylim=(-2, 102))


def in_words(metrics: pd.DataFrame) -> str:
    """Clip and video top-1 of each subset at the end."""
    last = metrics.groupby("subset")[["clip_top1", "video_top1"]].last()
    words = [f"{name} clip {clip:.1f} %, video {video:.1f} %" for name, clip, video in last.itertuples()]
    return f"Top-1 at the end: {', '.join(words)}." if words else "No evaluation yet."


def confusion(table: pd.DataFrame, classes: list[str]) -> Figure:
    """Rows: the true class; columns: the class predicted for the whole video; share of a row in percent."""
    counts = results.confusion(table, classes)
    share = 100 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    side, few = min(14, 2.5 + 0.35 * len(classes)), len(classes) <= 20
    figure, axis = plt.subplots(figsize=(side + 1, side))
    sns.heatmap(share, annot=few, fmt=".0f", cmap="cividis", vmin=0, vmax=100, square=True, ax=axis)
    axis.collections[0].colorbar.set_label("% of the class's videos")
    axis.set(xlabel="predicted", ylabel="true")
    mistakes = results.mistakes(table)
    words = ", ".join(f"{true} taken for {other} ({n})" for (true, other), n in mistakes.head(5).items())
    text = f"Confusion matrix of {len(table)} videos, of which {mistakes.sum()} are mistaken"
    return described(figure, f"{text}. Most frequent: {words or 'none'}.")


def gain(table: pd.DataFrame, gains: dict[tuple[str, str], Gain]) -> Figure:
    """Held-out video_top1 of some methods (a column of ``table``), and the gain of each over those before it,
    with its interval."""
    height = 1.2 + 0.5 * max(len(table), len(gains))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, height), width_ratios=(3, 2))
    titles = [METHODS[name].title for name in table.index]
    bars = left.barh(titles, table.video_top1, color=[COLOURS[name] for name in table.index])
    left.bar_label(bars, fmt="%.1f", padding=3)
    left.set(xlabel="video top-1 on held-out videos, %", xlim=(0, 112), ylim=(len(table) - 0.5, -0.5))
    names = [f"{METHODS[last].title} over\n{METHODS[first].title}" for first, last in gains]
    for y, ((_, last), difference) in enumerate(gains.items()):
        gain_interval(right, difference, COLOURS[last], y)
    right.set(yticks=range(len(gains)), yticklabels=names, ylim=(len(gains) - 0.5, -0.5))
    words = [f"{name} {top1:.1f} %" for name, top1 in zip(titles, table.video_top1, strict=True)]
    pairs = zip(names, gains.values(), strict=True)
    words += [f"{name.replace(chr(10), ' ')}: {difference}" for name, difference in pairs]
    return described(figure, f"Video top-1 on the held-out videos: {'; '.join(words)}.")


def gain_curves(metrics: dict[str, pd.DataFrame], difference: Gain) -> Figure:
    """Test video_top1 of two methods over the iterations, from their metrics.csv, and the difference at the
    end with its interval."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=(3, 2))
    words = []
    for name, table in metrics.items():
        rows, title = table[table.subset == "test"], METHODS[name].title
        colour = COLOURS.get(name, "#0072b2")  # a notebook's own method has none
        left.plot(rows.step, rows.video_top1, "o-", color=colour, label=title)
        words.append(f"{title} {', '.join(f'{value:.1f}' for value in rows.video_top1)} %")
    left.set(xlabel="iteration", ylabel="video top-1 on test videos, %", xlim=(0, None), ylim=(0, 102))
    left.legend()
    gain_interval(right, difference, colour)
    right.set(yticks=[])
    return described(figure, f"Video top-1 of two methods on test videos: {'; '.join(words)}. {difference}.")


def gain_interval(axis: Axes, difference: Gain, colour: str, y: float = 0) -> None:
    """A gain as a point, its 95 % interval as a line, and zero."""
    axis.axvline(0, color="black", lw=1)
    axis.plot([difference.low, difference.high], [y, y], "|-", color=colour)
    axis.plot(difference.points, y, "o", color=colour)
    axis.set(xlabel="gain, points (95 % interval)")
