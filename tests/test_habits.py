"""What the repository promises of itself: clean notebooks, a true page for contributors, a citation."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from videossl_core.params import ROOT

BIN = Path(sys.executable).parent


@pytest.fixture
def lint(tmp_path):
    """Run ``make lint`` in a small copy of the project."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("notebooks", "videossl_core"):  # the latter so that its imports count as the project's own
        shutil.copytree(ROOT / name, tmp_path / name)

    def run():
        command = ["make", "--old-file=.venv/ready", "lint", f"BIN={BIN}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("what", ["output", "papermill", "format", "unused import"])
def test_lint_refuses_what_does_not_belong_in_a_notebook(lint, tmp_path, what):
    done = lint()
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "notebooks/evaluate.ipynb"
    notebook = nbformat.read(path, 4)
    cell = next(c for c in notebook.cells if c.cell_type == "code")
    if what == "output":
        cell.outputs = [nbformat.v4.new_output("stream", text="said")]
    elif what == "papermill":
        notebook.metadata["papermill"] = {"parameters": {"seed": 3}}
    else:
        cell.source += {"format": "\nx = { 'a':1 }", "unused import": "\nimport os"}[what]
    nbformat.write(notebook, path)
    done = lint()
    assert done.returncode != 0
    assert "evaluate.ipynb" in done.stdout + done.stderr


def test_contributing_names_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"`(\w+)\.([A-Z]{4,})`", text)
    assert ("methods", "METHODS") in rows
    there = modules()
    for module, table in rows:
        dotted = ".".join(there[module].relative_to(ROOT).with_suffix("").parts)
        assert isinstance(getattr(importlib.import_module(dotted), table), dict | tuple)
    for name in re.findall(r"`(\w+)\.py`", text):
        assert (ROOT / "tests" / f"{name}.py").exists() if name.startswith("test_") else name in there, name
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", text):
        assert f"\n{target}:" in makefile, target


def test_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the format requires
    assert cited["version"] == project["version"]
    assert cited["license"] == project["license"]
    paper = cited["references"][0]
    assert [author["family-names"] for author in paper["authors"]] == ["Jing", "Parag", "Wu", "Tian", "Wang"]
    assert paper["url"].endswith("2003.00197")


def modules() -> dict[str, Path]:
    """By name, which is that of one module only, in whatever folder it is."""
    found = list((ROOT / "videossl_core").rglob("[a-z]*.py"))
    assert len({path.stem for path in found}) == len(found)
    return {path.stem: path for path in found}


def imported(path: Path) -> set[str]:
    """The modules of the project that a file imports when it is loaded, for type checkers left out."""
    loaded = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ImportFrom) and n.module]
    ours = [n for n in loaded if n.module.split(".")[0] == "videossl_core"]
    return {part for n in ours for part in [n.module.split(".")[-1], *(a.name for a in n.names)]}


def test_every_module_imports_only_from_those_named_before_it():
    text = (ROOT / "README.md").read_text().split("## How it is built")[1].split("One idea is one row")[0]
    order, there, folder = [], modules(), None
    for first, names in re.findall(r"^\|([^|]*)\|.*\|(.*)\|$", text, re.M)[2:]:
        folder = first.strip(" `") or folder
        for name in re.findall(r"`(\w+)`", names):
            assert there[name].parent == ROOT / folder, name
            order.append(name)
    assert sorted(order) == sorted(there)
    for i, name in enumerate(order):
        assert imported(there[name]) & there.keys() <= set(order[:i]), name
