"""A tiny grid through the real engine: two cells, of which one fails."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack

import nbformat
import pandas as pd
import pytest
import torch
from support.helpers import project_copy

from videossl_core import params, runs
from videossl_lab import execute, grid, results

KERNEL = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}


def snakemake(project, *words, fractions="30", seeds="1", methods="supervised,sd", gpus=""):
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=2", "--keep-going"]
    command += [*words, "--nolock", "--config", "dataset=tiny"]
    command += [f"methods={methods}", f"fractions={fractions}", f"seeds={seeds}"]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": gpus}
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=900, env=env)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_failing_cell(project):
    """The other cell runs, the failed one is listed, and the same command does only what is left."""
    outputs = project / "outputs"
    code, text = snakemake(project, "--dry-run", fractions="50,30", seeds="0,1")
    assert code == 0, text
    assert "8 cells of tiny: about" in text
    assert re.search(r"^train +8$", text, re.M)
    assert not (outputs / "tiny/grid").exists()

    blocked = runs.Run(outputs / "tiny/sd/30/seed1")  # a run with other parameters lies in its place
    blocked.folder.mkdir(parents=True)
    blocked.params.write_text('{"lr": 0.5}')
    blocked.split.write_text("video,class_name,label,role\n")
    blocked.write_provenance({})
    code, text = snakemake(project)
    assert code != 0
    assert "These cells failed" in text
    listed = re.findall(r"^  (train|evaluate) (\S+) +(\S+)\n    (RunError): .*other parameters", text, re.M)
    notebook = outputs / "tiny/grid/train-sd-30-seed1.ipynb"
    assert listed == [("train", "sd-30-seed1", str(notebook), "RunError")]
    finished = results.find(outputs, "tiny")
    cells = set(zip(finished.method, finished.label_pct, finished.seed, strict=True))
    assert cells & {("supervised", 30, 1), ("sd", 30, 1)} == {("supervised", 30, 1)}
    assert (outputs / "tiny/grid/paper_figures.ipynb").exists()  # of what there is

    times = {path: path.stat().st_mtime_ns for path in outputs.glob("tiny/*/*/seed*/checkpoint.pt")}
    shutil.rmtree(blocked.folder)
    code, text = snakemake(project)
    assert code == 0, text
    assert re.search(r"^train +1$", text, re.M)
    assert blocked.finished
    assert all(path.stat().st_mtime_ns == t for path, t in times.items())
    assert len(pd.read_csv(outputs / "tiny/results.csv")) >= 2
    code, text = snakemake(project)
    assert code == 0
    assert "Nothing to be done" in text


@pytest.mark.slow
def test_space_and_quotes_in_paths(prepared, tmp_path, forked_kernels, monkeypatch):
    """In the project's path and in the last parameter of GIVEN; one cell, of seed 0."""
    lab = project_copy(tmp_path / "a b's", prepared)
    (lab / ".venv").symlink_to(sys.prefix)
    monkeypatch.chdir(lab)
    monkeypatch.setenv("PYTHONPATH", str(lab))
    command = ["make", "--old-file=.venv/ready", "grid", "DATASET=tiny", "METHODS=supervised", "FRACTIONS=50"]
    command += ["SEEDS=0", """GIVEN=-p outputs "../a b's/out it\"""", "ARGS=--nolock"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results.find(lab / "out it", "tiny").seed.tolist() == [0]


@pytest.mark.parametrize(
    ("dataset", "fractions"), [("ucf101", {5, 10, 20, 50}), ("hmdb51", {40, 50, 60}), ("demo", {10})]
)
def test_paper_grid(dataset, fractions):
    cells = grid.Grid.of({"dataset": dataset}).cells
    assert {cell["label_pct"] for cell in cells.values()} == fractions
    assert len(cells) == len(fractions) * 7 * 3


def test_grid_by_words():
    as_make_gives_them = {"dataset": "demo", "methods": None, "seeds": "", "given": None}
    empty = grid.Grid.of(as_make_gives_them)
    assert empty.parameters(method="sd").method == "sd"
    assert len(empty.cells) == 7 * 3
    more = grid.Grid.of({"methods": "fixmatch", "seeds": "5"})
    assert list(more.cells) == ["fixmatch-10-seed5"]
    assert list(grid.Grid.of({"methods": "sd", "seeds": 0}).cells) == ["sd-10-seed0"]  # as Snakemake reads it
    with pytest.raises(params.ParameterError, match=r"method = 'sdd' is not one of .*did you mean 'sd'"):
        grid.Grid.of({"methods": "sdd"})


def test_words_quoted_and_filtered():
    """A path with a space stays one value; a notebook that looks at a run gets only what names the run."""
    given = "-p root '/my videos/ucf' -p steps 7 -p outputs '/my runs' -p num_workers 3"
    cells = grid.Grid.of({"dataset": "demo", "methods": "sd", "seeds": "0", "given": given})
    name = "sd-10-seed0"
    shared = {"outputs": "/my runs", "num_workers": 3}
    which = {"dataset": "demo", "method": "sd", "label_pct": 10, "seed": 0} | shared
    assert execute.parse(cells.train(name)) == which | {"root": "/my videos/ucf", "steps": 7}
    assert execute.parse(cells.evaluate(name)) == which
    assert execute.parse(cells.figures) == {"datasets": "demo"} | shared
    assert execute.parse(cells.prepare)["root"] == "/my videos/ucf"
    assert cells.parameters().steps == 7
    assert str(cells.folder) == "/my runs/demo/grid"
    with pytest.raises(params.ParameterError, match="did you mean 'steps'"):
        grid.Grid.of({"given": "-p step 7"}).folder  # noqa: B018


def test_hours_per_method():
    """S4L's three further turns of every clip cost three times as much again."""

    def hours(method):
        return grid.Grid.of({"methods": method, "seeds": "0,1"}).hours()

    assert hours("supervised") > 0
    assert hours("s4l") == pytest.approx(4 * hours("supervised"), rel=0.01)


@pytest.fixture
def four_gpus(monkeypatch):
    """Fake ones, of which those in the set that it gives are lost; whoever waits for one is an error."""
    lost = set()

    def wait(seconds):
        raise TimeoutError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(execute, "works", lambda gpu: gpu not in lost)
    monkeypatch.setattr(execute.time, "sleep", wait)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # is put back after the test, whatever cells set
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return lost


def begin(stack, folder, given=None) -> str:
    """The GPU of a cell that starts now, while those that started before still run."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # that of the cell before, which is another process
    if given is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = given
    stack.enter_context(execute.one_gpu(folder))
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_own_gpu_per_cell(tmp_path, four_gpus, monkeypatch):
    with ExitStack() as first, ExitStack() as others:
        assert begin(first, tmp_path) == "0"
        assert [begin(others, tmp_path) for _ in range(3)] == ["1", "2", "3"]
        monkeypatch.setattr(execute.time, "sleep", lambda seconds: first.close())
        assert begin(others, tmp_path) == "0"  # it waited until the first cell was done


@pytest.mark.parametrize(
    ("given", "count", "taken"),
    [
        ("2,5", 2, ["2", "5"]),
        ("GPU-8932f937, MIG-GPU-b8ea3855/1/0", 2, ["GPU-8932f937", "MIG-GPU-b8ea3855/1/0"]),
        ("3,1,-1,0", 2, ["3", "1"]),  # PyTorch counts those before the first that is not a GPU
        ("7", 1, ["7", "7"]),  # a scheduler has chosen: nothing is handed out
        ("", 0, ["", ""]),
        ("-1", 0, ["-1", "-1"]),
    ],
)
def test_visible_gpus_are_respected(tmp_path, four_gpus, monkeypatch, given, count, taken):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with ExitStack() as cells:
        assert [begin(cells, tmp_path, given) for _ in taken] == taken


def test_lost_gpu_is_left_out(tmp_path, four_gpus, capsys, monkeypatch):
    four_gpus |= {"0", "2"}
    with ExitStack() as cells:
        assert [begin(cells, tmp_path) for _ in range(2)] == ["1", "3"]
        assert "GPU 0 does not work and is left out" in capsys.readouterr().out
        with pytest.raises(TimeoutError):  # for one of the two, not an error that costs a cell
            begin(cells, tmp_path)
    four_gpus |= {"1", "3"}
    monkeypatch.setattr(execute.time, "sleep", lambda seconds: None)
    with pytest.raises(RuntimeError, match="no GPU of this machine works"):
        begin(ExitStack(), tmp_path)
    four_gpus.clear()
    with ExitStack() as cells:
        assert begin(cells, tmp_path) == "0"


@pytest.mark.slow
def test_gpu_that_is_not_there_does_not_work(monkeypatch):
    assert not execute.works("")
    monkeypatch.setattr(execute, "START_SECONDS", 0.01)  # nor one that never answers
    assert not execute.works("")


FAKE_GPUS = """
import pathlib, sys, types

def ones(*size, device):
    import os
    assert not pathlib.Path(os.environ["CUDA_VISIBLE_DEVICES"] + ".lost").exists()
    return types.SimpleNamespace(item=lambda: 1)

if "videossl_lab.execute" in sys.orig_argv or "torch.ones" in sys.orig_argv[-1]:
    cuda = types.SimpleNamespace(device_count=lambda: 2)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda, ones=ones)
"""
FAKE_TRAINING = """
import os, pathlib, time
gpu = os.environ["CUDA_VISIBLE_DEVICES"]
with open("taken.csv", "a") as f:
    f.write(f"{seed},{gpu}\\n")
time.sleep(1)
if seed == 0:
    pathlib.Path(gpu + ".lost").touch()
    raise RuntimeError("CUDA error: unspecified launch failure\\nKernel errors might be reported later")
if seed == 1:
    raise MemoryError("batch_size = 128: the device has too little free memory")
if seed == 2:
    os._exit(1)
"""


@pytest.mark.slow
def test_lost_or_full_gpu_costs_one_cell(prepared, tmp_path, forked_kernels, monkeypatch):
    """Snakemake and papermill on two fake GPUs; the notebooks only do what goes wrong."""
    lab = project_copy(tmp_path / "lab", prepared)
    (lab / "sitecustomize.py").write_text(FAKE_GPUS)
    for path in (lab / "notebooks").glob("*.ipynb"):
        cell = nbformat.v4.new_code_cell(FAKE_TRAINING if path.stem == "train" else "")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=KERNEL), path)
    monkeypatch.setenv("PYTHONPATH", str(lab))
    code, text = snakemake(lab, fractions="30", seeds="0,1,2,3,4,5", methods="sd", gpus="GPU-a,GPU-b")
    assert code != 0
    folder = lab / "outputs/tiny/grid"
    why = (
        "RuntimeError: CUDA error: unspecified launch failure",
        "MemoryError: batch_size = 128: the device has too little free memory",
        "stopped without an error: its process was killed, or died",
    )
    cells = [f"sd-30-seed{seed}" for seed in range(6)]
    for cell, error in zip(cells, why, strict=False):
        assert re.search(rf"^  train {cell} +{folder}/train-{cell}.ipynb\n    {error}$", text, re.M), text
    assert len(re.findall(r"^  (train|evaluate) ", text, re.M)) == len(why)
    assert [(folder / f"evaluate-{cell}.done").exists() for cell in cells] == 3 * [False] + 3 * [True]
    taken = pd.read_csv(lab / "taken.csv", names=["seed", "gpu"])
    assert sorted(taken.seed) == list(range(6))
    assert set(taken.gpu) == {"GPU-a", "GPU-b"}
    (lost,) = taken.gpu[taken.seed == 0]
    # what had begun on the other GPU goes on; nobody takes the lost one
    assert lost not in taken.gpu[taken.index[taken.seed == 0][0] + 1 :].to_list()
    assert f"GPU {lost} does not work and is left out" in text


@pytest.mark.slow
def test_declared_grid():
    config = {"grid": "ucf101_6", "dataset": "demo"}  # make always names a data set
    every = grid.Grid.of(config)
    assert every.dataset == "ucf101_6"
    assert len(every.cells) == 280
    cells = [c for c in every.cells.values() if c["label_pct"] == 10 and "variant" not in c]
    papers = {"supervised", "pseudo_label", "mean_teacher", "sd", "mt_sd", "s4l", "videossl"}
    assert {(c["method"], c["seed"]) for c in cells} >= {(m, s) for m in papers for s in (0, 1, 2)}
    assert {c["label_pct"] for c in every.cells.values() if c["method"] == "s4l"} >= {5, 10, 20, 50}
    run = {"dataset": "ucf101_6", "method": "videossl", "label_pct": 10, "seed": 1, "variant": "T1"}
    assert execute.parse(every.train("videossl@T1-10-seed1")) == run | {"T": 1}
    # what the run was trained with is its own record
    assert execute.parse(every.evaluate("videossl@T1-10-seed1")) == run
    for name in every.cells:
        params.load(**execute.parse(every.train(name)))  # every parameter exists and is in range
        params.load(params.WhichRun, **execute.parse(every.evaluate(name)))
    part = grid.Grid.of(config | {"methods": "sd,videossl", "fractions": "3", "seeds": "0"})
    assert list(part.cells) == ["sd-3-seed0", "videossl-3-seed0"]
    with pytest.raises(params.ParameterError, match="did you mean 'ucf101_6'"):
        grid.Grid.of({"grid": "ucf101_7"})
    with pytest.raises(params.ParameterError, match="no cell with"):
        grid.Grid.of(config | {"seeds": "9"})


def test_rest_leaves_out_published(tmp_path, monkeypatch):
    monkeypatch.setattr(grid.results, "FOLDER", tmp_path)
    config = {"dataset": "demo", "methods": "sd,videossl", "seeds": "0", "rest": "1"}
    assert list(grid.Grid.of(config).cells) == ["sd-10-seed0", "videossl-10-seed0"]
    (tmp_path / "demo").mkdir(parents=True)
    rows = "method,variant,label_pct,seed\nsd,,10.0,0\nvideossl,T1,10.0,0\n"
    (tmp_path / "demo/results.csv").write_text(rows)
    rest = grid.Grid.of(config)
    assert list(rest.cells) == ["videossl-10-seed0"]
    assert execute.parse(rest.figures) == {"datasets": "demo", "published": True}
    assert execute.parse(grid.Grid.of(config | {"rest": ""}).figures) == {"datasets": "demo"}
    with pytest.raises(params.ParameterError, match=r"no cell with .*'sd'.*all others are published"):
        grid.Grid.of(config | {"methods": "sd"})


def test_cell_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    (tmp_path / "params/grids").mkdir(parents=True)
    block = "- {methods: [sd], fractions: [10], seeds: [0]"
    text = f"dataset: demo\nruns:\n{block}}}\n{block}, T: 1}}\n"
    (tmp_path / "params/grids/mine.yaml").write_text(text)
    with pytest.raises(params.ParameterError, match="sd-10-seed0 twice: name a variant"):
        grid.Grid.of({"grid": "mine"})
