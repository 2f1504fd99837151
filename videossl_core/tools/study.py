"""A study of one data set from nothing to its report: what ``make demo`` calls.

``python -m videossl_core.tools.study demo --seed 0`` runs the notebooks in order, prints what came out, and
builds the report.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from papermill.exceptions import PapermillExecutionError

from videossl_core import params, runs
from videossl_core.methods import METHODS
from videossl_core.tools import report
from videossl_core.tools.cell import execute

COMPARED = ("supervised", "videossl")


def run_all(p: params.Params) -> list[Path]:
    """Prepare, train and evaluate the two compared methods, and make the figures of what came out."""
    folder = p.outputs / p.dataset / "notebooks" / f"seed{p.seed}"
    given = {"dataset": p.dataset, "label_pct": p.label_pct, "seed": p.seed}
    made = [execute("data_prep", folder / "1_data_prep.ipynb", **given)]
    for number, notebook in ((2, "train"), (3, "evaluate")):
        for method in COMPARED:
            made.append(
                execute(notebook, folder / f"{number}_{notebook}_{method}.ipynb", **given, method=method)
            )
    made.append(execute("qualitative", folder / "4_qualitative.ipynb", **given))
    figures = {"datasets": p.dataset, "label_pct": p.label_pct, "seed": p.seed}
    return [*made, execute("paper_figures", folder / "5_paper_figures.ipynb", **figures)]


def result_table(p: params.Params) -> pd.DataFrame:
    """Clip and video top-1 of the compared methods' runs with these parameters, and the difference."""
    found = runs.find(p.outputs, p.dataset)
    found = found[(found.label_pct == p.label_pct) & (found.seed == p.seed)].set_index("method")
    table = found.loc[list(COMPARED), ["clip_top1", "video_top1"]]
    table.loc["gain"] = table.loc[COMPARED[1]] - table.loc[COMPARED[0]]
    return table.rename(index={name: METHODS[name].title for name in COMPARED}).rename_axis(None).round(1)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m videossl_core.tools.study", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dataset", help="a file params/<dataset>.yaml")
    parser.add_argument("--label-pct", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    p = params.load(dataset=asked.dataset, label_pct=asked.label_pct, seed=asked.seed)
    try:
        run_all(p)
    except PapermillExecutionError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(1)
    site = report.build(p.outputs, p.dataset)
    print(f"\n{p.dataset}, {p.label_pct:g} % labels, seed {p.seed}, top-1 in percent\n\n{result_table(p)}\n")
    print(f"Report: {site.folder / report.home(p.dataset)}")


if __name__ == "__main__":
    main()
