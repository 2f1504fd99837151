"""Run the notebooks for one data set and turn what they show into a page that opens from the disk.

``python -m videossl_core.report demo`` is what ``make demo`` calls.
"""

import argparse
import base64
import sys
import time
from html import escape
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from videossl_core import files, params, runs
from videossl_core.methods import METHODS
from videossl_core.params import ROOT

COMPARED = ("supervised", "videossl")

_PAGE = """<!doctype html>
<html lang="en"><head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
h1, h2 {{ line-height: 1.2; margin-top: 2em }} h1 {{ margin-top: 0 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100% }} figure {{ margin: 1rem 0 }} figcaption {{ color: #666; font-size: 90% }}
a {{ color: #0072b2 }}
.pair {{ display: flex; flex-wrap: wrap; gap: 1rem }} .pair figure {{ flex: 1 1 24rem }}
</style></head><body>
{body}
</body></html>
"""


def execute(notebook: str, target: Path, **given) -> Path:
    """Run ``notebooks/<notebook>.ipynb`` by papermill and say how long it took.

    Raises:
        PapermillExecutionError: a cell failed; the executed notebook shows which.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    print(f"{target.stem:<24}", end="", flush=True)
    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    quiet = ["--log-level=40"]  # the kernel's errors only: it warns of each local connection
    papermill.execute_notebook(source, target, given, progress_bar=False, extra_arguments=quiet)
    print(f"{time.perf_counter() - start:5.0f} s   {target}", flush=True)
    return target


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


def _image(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    alt = escape(caption, quote=True)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"><figcaption>{alt}</figcaption></figure>'
    )


def write_page(p: params.Params, notebooks: list[Path]) -> Path:
    """One page with the outcome and the pictures, and a page for each executed notebook without its code."""
    folder = p.outputs / p.dataset / "report" / f"seed{p.seed}"
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    links = []
    for path in notebooks:
        html, _ = exporter.from_notebook_node(nbformat.read(path, 4), {"metadata": {"name": path.stem}})
        files.write_text(folder / f"{path.stem}.html", html)
        links.append(f'<li><a href="{path.stem}.html">{escape(path.stem[2:].replace("_", " "))}</a></li>')
    table = result_table(p)
    first, last = (runs.Run(p.model_copy(update={"method": m}).run_dir) for m in COMPARED)
    tests = len(pd.read_csv(last.predictions_test))
    curves = "Loss parts, learning rate, confident pseudo-labels, and accuracy over the iterations"
    answers = "Middle frame, true class, and what each model said with which confidence"
    matrix = "rows are the true class, columns what the network said of the whole video"
    body = f"""
<h1>VideoSSL on {escape(p.dataset)}: {p.label_pct:g} % of the labels</h1>
<p>Two networks of the same shape saw the same number of iterations with the same schedule.
<b>Supervised</b> learnt from the labelled videos alone. <b>VideoSSL</b> also learnt from the unlabelled ones:
from what an ImageNet classifier says of their frames, and from its own confident predictions. Both were
tested on {tests} videos that neither had seen. Top-1 in percent, seed {p.seed}:</p>
{table.to_html(border=0)}
<p><b>Clip</b> top-1 looks at the clip in the middle of each video, <b>video</b> top-1 at the average over all
of its clips. One run is one draw of labels and first weights: expect a few points between seeds.</p>
<h2>How VideoSSL trained</h2>
{_image(last.folder / "curves.png", curves)}
<h2>What it gets right that the supervised network does not</h2>
{_image(last.folder / "figure5.png", answers)}
<h2>What is confused with what</h2>
<div class="pair">{_image(first.folder / "confusion.png", f"Supervised: {matrix}")}
{_image(last.folder / "confusion.png", f"VideoSSL: {matrix}")}</div>
<h2>All notebooks, as they ran</h2>
<ul>{"".join(links)}</ul>
<p>With their code they are in <code>{escape(str(notebooks[0].parent))}</code>.</p>
"""
    files.write_text(folder / "index.html", _PAGE.format(title=f"VideoSSL on {escape(p.dataset)}", body=body))
    return folder / "index.html"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m videossl_core.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dataset", help="a file params/<dataset>.yaml")
    parser.add_argument("--label-pct", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    p = params.load(dataset=asked.dataset, label_pct=asked.label_pct, seed=asked.seed)
    try:
        notebooks = run_all(p)
    except PapermillExecutionError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(1)
    page = write_page(p, notebooks)
    print(f"\n{p.dataset}, {p.label_pct:g} % labels, seed {p.seed}, top-1 in percent\n\n{result_table(p)}\n")
    print(f"Report: {page}")


if __name__ == "__main__":
    main()
