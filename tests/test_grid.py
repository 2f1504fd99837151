"""A tiny grid through the real engine: two methods, two fractions, two seeds, and one cell that fails."""

import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from videossl_core import params, runs
from videossl_core.tools import cell, grid

WORDS = ["dataset=tiny", "methods=supervised,sd", "fractions=50,30", "seeds=0,1"]


def snakemake(project, *words):
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "2",
        "--resources",
        "gpu=2",
        "--keep-going",
        *words,
    ]
    command += ["--nolock", "--config", *WORDS]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=900, env=os.environ)
    return done.returncode, done.stdout + done.stderr


def test_a_grid_with_a_failing_cell(project):
    outputs = project / "outputs"
    code, said = snakemake(project, "--dry-run")
    assert code == 0, said
    assert "8 cells of tiny: about" in said
    assert re.search(r"^train +8$", said, re.M)
    assert not (outputs / "tiny/grid").exists()

    blocked = runs.Run(outputs / "tiny/sd/30/seed1")  # a run with other parameters lies in its place
    blocked.folder.mkdir(parents=True)
    blocked.params.write_text('{"lr": 0.5}')
    blocked.split.write_text("video,class_name,label,role\n")
    blocked.write_provenance({})
    code, said = snakemake(project)
    assert code != 0
    assert "These cells failed" in said
    listed = re.findall(r"^  (train|evaluate) (\S+) +(\S+)$", said, re.M)
    notebook = outputs / "tiny/grid/train-sd-30-seed1.ipynb"
    assert listed == [("train", "sd-30-seed1", str(notebook))]
    assert "RunError" in notebook.read_text()
    finished = runs.find(outputs, "tiny")
    finished = finished[finished.label_pct.isin([50, 30]) & finished.method.isin(["supervised", "sd"])]
    cells = set(zip(finished.method, finished.label_pct, finished.seed, strict=True))
    assert len(cells & {(m, f, s) for m in ("supervised", "sd") for f in (50, 30) for s in (0, 1)}) == 7
    assert (outputs / "tiny/grid/paper_figures.ipynb").exists()  # of what there is

    times = {path: path.stat().st_mtime_ns for path in outputs.glob("tiny/*/*/seed*/checkpoint.pt")}
    shutil.rmtree(blocked.folder)
    code, said = snakemake(project)
    assert code == 0, said
    assert re.search(r"^train +1$", said, re.M)
    assert blocked.finished
    assert all(path.stat().st_mtime_ns == t for path, t in times.items())
    assert len(pd.read_csv(outputs / "tiny/results.csv")) >= 8
    code, said = snakemake(project)
    assert code == 0
    assert "Nothing to be done" in said


def test_the_papers_grid():
    asked = grid.Grid.of({"dataset": "ucf101"})
    assert {c.label_pct for c in asked.cells.values()} == {5, 10, 20, 50}
    assert len(asked.cells) == 4 * 7 * 3
    assert {c.label_pct for c in grid.Grid.of({"dataset": "hmdb51"}).cells.values()} == {40, 50, 60}
    assert {c.label_pct for c in grid.Grid.of({"dataset": "demo"}).cells.values()} == {10}
    empty = grid.Grid.of(
        {"dataset": "demo", "methods": None, "seeds": "", "given": None}
    )  # as make gives them
    assert empty.parameters(method="sd").method == "sd"
    assert len(empty.cells) == 7 * 3
    with pytest.raises(params.ParameterError, match="methods: 'sdd' is not one of supervised"):
        grid.Grid.of({"methods": "sdd"})


def test_each_cell_takes_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(cell.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    taken = []
    with cell.one_gpu(tmp_path):
        taken.append(os.environ.pop("CUDA_VISIBLE_DEVICES"))  # the next cell is another process
        with cell.one_gpu(tmp_path):
            taken.append(os.environ.pop("CUDA_VISIBLE_DEVICES"))
            with (
                pytest.raises(RuntimeError, match="all 2 GPUs of this machine are taken"),
                cell.one_gpu(tmp_path),
            ):
                pass
    assert taken == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")  # a scheduler has chosen
    with cell.one_gpu(tmp_path):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_declared_grid():
    declared = {"grid": "ucf101_6", "dataset": "demo"}  # make always names a data set
    every = grid.Grid.of(declared)
    assert every.dataset == "ucf101_6"
    papers = {"supervised", "pseudo_label", "mean_teacher", "sd", "mt_sd", "s4l", "videossl"}
    seeds = {(c.method, c.seed) for c in every.cells.values() if c.label_pct == 10 and not c.given}
    assert seeds >= {(m, s) for m in papers for s in (0, 1, 2)}
    assert {c.label_pct for c in every.cells.values() if c.method == "s4l"} >= {5, 10, 20, 50}
    changed = every.cells["videossl@T1-10-seed1"]
    assert cell.parse(changed.words) == {
        "dataset": "ucf101_6", "method": "videossl", "label_pct": 10, "seed": 1, "variant": "T1", "T": 1,
    }  # fmt: skip
    for one in every.cells.values():
        params.load(**cell.parse(one.words))  # every parameter exists and is in range
    part = grid.Grid.of(declared | {"methods": "sd,videossl", "fractions": "3", "seeds": "0"})
    assert list(part.cells) == ["sd-3-seed0", "videossl-3-seed0"]
    with pytest.raises(params.ParameterError, match="did you mean 'ucf101_6'"):
        grid.Grid.of({"grid": "ucf101_7"})
    with pytest.raises(params.ParameterError, match="no cell with"):
        grid.Grid.of(declared | {"seeds": "9"})


def test_the_rest_of_a_grid_is_what_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    monkeypatch.setattr(grid.gathered, "FOLDER", tmp_path / "outputs/reference")
    (tmp_path / "params").mkdir()
    (tmp_path / "params/paper_results.csv").write_text("dataset,label_pct,method\n")
    asked = {"dataset": "demo", "methods": "sd,videossl", "seeds": "0", "rest": "1"}
    assert list(grid.Grid.of(asked).cells) == ["sd-10-seed0", "videossl-10-seed0"]
    (tmp_path / "outputs/reference/demo").mkdir(parents=True)
    rows = "method,variant,label_pct,seed\nsd,,10.0,0\nvideossl,T1,10.0,0\n"
    (tmp_path / "outputs/reference/demo/results.csv").write_text(rows)
    rest = grid.Grid.of(asked)
    assert list(rest.cells) == ["videossl-10-seed0"]
    assert cell.parse(rest.figures) == {"datasets": "demo", "published": True}
    assert cell.parse(grid.Grid.of(asked | {"rest": ""}).figures) == {"datasets": "demo"}
    with pytest.raises(params.ParameterError, match=r"no cell with .*'sd'.*all others are published"):
        grid.Grid.of(asked | {"methods": "sd"})


def test_a_grid_with_a_cell_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    (tmp_path / "params/grids").mkdir(parents=True)
    (tmp_path / "params/paper_results.csv").write_text("dataset,label_pct,method\n")
    runs = (
        "[{methods: [sd], fractions: [10], seeds: [0]}, {methods: [sd], fractions: [10], seeds: [0], T: 1}]"
    )
    (tmp_path / "params/grids/mine.yaml").write_text(f"dataset: demo\nruns: {runs}\n")
    with pytest.raises(params.ParameterError, match="sd-10-seed0 twice: name a variant"):
        grid.Grid.of({"grid": "mine"})
