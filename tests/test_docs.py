"""README and docs: tables as in the published CSVs, links that lead somewhere, short pages."""

import re

import nbformat
import pandas as pd
import pytest
import yaml

from benchmarks import waits
from videossl_core import params
from videossl_core.paths import ROOT
from videossl_lab import execute, make_demo, notebook, page, results
from videossl_lab.live import duration

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
FILES = sorted([*ROOT.glob("params/*.yaml"), *ROOT.glob("params/grids/*.yaml")])


@pytest.mark.slow
def test_results_page_has_the_published_numbers():
    """``paper_figures.ipynb -p datasets ucf101_6 -p published true -p page docs/results.md`` writes it."""
    text = (ROOT / "docs/results.md").read_text()
    assert page.fill(text, page.tables(results.published("ucf101_6"))) == text


def test_readme_table_has_the_published_numbers():
    """Its cells are some of those of the results page."""
    cells = page.video_top1(results.published("ucf101_6"))
    demo = page.video_top1(results.published("demo"))
    readme = (ROOT / "README.md").read_text()
    for title in ("Supervised", "SD", "VideoSSL", "Frozen teacher", "Frozen teacher, motion"):
        row = next(line for line in readme.splitlines() if re.match(rf"\| {title}( \||:)", line))
        published = [demo.loc["10", title], *(cells.loc[pct, title] for pct in ("1", "10", "50"))]
        assert [value.rsplit(" (", 1)[0] for value in published] == row.strip("| ").split(" | ")[1:]


def test_page_without_a_mark_is_refused():
    with pytest.raises(ValueError, match="no <!-- claims -->"):
        page.fill("<!-- claims -->\nno end\n", {"claims": "| a |"})


def test_readme_loop_is_the_tours():
    """Which test_loop.py proves to be the engine's, bit for bit."""
    loop = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    cells = nbformat.read(ROOT / "notebooks/tour.ipynb", 4).cells
    assert any(loop.strip() in cell.source for cell in cells if "loop" in cell.metadata.get("tags", []))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    for alt in re.findall(r"!\[([^\]]*)\]", text):
        assert len(alt.split()) >= 5, alt


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_parameter_file_states_its_claim(path):
    head = re.match(r"(#.*\n)+", path.read_text())[0]
    for word in ("Claim: ", "n: ", "Command: ", "Cost: ", "Measured: "):
        assert f"\n# {word}" in head, word
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_waits_are_the_measured_ones():
    """And a demo's estimate rests on times of today's steps."""
    measured = pd.read_csv(waits.PUBLISHED)
    text = (ROOT / "docs/speed.md").read_text()
    assert page.fill(text, {"waits": waits.table(measured)}) == text
    assert set(measured.what) <= set(waits.WAITED)
    seconds = measured.set_index("what").seconds["the demo, from nothing"]
    assert f"it takes {duration(seconds)} on two cores" in (ROOT / "README.md").read_text()
    steps = [*make_demo.notebooks(params.load(dataset="demo")), "report"]
    assert list(make_demo.expected("demo", 100).index) == steps


def commands() -> list[tuple[str, str]]:
    """Every papermill command of README, docs and parameter files, as (notebook, what is given)."""
    found = set()
    for path in [*PAGES, *FILES]:
        text = path.read_text().replace("\\\n", " ")
        found |= set(re.findall(r"papermill notebooks/(\w+)\.ipynb([^`#|;\n]*)", text))
    return sorted(found)


@pytest.mark.parametrize(("name", "given"), commands())
def test_papermill_command_is_accepted(name, given):
    """Its notebook knows each parameter and allows its value; that the notebooks run is tested elsewhere."""
    words = re.sub(r"<[^>]*>", "/somewhere", given)
    source = (ROOT / f"notebooks/{name}.ipynb").read_text()
    model = re.search(r"= (?:params\.of_run\()?notebook\.parameters\((?:\w+\.)?(\w*)\)", source)[1]
    kind = getattr(notebook, model, None) or getattr(params, model or "Params")
    params.load(kind, **execute.parse(words[words.find("-p ") :] if "-p " in words else ""))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_make_command_exists(path):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    code = re.findall(r"`[^`]*`|^(?:\w+=\S* )*make .*$", path.read_text(), re.M)
    used = {target for text in code for target in re.findall(r"\bmake ([a-z-]+)", text)}
    assert used <= set(targets)
