"""Finished runs side by side: one's own, and those whose small results lie in ``outputs/reference/``."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd

from videossl_core.data.files import ROOT
from videossl_core.runs import NAMES, Run, read_table

FOLDER = ROOT / "outputs" / "reference"
"""Of each data set results.csv, a row a run, and from the same runs answers.csv and classes.csv."""


def run_name(row) -> str:
    """``videossl@T1/10/seed0``, as its folder below ``outputs/<dataset>/``."""
    method = f"{row.method}@{row.variant}" if row.variant else row.method
    return f"{method}/{row.label_pct:g}/seed{row.seed}"


def published(dataset: str) -> pd.DataFrame:
    """The published runs as ``runs.find`` gives one's own, without a ``folder``; empty if there are none."""
    path = FOLDER / dataset / "results.csv"
    return pd.read_csv(path, keep_default_na=False).assign(folder="") if path.exists() else pd.DataFrame()


def add_published(found: pd.DataFrame) -> pd.DataFrame:
    """The runs found, and the published ones that are not among them."""
    every = [found]
    for path in sorted(FOLDER.glob("*/answers.csv")):
        theirs = published(path.parent.name)
        mine = {run_name(row) for row in found[found.dataset == path.parent.name].itertuples()}
        every.append(theirs[[run_name(row) not in mine for row in theirs.itertuples()]])
    return pd.concat([table for table in every if len(table)] or every, ignore_index=True)


def answers(found: pd.DataFrame) -> pd.DataFrame:
    """What every run said of every test video: a row a video (index ``video``), the column ``class_name`` and
    one for each run, named as ``run_name`` does.

    Args:
        found: finished runs of one data set, as ``runs.find`` or ``add_published`` gives them.
    """
    return _collected(found, "answers", lambda run: run.predictions_test, "video", "video_pred")


def by_class(found: pd.DataFrame) -> pd.DataFrame:
    """clip_top1 of every run in every class: a row a class and a column a run; without the published runs of
    which it is not published."""
    return _collected(found, "classes", lambda run: run.per_class, "class_name", "clip_top1")


def _collected(
    found: pd.DataFrame, name: str, of: Callable[[Run], Path], index: str, column: str
) -> pd.DataFrame:
    """One column of a table that each run has, side by side; those of published runs are in ``name``.csv."""
    runs, classes = {}, {}
    for row in found.itertuples():
        run = run_name(row)
        if row.folder:
            table = read_table(of(Run(Path(row.folder)))).set_index(index).rename(columns={column: run})
        else:
            table = _side_by_side(row.dataset, name, index)
        if run in table:
            runs[run] = table[run]
        classes |= table.get("class_name", pd.Series(dtype=object)).to_dict()
    table = pd.DataFrame(runs).sort_index().rename_axis(index)
    if classes:
        table.insert(0, "class_name", table.index.map(classes))
    return table


@cache
def _side_by_side(dataset: str, name: str, index: str) -> pd.DataFrame:
    """A table of the published runs, empty where there is none."""
    path = FOLDER / dataset / f"{name}.csv"
    types = str if name == "answers" else NAMES  # what runs said are names too
    return read_table(path, types).set_index(index) if path.exists() else pd.DataFrame()
