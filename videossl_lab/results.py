"""Finished runs side by side: your own, and those whose small results lie in ``outputs/reference/``."""

import json
from pathlib import Path

import pandas as pd

from videossl_core import params, paths
from videossl_core.data import demo, files
from videossl_core.methods import METHODS
from videossl_core.runs import NAMES, Run, RunError, read_table
from videossl_lab.notebook import FigureParams

FOLDER = paths.ROOT / "outputs" / "reference"
"""For each data set results.csv with a row a run and, of the same runs, answers.csv and classes.csv."""

RESULTS = [
    "dataset", "method", "variant", "label_pct", "label_draw", "split", "seed", "clip_top1", "video_top1",
    "steps", "minutes", "settings", "cpu", "split_sha256", "commit", "folder",
]  # fmt: skip

# What two methods' runs must have in common to be compared; the rest of their parameters is about one method,
# or shows in the split, which is compared too.
SHARED = [
    "frame_size", "crop_size", "clip_frames", "jpeg_quality", "hflip", "backbone", "shortcut", "width",
    "loss_reduction", "steps", "batch_size", "lr", "lr_drop_every", "momentum", "dampening", "weight_decay",
    "last_clip", "precision",
]  # fmt: skip

# Shared as well, but came after the first results were published, with the value that those had: it counts
# where it is another, so that their hashes stay.
SHARED_LATER = {
    "augment": "crop", "fps": None, "stride": 1,
    "clips": "consecutive", "class_balance": "none", "keep": "last",
    "init": "scratch", "backbone_lr": None,
}  # fmt: skip


def settings(p: dict) -> str:
    """A short hash of what two methods' runs must have in common to be compared, of a params.json."""
    later = [name for name, first in SHARED_LATER.items() if p.get(name, first) != first]
    return files.sha256(json.dumps({name: p[name] for name in SHARED + later}).encode())[:8]


def find(outputs: Path, dataset: str | None = None, variants: bool = False) -> pd.DataFrame:
    """All finished runs below ``outputs``, a row each with the columns of results.csv and the folder; with
    ``variants`` also those that differ in other parameters than the columns."""
    rows = []
    for path in sorted(Path(outputs).glob(f"{dataset or '*'}/*/*/seed*/provenance.json")):
        run = Run(path.parent)
        if not run.finished or not run.metrics.exists():
            continue
        p, facts = {"variant": ""} | run.read_params(), run.read_provenance()
        if p["method"] not in METHODS or (p["variant"] and not variants):
            continue  # a method of a notebook's own, which no table knows
        metrics = pd.read_csv(run.metrics)
        last = metrics[metrics.subset == "test"].tail(1)  # a finished run's last is of all test videos
        if len(last):
            top1 = dict(last[["clip_top1", "video_top1"]].iloc[0].round(2)) | {"steps": last.step.iloc[0]}
            init = {"init": (facts.get("init") or {}).get("sha256", "scratch")}  # wherever the file lies
            more = {"minutes": round(facts["train_seconds"] / 60, 1), "settings": settings(p | init)}
            rows.append({"cpu": ""} | facts | p | top1 | more | {"folder": str(run.folder)})
    return pd.DataFrame(rows, columns=RESULTS)


def run_name(row) -> str:
    """``videossl@T1/10/seed0`` for a row of results.csv: the run's folder below ``outputs/<dataset>/``."""
    return params.run_name(row.method, row.variant, row.label_pct, row.seed)


def paper_results() -> pd.DataFrame:
    """Tables 1 to 4 of the paper, a row a cell: table, dataset, label_pct, method, clip_top1, video_top1."""
    return pd.read_csv(paths.ROOT / "params" / "paper_results.csv")


def published(dataset: str) -> pd.DataFrame:
    """The published runs as ``find`` lists your own, without a ``folder``; empty if there are none."""
    path = FOLDER / dataset / "results.csv"
    return pd.read_csv(path, keep_default_na=False).assign(folder="") if path.exists() else pd.DataFrame()


def add_published(own: pd.DataFrame) -> pd.DataFrame:
    """Your own runs, and the published ones that are not among them."""
    theirs = [published(path.parent.name) for path in sorted(FOLDER.glob("*/answers.csv"))]
    every = pd.concat([table for table in (own, *theirs) if len(table)] or [own])
    key = ["dataset", "method", "variant", "label_pct", "seed"]
    return every.drop_duplicates(key, ignore_index=True)  # the first is your own


def predicted_classes(rows: pd.DataFrame) -> pd.DataFrame:
    """The class that each run of one data set predicts for each test video: a row a video, its class_name,
    and a column for each run, named as ``run_name`` does."""
    return _side_by_side(rows, "predictions_test.csv", "answers.csv", "video", "video_pred")


def as_plain(rows: pd.DataFrame, predicted: pd.DataFrame, variant: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A variant's runs and their ``predicted_classes`` as if they were the plain ones. Their ``settings``
    count as one: each method has its own, and they were chosen alike."""
    own = rows[rows.variant == variant]
    names = {run_name(row): run_name(row._replace(variant="")) for row in own.itertuples()}
    return own.assign(variant="", settings=variant), predicted[["class_name", *names]].rename(columns=names)


def nouns_and_verbs(predicted: pd.DataFrame) -> pd.DataFrame:
    """Of the demo, whose classes are a noun and a verb: the share of the test videos, in percent, of which
    each run of ``predicted_classes`` (a row here) knows the noun, the verb, and both. Empty for others."""
    demos = {f"{noun}_{verb}" for noun in demo.NOUNS for verb in demo.VERBS}
    names = list(predicted.columns[1:]) if demos.issuperset(predicted.class_name) else []
    words = {name: predicted[name].str.rsplit("_", n=1, expand=True) for name in ["class_name", *names]}
    right = {name: words[name] == words["class_name"] for name in names}
    shares = {name: [*known.mean(), known.all(axis=1).mean()] for name, known in right.items()}
    return 100 * pd.DataFrame.from_dict(shares, orient="index", columns=["noun", "verb", "both"])


def by_class(rows: pd.DataFrame) -> pd.DataFrame:
    """clip_top1 of each run (column) in each class (row), as far as published runs have published it."""
    return _side_by_side(rows, "per_class.csv", "classes.csv", "class_name", "clip_top1")


def _side_by_side(rows: pd.DataFrame, file: str, public: str, index: str, column: str) -> pd.DataFrame:
    """One column of a file that each run has, side by side; ``public`` holds those of the published runs."""
    path = FOLDER / next(iter(rows.dataset), "") / public
    types = str if column == "video_pred" else NAMES  # predicted classes are names
    published = read_table(path, types).set_index(index) if path.exists() else pd.DataFrame()
    columns, classes = {}, {}
    for row in rows.itertuples():
        name, table = run_name(row), published
        if row.folder:
            table = read_table(Path(row.folder) / file).set_index(index).rename(columns={column: name})
        if name in table:
            columns[name] = table[name]
        classes |= table.get("class_name", pd.Series(dtype=object)).to_dict()
    table = pd.DataFrame(columns).sort_index().rename_axis(index)
    if classes:
        table.insert(0, "class_name", table.index.map(classes))
    return table


def predictions(p: FigureParams) -> dict[str, pd.DataFrame]:
    """predictions_test.csv of the finished runs among ``p.methods``, in that order.

    Raises:
        RunError: none is finished, or they were tested on different videos.
    """
    models: dict[str, pd.DataFrame] = {}
    for method in p.methods:
        run = Run(p.but(method=method).run_dir)
        if run.finished and run.predictions_test.exists():
            models[method] = read_table(run.predictions_test)
            if list(models[method].video) != list(next(iter(models.values())).video):
                raise RunError(f"{run.folder} was tested on other videos than {next(iter(models))}")
    if not models:
        names = ", ".join(p.methods)
        raise RunError(f"no finished run of {names} at {p.label_pct:g} % labels, seed {p.seed}")
    return models


def confusion(table: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Videos of a predictions_test.csv by true class (rows) and predicted class (columns)."""
    counts = pd.crosstab(table.class_name, table.video_pred)
    return counts.reindex(classes, columns=classes, fill_value=0)


def mistakes(table: pd.DataFrame) -> pd.Series:
    """Videos of a predictions_test.csv by (true class, other class predicted), most frequent first."""
    wrong = table[table.class_name != table.video_pred]
    return wrong.groupby(["class_name", "video_pred"]).size().sort_values(ascending=False, kind="stable")


def compare(recorded: pd.DataFrame, now: pd.DataFrame) -> str:
    """How far two tables of predictions for the same videos differ, in a sentence."""
    both = recorded.merge(now, on="video", suffixes=("_recorded", "_now"))
    if len(both) < max(len(recorded), len(now)):
        return f"only {len(both)} of {len(recorded)} recorded and {len(now)} predicted videos are the same"
    changed = (both.video_pred_recorded != both.video_pred_now).sum()
    far = (both.video_confidence_recorded - both.video_confidence_now).abs().max()
    return (
        f"{changed} of {len(both)} videos have another predicted class than on record; "
        f"confidences differ by {far:.1e} at most"
    )
