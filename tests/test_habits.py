"""What the repository promises of itself: clean notebooks, one-way imports, a true page for contributors, a
lock file that fits, a citation."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videossl_core import runs
from videossl_core.paths import ROOT

BIN = Path(sys.executable).parent
PACKAGES = ("videossl_core", "videossl_lab", "benchmarks")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A small copy of the project. What is planted there fails before the type checker; that the real project
    passes is for ``make test`` to see, which begins with it."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("notebooks", *PACKAGES):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def failing(folder: Path, *command) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("what", ["output", "papermill", "format", "unused import"])
def test_lint_refuses_notebook(copy, what):
    path = copy / "notebooks/evaluate.ipynb"
    notebook = nbformat.read(path, 4)
    cell = next(c for c in notebook.cells if c.cell_type == "code")
    if what == "output":
        cell.outputs = [nbformat.v4.new_output("stream", text="printed")]
    elif what == "papermill":
        notebook.metadata["papermill"] = {"parameters": {"seed": 3}}
    else:
        cell.source += {"format": "\nx = { 'a':1 }", "unused import": "\nimport os"}[what]
    nbformat.write(notebook, path)
    assert "evaluate.ipynb" in failing(copy, "make", "--old-file=.venv/ready", "lint", f"BIN={BIN}")


PLANTED = {
    "lab": ("videossl_core/losses", "from videossl_lab import plots", "losses -> videossl_lab.plots"),
    "matplotlib": ("videossl_core/losses", "import matplotlib.pyplot", "losses -> matplotlib"),
    "in a function": ("videossl_core/losses", "def f():\n    import IPython", "losses -> IPython"),
    "circle": ("videossl_core/losses", "from . import methods", "losses -> videossl_core.methods"),
    "circle in data": ("videossl_core/data/files", "from . import pool", "files -> videossl_core.data.pool"),
    "benchmarks": ("videossl_lab/films", "from benchmarks import bench", "films -> benchmarks.bench"),
    "new module": ("videossl_core/fresh", "", "- videossl_core.fresh"),
}


@pytest.mark.parametrize(("module", "line", "message"), PLANTED.values(), ids=PLANTED.keys())
def test_imports_go_one_way(copy, module, line, message):
    """Inside functions too; a new module needs its place in the order."""
    with open(copy / f"{module}.py", "a") as f:
        f.write(f"\n{line}\n")
    assert message in failing(copy, BIN / "lint-imports")


@pytest.mark.slow
def test_engine_imports_what_it_needs():
    """Torch and pandas, in about their time: torchvision, which most runs never use, would double it."""
    heavy = {"torchvision", "torch._dynamo", "scipy", "seaborn", "matplotlib", "ipywidgets", "papermill"}
    code = f"import sys, videossl_core.training; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_contributing_is_true():
    """Its modules, tables, tests and make targets exist."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"`(\w+)\.([A-Z]{4,})`", text)
    assert ("methods", "METHODS") in rows
    # by name; of two with the same name, that of the core
    paths = {path.stem: path for name in reversed(PACKAGES) for path in (ROOT / name).rglob("[a-z]*.py")}
    for module, table in rows:
        dotted = ".".join(paths[module].relative_to(ROOT).with_suffix("").parts)
        assert isinstance(getattr(importlib.import_module(dotted), table), dict | tuple)
    for name in re.findall(r"`(\w+)\.py`", text):
        assert (ROOT / "tests" / f"{name}.py").exists() if name.startswith("test_") else name in paths, name
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", text):
        assert f"\n{target}:" in makefile, target


def test_lock_file_fits():
    """Every requirement of pyproject, those of the extras too, has a version that its range allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    lock = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert list(lock) == sorted(lock)
    assert not re.search(r"[@/+]|videossl|https?:", "".join([*lock, *lock.values()]))
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in map(Requirement, group):
            if requirement.name != project["name"]:
                assert requirement.specifier.contains(lock[requirement.name.lower()]), requirement


def test_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the format requires
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    paper = cited["references"][0]
    assert [author["family-names"] for author in paper["authors"]] == ["Jing", "Parag", "Wu", "Tian", "Wang"]
    assert paper["url"].endswith("2003.00197")


@pytest.mark.slow
def test_tracking_example(project):
    """The lines of docs/tracking.md, as they stand there: TensorBoard gets what the run's own tables hold."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/tracking.md").read_text(), re.S)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    events = EventAccumulator(str(project / "outputs/tensorboard/demo/videossl/10/seed0"))
    events.Reload()
    run = runs.Run(project / "outputs/demo/videossl/10/seed0")
    log, metrics = pd.read_csv(run.log), pd.read_csv(run.metrics)
    metrics = metrics[metrics.subset == "test"]
    for tag, table in (("train/loss", log), ("train/loss_distil", log), ("test/video_top1", metrics)):
        points = events.Scalars(tag)
        assert [point.step for point in points] == list(table.step)
        assert [point.value for point in points] == pytest.approx(list(table[tag.split("/")[1]]), rel=1e-5)
