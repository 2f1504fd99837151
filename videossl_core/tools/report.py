"""Finished runs and executed notebooks as a static site that opens from the disk.

``python -m videossl_core.tools.report`` is what ``make report`` calls. Everything is read from the runs'
files; no video is decoded and no network asked.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from videossl_core import params, runs
from videossl_core.data import files
from videossl_core.tools import notebooks, parts
from videossl_core.tools.site import Media, Site, link, table
from videossl_core.views import figures


def build(outputs: Path, dataset: str | None = None) -> Site:
    """Bring ``outputs/report`` up to date for one data set or for all that have finished runs.

    Raises:
        runs.RunError: there is no finished run.
    """
    found = runs.find(outputs, variants=True)
    names = sorted(found.dataset.unique())
    if not names or (dataset and dataset not in names):
        there = f"; there are some of {', '.join(names)}" if names else "; make demo makes two"
        raise runs.RunError(f"no finished run of {dataset or 'any data set'} below {outputs}{there}")
    figures.style()
    folder = outputs / "report"
    asked = [dataset] if dataset else names
    shown = [n for n in names if n in asked or (folder / home(n)).exists()]
    with files.locked(folder):
        site = Site(folder)
        try:
            pages = [_notebook(site, outputs, path, shown) for path in notebooks.below(outputs)]
            pages = [page for page in pages if page]
            for name in asked:
                mine = found[found.dataset == name].reset_index(drop=True)
                for row in mine.itertuples():
                    _run_page(site, mine, row)
                _dataset_page(site, mine, [p for p in pages if p["dataset"] == name])
            _index_page(site, found, shown, [p for p in pages if p["dataset"] not in shown])
        finally:
            site.close([f"runs/{name}/" for name in asked] + ["notebooks/"] if dataset else [""])
    return site


def home(dataset: str) -> str:
    return f"runs/{dataset}/index.html"


def _name(row) -> str:
    method = f"{row.method}@{row.variant}" if row.variant else row.method
    return f"{method}-{row.label_pct:g}-seed{row.seed}"


def _title(row) -> str:
    return parts.title(row.method) + (f" ({row.variant})" if row.variant else "")


def _notebook(site: Site, outputs: Path, path: Path, shown: list[str]) -> dict | None:
    inside = path.relative_to(outputs)

    def fill(_: Media) -> dict | None:
        notebook = notebooks.read(path)
        if notebook is None:
            return None
        told = str(notebooks.told(notebook).get("dataset", ""))
        index = {"title": notebooks.title(notebook, path.stem), "file": inside.as_posix()}
        index["dataset"] = inside.parts[0] if inside.parts[0] in shown else told
        there = "../" * len(inside.parts) + home(index["dataset"])
        up = [(there, index["dataset"])] if index["dataset"] in shown else []
        return {**index, "body": Markup(notebooks.to_html(notebook)), "up": up, "index": index}

    page = f"notebooks/{inside.with_suffix('.html').as_posix()}"
    return site.page(page, "notebook.html.j2", [path], fill, shown)


def _index_page(site: Site, found: pd.DataFrame, shown: list[str], others: list[dict]) -> None:
    def fill(_: Media) -> dict:
        rows = []
        for name, mine in found.groupby("dataset"):
            best = mine.groupby(["method", "variant", "label_pct"]).video_top1.mean().sort_values()
            method, variant, pct = best.index[-1]
            rows.append({
                "data set": link(home(name), name) if name in shown else name,
                "finished runs": len(mine),
                "label fractions, %": ", ".join(f"{f:g}" for f in sorted(mine.label_pct.unique())),
                "best video_top1, %": float(best.iloc[-1]),
                "of": f"{parts.title(method)} {f'({variant}) ' if variant else ''}at {pct:g} %",
            })  # fmt: skip
        caption = "Data sets with finished runs; the best is a mean over seeds"
        return {"title": "Results", "datasets": table(pd.DataFrame(rows), caption), "notebooks": others}

    inputs = [runs.Run(Path(folder)).provenance for folder in found.folder]
    site.page("index.html", "index.html.j2", inputs, fill, [shown, others])


# ---- The page of a data set


def _dataset_page(site: Site, mine: pd.DataFrame, pages: list[dict]) -> None:
    name = mine.dataset.iloc[0]
    plain = mine[
        mine.variant == ""
    ]  # a variant is another setting: it has its page, and no place in the tables
    fractions = sorted(plain.label_pct.unique())

    def fill(media: Media) -> dict:
        split = runs.Run(Path(mine.folder.iloc[0])).read_split()
        tests = int((split.role == "test").sum())
        titled = [link(f"{_name(row)}.html", _title(row)) for row in mine.itertuples()]
        every = mine.assign(run=titled, split_sha256=mine.split_sha256.str[:12], commit=mine.commit.str[:10])
        every = every.drop(columns=["dataset", "method", "variant", "folder"])
        every = every[["run", *every.columns.drop("run")]]
        scores = [parts.results(plain, pct) for pct in fractions]
        spread = "; ± is the standard deviation between seeds" if plain.seed.nunique() > 1 else ""
        return {
            "title": f"Results on {name}",
            "up": [],
            "classes": split.class_name[split.role == "test"].nunique(),
            "training": len(split) - tests,
            "tests": tests,
            "runs": len(mine),
            "results": [
                table(score, f"{pct:g} % of the labels, top-1 in %{spread}")
                for pct, score in zip(fractions, scores, strict=True)
            ],
            "paper": any("video_top1, paper" in score for score in scores),
            "figure1": parts.figure1(media, plain) if len(fractions) > 1 else None,
            "fractions": [_fraction(media, plain, pct) for pct in fractions],
            "every": table(every, "Finished runs, top-1 in %; the hash names the label split"),
            "notebooks": pages,
        }

    inputs = [path for folder in mine.folder for path in _read_by_pages(runs.Run(Path(folder)))]
    site.page(home(name), "dataset.html.j2", inputs, fill, [len(mine), pages])


def _read_by_pages(run: runs.Run) -> list[Path]:
    return [path for path in run.files if path != run.checkpoint]


def _fraction(media: Media, mine: pd.DataFrame, pct: float) -> dict:
    """Pictures of one label fraction: of the first seed that has the most methods, the paper's own first."""
    at = mine[mine.label_pct == pct]
    seed = at.groupby("seed").size().sort_values(ascending=False, kind="stable").index[0]
    at = at[at.seed == seed].set_index("method")
    ours = "videossl" if "videossl" in at.index else at.video_top1.idxmax()
    chosen = runs.Run(Path(at.folder[ours]))
    baseline = "supervised" if "supervised" in at.index and ours != "supervised" else None
    mark = f"{pct:g}"
    told = {"heading": f"{pct:g} % of the labels, seed {seed}: {parts.title(ours)}"}
    told["curves"] = parts.curves(media, chosen, f"curves-{mark}", parts.title(ours))
    told["gain"] = (
        parts.gain(media, chosen, runs.Run(Path(at.folder[baseline])), f"gain-{mark}") if baseline else None
    )
    told["matrices"] = [
        parts.matrix(media, runs.Run(Path(at.folder[m])), f"confusion-{m}-{mark}", parts.title(m))
        for m in (baseline, ours) if m
    ]  # fmt: skip
    told["pairs"] = parts.mistakes(runs.read_table(chosen.predictions_test), parts.title(ours))
    return told


# ---- The page of a run


def _run_page(site: Site, mine: pd.DataFrame, row) -> None:
    run = runs.Run(Path(row.folder))
    alike = mine[(mine.split_sha256 == row.split_sha256) & (mine.seed == row.seed)]
    alike = alike[alike.variant.isin(["", row.variant])].sort_values(
        "variant"
    )  # its own variant counts, if any
    others = {r.method: runs.Run(Path(r.folder)) for r in alike.itertuples()}
    baseline = others.get("supervised") if row.method != "supervised" else None

    def fill(media: Media) -> dict:
        p, facts, split = run.read_params(), run.read_provenance(), run.read_split()
        roles = split.role.value_counts()
        per_class = (
            runs.read_table(run.per_class).drop(columns="label").rename(columns={"class_name": "class"})
        )
        if baseline:
            before = runs.read_table(baseline.per_class).set_index("class_name").video_top1
            per_class["video_top1 against supervised"] = [
                f"{value:+.1f}"
                for value in per_class.video_top1 - before.reindex(per_class["class"]).to_numpy()
            ]
        metrics = pd.read_csv(run.metrics)
        name = f"{_title(row)}, {row.label_pct:g} % of the labels, seed {row.seed}"
        return {
            "title": f"{name}, on {row.dataset}",
            "up": [("index.html", row.dataset)],
            "clip": f"{row.clip_top1:.1f}",
            "video": f"{row.video_top1:.1f}",
            "tests": int(roles.get("test", 0)),
            "steps": row.steps,
            "minutes": f"{row.minutes:g}",
            "labelled": int(roles.get("labelled", 0)),
            "unlabelled": int(roles.get("unlabelled", 0)),
            "curves": parts.curves(media, run, "curves", parts.title(row.method)),
            "metrics": table(metrics[runs.METRICS], "Evaluations, top-1 in %"),
            "gain": parts.gain(media, run, baseline, "gain") if baseline else None,
            "per_class": table(per_class, "Test videos of each class, top-1 in %"),
            "matrix": parts.matrix(media, run, "confusion", parts.title(row.method)),
            "pairs": parts.mistakes(runs.read_table(run.predictions_test), parts.title(row.method)),
            **parts.films(media, run, others),
            "provenance": table(parts.flat(facts), "Provenance of the run"),
            "parameters": table(parts.flat(p), "Parameters of the run"),
        }  # fmt: skip

    inputs = [path for other in others.values() for path in _read_by_pages(other)]
    page = f"runs/{row.dataset}/{_name(row)}.html"
    site.page(page, "run.html.j2", [*inputs, parts.store_of(run).table_path], fill, list(others))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m videossl_core.tools.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dataset", nargs="?", help="only this data set; otherwise all with finished runs")
    parser.add_argument("--outputs", type=Path, default=params.ROOT / "outputs", help="where the runs are")
    asked = parser.parse_args(words)
    try:
        site = build(asked.outputs.resolve(), asked.dataset or None)
    except runs.RunError as error:
        sys.exit(str(error))
    print(f"{len(site.written)} pages made, {len(site.pages) - len(site.written)} as before")
    print(f"Report: {site.folder / 'index.html'}")


if __name__ == "__main__":
    main()
