"""What ``make demo`` runs: a study of one data set, notebook by notebook, from nothing to its report."""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
from papermill.exceptions import PapermillExecutionError

from videossl_core import params, paths
from videossl_core.data import files
from videossl_core.methods import METHODS
from videossl_lab import estimate, report, results
from videossl_lab.claims import COMPARED
from videossl_lab.execute import execute
from videossl_lab.live import duration

WAITS = "waits.csv"
"""Seconds of each step, and the matrix rate in GFLOP/s of the machine that took them."""


def notebooks(p: params.Params) -> dict[str, tuple[str, dict]]:
    """By the name of the executed notebook, in order: prepare, train and evaluate the two compared methods,
    and make the figures of their runs."""
    which = {"dataset": p.dataset, "label_pct": p.label_pct, "seed": p.seed}
    steps = {"1_data_prep": ("data_prep", which)}
    for number, notebook in ((2, "train"), (3, "evaluate")):
        for method in COMPARED:
            steps[f"{number}_{notebook}_{method}"] = notebook, which | {"method": method}
    steps["4_qualitative"] = "qualitative", which
    shown = {"datasets": p.dataset, "label_pct": p.label_pct, "seed": p.seed}
    return steps | {"5_paper_figures": ("paper_figures", shown)}


def expected(dataset: str, rate: float) -> pd.Series:
    """Seconds of each step on a machine of this matrix rate, by the published ones; empty where none are."""
    published = paths.ROOT / "outputs" / "reference" / dataset / WAITS
    if not published.exists():
        return pd.Series(dtype=float)
    waits = pd.read_csv(published, index_col="step")
    return waits.seconds * waits.gflops / rate


def run_all(p: params.Params) -> Path:
    """Run every step, say beforehand how long that takes here, and all the way how far it is.

    Returns:
        The report's page. How long each step took is in ``waits.csv`` beside the executed notebooks.
    """
    folder, steps = p.outputs / p.dataset / "notebooks" / f"seed{p.seed}", notebooks(p)
    rate = estimate.matrix_rate()
    left = expected(p.dataset, rate)
    print(f"{len(steps)} notebooks and a report; this machine multiplies matrices at {rate:.0f} GFLOP/s.")
    if len(left):
        print(f"That takes about {duration(left.sum())} here; what is on disk is not made again.", flush=True)
    rows = []

    def timed(step: str, work, *args, **values):
        to_go = f", about {duration(left.iloc[len(rows) :].sum())} to go" if len(left) else ""
        print(f"\n{len(rows) + 1} of {len(steps) + 1}: {step}{to_go}", flush=True)
        start = time.perf_counter()
        made = work(*args, **values)
        rows.append({"step": step, "seconds": round(time.perf_counter() - start, 1), "gflops": round(rate)})
        return made

    for step, (notebook, given) in steps.items():
        timed(step, execute, notebook, folder / f"{step}.ipynb", shown=sys.stdout, **given)
    page = timed("report", report.make, p.dataset, p.outputs)
    files.write_text(folder / WAITS, pd.DataFrame(rows).to_csv(index=False))
    return page


def result_table(p: params.Params) -> pd.DataFrame:
    """Clip and video top-1 of the compared methods' runs with these parameters, and the difference."""
    table = results.find(p.outputs, p.dataset).query("label_pct == @p.label_pct and seed == @p.seed")
    table = table.set_index("method").loc[list(COMPARED), ["clip_top1", "video_top1"]]
    table.loc["gain"] = table.loc[COMPARED[1]] - table.loc[COMPARED[0]]
    return table.rename(index={name: METHODS[name].title for name in COMPARED}).rename_axis(None).round(1)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videossl_lab.make_demo", description=__doc__)
    parser.add_argument("dataset", help="a file params/<dataset>.yaml")
    parser.add_argument("--label-pct", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    p = params.load(**vars(parser.parse_args(words)))
    start = time.perf_counter()
    try:
        page = run_all(p)
    except PapermillExecutionError as error:
        sys.exit(f"\n{error}")
    print(f"\n{p.dataset}, {p.label_pct:g} % labels, seed {p.seed}, top-1 in percent\n\n{result_table(p)}\n")
    print(f"Report: {page}, after {duration(time.perf_counter() - start)}")


if __name__ == "__main__":
    main()
