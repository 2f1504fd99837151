"""A page for each data set with finished runs: ``notebooks/report.ipynb`` executed, without its code."""

import argparse
import sys
from pathlib import Path

from nbconvert import HTMLExporter

from videossl_core.data import files
from videossl_core.paths import ROOT
from videossl_lab import results
from videossl_lab.execute import execute

# nbconvert's own pages load scripts from other machines; this one needs no network.
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Results on {dataset}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: auto; padding: 1rem }}
.output {{ overflow-x: auto; margin: 1rem 0 }}
img {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse; white-space: nowrap }}
th, td {{ padding: 0.2rem 0.7rem; border-bottom: 1px solid #ccc; text-align: right }}
.anchor-link {{ display: none }}
</style>
<body>{body}</body>
</html>
"""


def make(dataset: str, outputs: Path) -> Path:
    """``<outputs>/report/<dataset>.html``, with its pictures and films inside.

    Raises:
        PapermillExecutionError: a cell failed; the executed notebook beside the page shows which.
    """
    notebook = outputs / "report" / f"{dataset}.ipynb"
    execute("report", notebook, dataset=dataset, outputs=str(outputs))
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    body, _ = exporter.from_filename(str(notebook))
    page = notebook.with_suffix(".html")
    files.write_text(page, PAGE.format(dataset=dataset, body=body))
    return page


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videossl_lab.report", description=__doc__)
    parser.add_argument("dataset", nargs="?", help="only this one")
    only, outputs = parser.parse_args(words).dataset, ROOT / "outputs"
    datasets = results.find(outputs, only).dataset.unique()
    if not len(datasets):
        sys.exit(f"no finished run in {outputs / (only or '')}: make demo makes two")
    for dataset in datasets:
        print(f"Report: {make(dataset, outputs)}")


if __name__ == "__main__":
    main()
