"""What ``make demo`` runs: a study of one data set, notebook by notebook, from nothing to its report."""

import argparse
import sys

import pandas as pd
from papermill.exceptions import PapermillExecutionError

from videossl_core import params
from videossl_core.methods import METHODS
from videossl_lab import report, results
from videossl_lab.claims import COMPARED
from videossl_lab.execute import execute


def run_all(p: params.Params) -> None:
    """Prepare, train and evaluate the two compared methods, and make the figures of their runs."""
    folder = p.outputs / p.dataset / "notebooks" / f"seed{p.seed}"
    which = {"label_pct": p.label_pct, "seed": p.seed}
    execute("data_prep", folder / "1_data_prep.ipynb", dataset=p.dataset, **which)
    for number, notebook in ((2, "train"), (3, "evaluate")):
        for method in COMPARED:
            target = folder / f"{number}_{notebook}_{method}.ipynb"
            execute(notebook, target, dataset=p.dataset, method=method, **which)
    execute("qualitative", folder / "4_qualitative.ipynb", dataset=p.dataset, **which)
    execute("paper_figures", folder / "5_paper_figures.ipynb", datasets=p.dataset, **which)


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
    try:
        run_all(p)
        page = report.make(p.dataset, p.outputs)
    except PapermillExecutionError as error:
        sys.exit(f"\n{error}")
    print(f"\n{p.dataset}, {p.label_pct:g} % labels, seed {p.seed}, top-1 in percent\n\n{result_table(p)}\n")
    print(f"Report: {page}")


if __name__ == "__main__":
    main()
