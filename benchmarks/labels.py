"""How many labels the frozen teacher's layer needs for 90 %, in the order that annotate.ipynb suggests and in
a random one: ``python -m benchmarks.labels --root <the six class folders> --lists <ucfTrainTestlist>``.

Somebody who never errs labels the training videos of a data set one by one; its test videos are held out. The
orders of both kinds begin with the same random video. Everything else is what the notebook does.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from videossl_core import params, paths, prepare, probe
from videossl_core.data import files
from videossl_core.linear import Scale
from videossl_core.progress import track
from videossl_lab import plots
from videossl_lab.annotate.suggest import Learner

GOAL = 90
HOW = {"random": "#7f7f7f", "suggested": "#d55e00"}


def learner_of(data: prepare.Data, p: params.Params) -> Learner:
    """It knows all videos of the data set; their features are scaled by those of the training videos."""
    assert data.targets is not None
    x = probe.features_of(p, data.targets, data.split.video)
    scale = Scale.of(x[data.split.role != "test"], probe.sizes_of(p, x.shape[1]))
    return Learner(list(data.split.video), scale(x).astype(np.float32), data.classes)


def simulate(learner: Learner, split: pd.DataFrame, how: str, order: int, labels: int) -> pd.DataFrame:
    """A row for each label: top1 on the test videos, how many of the videos without a label the layer is sure
    of, and how many of these it gets right."""
    true, test = split.class_name.to_numpy(), split.role.to_numpy() == "test"
    rng = np.random.default_rng(order)
    shuffled = rng.permutation(split.video[~test])
    rows = {row.video: (row.class_name, "test") for row in split[test].itertuples()}
    video, results = shuffled[0], []
    learner.learn(rows)
    for n in range(1, labels + 1):
        # as in the widget, the next one is chosen while this one has no label yet
        suggested = learner.suggest(rows | {video: ("", "skip")})
        rows[video] = (true[learner.number[video]], "train")
        learner.learn(rows)
        left, probs = learner.left(rows), learner.probs
        if probs is None:
            probs = np.tile(learner.count > 0, (len(true), 1))
        right = np.array(learner.classes)[probs.argmax(1)] == true
        sure = left[probs[left].max(1) >= params.Params().delta] if learner.probs is not None else left[:0]
        row = {"how": how, "order": order, "labels": n, "top1": round(100 * right[test].mean(), 2)}
        results.append(row | {"sure": len(sure), "sure_right": int(right[sure].sum())})
        video = suggested if how == "suggested" else shuffled[n]
    return pd.DataFrame(results)


def needed(table: pd.DataFrame) -> pd.DataFrame:
    """By how the labels were chosen and order, the first number of labels with ``GOAL`` % on the test videos;
    infinite where it is never reached."""
    counts = table.labels.where(table.top1 >= GOAL, np.inf)
    return counts.groupby([table.how, table.order]).min().unstack()


def draw(table: pd.DataFrame) -> Figure:
    """Mean and range over the orders of the accuracy on the test videos, over the number of labels."""
    figure, axis = plt.subplots(figsize=(7, 4))
    words = []
    for how, counts in needed(table).iterrows():
        top1 = table[table.how == how].pivot(index="labels", columns="order", values="top1")
        mean, median = top1.mean(axis=1), f"{counts.median():g}"
        axis.fill_between(top1.index, top1.min(axis=1), top1.max(axis=1), color=HOW[how], alpha=0.2, lw=0)
        axis.plot(mean, color=HOW[how], ls="-" if how == "suggested" else "--", label=f"{how}: {median}")
        values = ", ".join(f"{mean[n]:.0f} % with {n}" for n in (10, 20, 30, 50) if n in mean)
        words.append(f"{how}, {values}; {GOAL} % with {median} ({counts.min():g} to {counts.max():g})")
    axis.axhline(GOAL, color="black", lw=1, ls=":")
    axis.set(xlabel="labelled training videos", ylabel="video top-1 on test videos, %", ylim=(0, 102))
    axis.legend(title=f"labels until {GOAL} %, median", loc="lower right")
    text = f"Mean top-1 over {counts.size} orders by the number of labels: {'. '.join(words)}"
    return plots.described(figure, f"{text} labels, median and range.")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="ucf101_6")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--lists", type=Path)
    parser.add_argument("--outputs", type=Path)
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--into", type=Path, default=paths.ROOT / "outputs" / "bench")
    args = parser.parse_args(words)
    plots.style()
    given = {name: getattr(args, name) for name in ("dataset", "root", "lists", "outputs")}
    p = params.load(**given, method="probe_motion", label_pct=100)
    data = prepare.prepare(p)
    learner = learner_of(data, p)
    jobs = [(how, order) for order in range(args.orders) for how in HOW]
    jobs = track(jobs, len(jobs), "labelling")
    table = pd.concat([simulate(learner, data.split, how, order, args.labels) for how, order in jobs])
    files.write_text(args.into / "labels.csv", table.to_csv(index=False, lineterminator="\n"))
    figure = draw(table)
    plots.save(figure, args.into / "labels")
    sure = table[table.how == "suggested"].set_index("labels").loc[30, ["sure", "sure_right"]].sum()
    print(f"{plots.alt(figure)}\nWith 30 suggested labels {sure.sure} sure guesses, {sure.sure_right} right")
    print(f"all of it: {args.into / 'labels.csv'}")


if __name__ == "__main__":
    main()
