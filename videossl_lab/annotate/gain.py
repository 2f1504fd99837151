"""What the unlabelled videos are worth: both methods trained on the same labels, and compared."""

import pandas as pd

from videossl_core import prepare, runs, training
from videossl_core.data import splits
from videossl_core.params import Params
from videossl_lab import claims, live, plots
from videossl_lab.claims import COMPARED


def train(p: Params) -> dict[str, runs.Run]:
    """Train both methods on the labels as they are now, with live curves; returns their runs by method. One
    with other labels, videos or parameters is trained again; an interrupted one resumes."""
    trained = {}
    for method in COMPARED:
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


def compare_runs(trained: dict[str, runs.Run]) -> tuple[pd.DataFrame, claims.Gain]:
    """Clip and video top-1 of the runs on the held-out videos, and the last one's gain over the first."""
    tables = [runs.read_table(trained[method].predictions_test) for method in COMPARED]
    right = [table[["clip_right", "video_right"]].astype(bool) for table in tables]
    top1 = 100 * pd.DataFrame([table.mean() for table in right], [*COMPARED])
    top1 = top1.set_axis(["clip_top1", "video_top1"], axis=1).assign(held_out=len(tables[0]))
    return top1, claims.paired_gain(*(table.video_right.to_numpy() for table in right))
