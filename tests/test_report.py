"""The static site of finished runs: complete, self-contained, and made anew only where something changed."""

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import av
import nbformat
import numpy as np
import pandas as pd
import pytest

from videossl_core import params, runs, training
from videossl_core.tools import notebooks, parts, report, site

VOID = {"img", "meta", "link", "br", "hr", "input", "source", "col", "wbr"}


class Page(HTMLParser):
    """Elements of a page, and whether they are closed in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("p", "li"):  # may be left open
            while self.open[-1] in ("p", "li"):
                self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


def notebook(path: Path, *cells, **told) -> None:
    """An executed notebook with these cells: text, or a list of outputs."""
    new = nbformat.v4
    made = [
        new.new_markdown_cell(c) if isinstance(c, str) else new.new_code_cell("1 + 1", outputs=c)
        for c in cells
    ]
    book = new.new_notebook(cells=made, metadata={"papermill": {"parameters": told}})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


@pytest.fixture(scope="module")
def outputs(prepared, tmp_path_factory):
    """Finished runs of the tiny data set, two seeds and a variant among them, and executed notebooks."""
    from helpers import TINY

    outputs = tmp_path_factory.mktemp("finished")
    (outputs / "tiny").mkdir()
    shutil.copytree(prepared / "tiny/data", outputs / "tiny/data")
    for method, seed in (("supervised", 0), ("supervised", 1), ("videossl", 0)):
        training.train(params.load(**TINY, method=method, seed=seed, outputs=outputs))
    training.train(params.load(**TINY, variant="T=1", T=1, outputs=outputs))
    said = nbformat.v4.new_output("display_data", {"text/html": "<b>shown</b>"})
    widget = nbformat.v4.new_output(
        "display_data",
        {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "VBox(children"},
    )
    notebook(outputs / "tiny/grid/train-a b#1.ipynb", r"# Of <tiny>, $\lambda_u L_u$", [said, widget])
    notebook(outputs / "elsewhere.ipynb", "# By its parameters", [said], dataset="tiny")
    notebook(outputs / "other.ipynb", "# Of none", [said])
    notebook(outputs / "never_run.ipynb", "# Never run", [])
    (outputs / "broken.ipynb").write_text("{")
    return outputs


def pages(outputs) -> dict[str, Path]:
    folder = outputs / "report"
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.html"))}


def times(outputs) -> dict[str, int]:
    return {name: path.stat().st_mtime_ns for name, path in pages(outputs).items()}


def test_a_site_that_opens_from_the_disk(outputs):
    report.build(outputs)
    made = pages(outputs)
    assert set(made) == {
        "index.html",
        "notebooks/elsewhere.html",
        "notebooks/other.html",
        "notebooks/tiny/grid/train-a b#1.html",
        "runs/tiny/index.html",
        "runs/tiny/supervised-50-seed0.html",
        "runs/tiny/supervised-50-seed1.html",
        "runs/tiny/videossl-50-seed0.html",
        "runs/tiny/videossl@T=1-50-seed0.html",
    }
    reached = {"index.html"}
    for path in made.values():
        page = Page(path)
        assert page.open == []
        assert page.all("html")[0]["lang"] == "en"
        assert not page.all("script")
        headings = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
        assert headings[0] == 1
        assert all(b <= a + 1 for a, b in pairwise(headings))
        assert all(image["alt"] for image in page.all("img"))
        wanted = [
            a[key] for _, a in page.elements for key in ("src", "href", "poster", "srcset") if a.get(key)
        ]
        for address in wanted:
            parts_ = urlsplit(address)
            assert parts_.scheme in ("", "data"), address
            if not parts_.scheme:
                target = (path.parent / unquote(parts_.path)).resolve()
                assert target.is_file(), address
                reached.add(target.relative_to(outputs / "report").as_posix())
    assert set(made) <= reached  # every page can be found by links


def test_films_and_pictures(outputs):
    report.build(outputs)
    path = pages(outputs)["runs/tiny/videossl-50-seed0.html"]
    page = Page(path)
    wrong = pd.read_csv(outputs / "tiny/videossl/50/seed0/predictions_test.csv").query("not video_right")
    films = page.all("video")
    assert len(films) >= min(6, len(wrong))
    for film in films:
        assert "controls" in film
        assert "autoplay" not in film
        with av.open(str(path.parent / film["src"])) as container:
            assert len(list(container.decode(video=0))) == 32
    surest = wrong.sort_values("video_confidence", ascending=False).iloc[0]
    assert any(surest.video in film["aria-label"] for film in films)
    split = json.loads((outputs / "tiny/videossl/50/seed0/provenance.json").read_text())["split_sha256"]
    assert split in page.text
    assert "lambda_d" in page.text


def test_the_results_table_against_pandas(outputs):
    found = runs.find(outputs)
    table = parts.results(found, 50).set_index("method")
    two = found[found.method == "supervised"].video_top1.to_numpy()
    assert table.loc["Supervised", "seeds"] == 2
    assert table.loc["Supervised", "video_top1"] == f"{two.mean():.1f} ± {np.std(two, ddof=1):.1f}"
    assert list(table.index) == ["Supervised", "VideoSSL"]
    as_ucf = parts.results(found.assign(dataset="ucf101", label_pct=10.0), 10).set_index("method")
    assert as_ucf.loc["VideoSSL", "video_top1, paper"] == 42.0
    assert as_ucf.loc["S4L", "video_top1"] == "–"


def test_a_variant_has_its_page_and_no_place_in_the_tables(outputs):
    report.build(outputs)
    home = Page(pages(outputs)["runs/tiny/index.html"]).text
    assert "VideoSSL (T=1)" in home
    found = runs.find(outputs)
    value = found[found.method == "videossl"].video_top1.iloc[0]
    assert re.search(rf"VideoSSL\s*1\s*[\d.]+\s*{value:.1f}", home)  # one seed
    assert "T=1" in Page(pages(outputs)["runs/tiny/videossl@T=1-50-seed0.html"]).text


def test_notebooks_become_pages_without_code(outputs):
    report.build(outputs)
    made = pages(outputs)
    page = Page(made["notebooks/tiny/grid/train-a b#1.html"])
    assert page.all("math")
    assert "VBox" not in page.text
    assert "shown" in page.text
    assert all("open" not in details for details in page.all("details"))
    assert "Of <tiny>" in Page(made["runs/tiny/index.html"]).text
    assert "By its parameters" in Page(made["runs/tiny/index.html"]).text
    assert "Of none" in Page(made["index.html"]).text
    broken = notebooks._mathml(r"x_1_2", "inline")
    assert broken == "<code>x_1_2</code>"


def test_only_what_changed_is_made_anew(outputs):
    report.build(outputs)
    before = times(outputs)
    assert report.build(outputs).written == []
    assert times(outputs) == before
    notebook(outputs / "other.ipynb", "# Of none, again", [nbformat.v4.new_output("stream", text="now")])
    assert set(report.build(outputs).written) == {"notebooks/other.html", "index.html"}
    run = runs.Run(outputs / "tiny/supervised/50/seed1")
    facts = run.read_provenance()
    run.write_provenance(facts | {"device": "another"})
    assert set(report.build(outputs, "tiny").written) == {
        "runs/tiny/index.html", "runs/tiny/supervised-50-seed1.html", "index.html",
    }  # fmt: skip
    run.write_provenance(facts)


def test_what_is_gone_leaves_the_site(outputs, tmp_path):
    copy = tmp_path / "outputs"
    report.build(outputs)
    shutil.copytree(outputs, copy)
    assert report.build(copy).written == []  # the site moves with the runs
    mine = copy / "report/runs/tiny/mine.html"  # not made by the report
    mine.write_text("kept")
    shutil.rmtree(copy / "tiny/supervised/50/seed1")
    (copy / "other.ipynb").unlink()
    report.build(copy, "tiny")
    assert "runs/tiny/supervised-50-seed1.html" not in pages(copy)
    assert not (copy / "report/runs/tiny/supervised-50-seed1").exists()
    assert "notebooks/other.html" not in pages(copy)
    assert mine.read_text() == "kept"
    shutil.rmtree(copy / "tiny/data")  # frames take the most room
    report.build(copy)
    page = Page(copy / "report/runs/tiny/videossl-50-seed0.html")
    assert "not here any more" in page.text
    assert not page.all("video")


def test_a_report_of_nothing_says_so(outputs, tmp_path):
    with pytest.raises(runs.RunError, match="make demo makes two"):
        report.build(tmp_path)
    with pytest.raises(runs.RunError, match=r"no finished run of tinny below .*; there are some of tiny"):
        report.build(outputs, "tinny")


def test_a_damaged_memory_is_forgotten(tmp_path):
    (tmp_path / "site.json").write_text("not json")
    assert site.Site(tmp_path).pages == {}
