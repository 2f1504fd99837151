"""Which of three to use on one's own videos: the frozen teacher, or a network trained without or with the
unlabelled ones."""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from videossl_core import prepare, runs, training
from videossl_core.data import splits
from videossl_core.params import Params
from videossl_lab import claims, live, plots

METHODS = ("probe", *claims.COMPARED)
"""The cheapest first."""

Gains = dict[tuple[str, str], claims.Gain]
"""(one method, a dearer one) -> the gain of the dearer one"""


def train(p: Params, names: Sequence[str] = METHODS) -> dict[str, runs.Run]:
    """Train these methods on the labels as they are now, the networks with live curves; returns their runs by
    method. One with other labels, videos or parameters is trained again; an interrupted one resumes."""
    trained = {}
    for method in names:
        q = p.but(method=method)
        data = prepare.prepare(q)
        old = runs.Run(q.run_dir)
        if old.params.exists():
            other = q.differing(old.read_params()) or splits.difference(old.read_split(), data.split)
            q = q.but(resume="never") if other else q
        with runs.open(q) as run:
            if not run.finished:
                trainer = training.make_trainer(q, data)
                curves = live.Live(q, plots.training_curves, trainer)
                for row in run.record(trainer):
                    curves.add(row)
                curves.close()
        trained[method] = run
    return trained


def compare_runs(trained: dict[str, runs.Run]) -> tuple[pd.DataFrame, Gains]:
    """Clip and video top-1 of the runs, the cheapest first, on the held-out videos, and the gain of each over
    those before it."""
    tables = {method: runs.read_table(run.predictions_test) for method, run in trained.items()}
    right = {name: table[["clip_right", "video_right"]].astype(bool) for name, table in tables.items()}
    top1 = 100 * pd.DataFrame({name: table.mean() for name, table in right.items()}).T
    top1 = top1.set_axis(["clip_top1", "video_top1"], axis=1).assign(held_out=list(map(len, right.values())))
    whole = {name: table.video_right.to_numpy() for name, table in right.items()}
    return top1, {(a, b): claims.paired_gain(whole[a], whole[b]) for a, b in combinations(whole, 2)}


def choose(gains: Gains) -> tuple[str, str]:
    """The method to use, and why. A dearer one must be shown to be better: its gain's interval is above 0."""

    def beats(one: str, other: str) -> bool:
        return gains[other, one].low > 0 if (other, one) in gains else gains[one, other].high < 0

    cheapest, *dearer = dict.fromkeys(name for pair in gains for name in pair)
    best = cheapest
    for method in dearer:
        best = method if beats(method, best) and beats(method, cheapest) else best
    others = [name for name in (cheapest, *dearer) if name != best]
    beaten = " and ".join(name for name in others if beats(best, name))
    unclear = " and ".join(name for name in others if not beats(best, name))
    videos = f"these {next(iter(gains.values())).videos} held-out videos"
    words = [f"{videos} show that it is better than {beaten}"] if beaten else []
    if unclear:
        words.append(f"{videos} cannot tell it from {unclear}")
    if unclear and best == cheapest:
        words.append("it is the cheapest; more labels may tell")
    return best, f"Use {best}: {'; '.join(words)}."
