"""Every notebook, executed by papermill at a tiny size, and the README's literal commands."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pandas as pd
import papermill
import psutil
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image
from support.helpers import record, same, tree

from videossl_core import runs, training
from videossl_core.methods import METHODS
from videossl_core.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAPERMILL = Path(sys.executable).with_name("papermill")
SLOW = pytest.mark.slow


def execute(project: Path, name: str, **given) -> nbformat.NotebookNode:
    out = project / "outputs" / f"{name}.ipynb"
    papermill.execute_notebook(project / f"notebooks/{name}.ipynb", out, given, progress_bar=False)
    done = nbformat.read(out, 4)
    check_pictures(done)
    return done


def outputs(notebook) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook) -> list[nbformat.NotebookNode]:
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def check_pictures(notebook) -> None:
    """Each has a text that says what is in it, in HTML for JupyterLab and in its metadata for nbconvert."""
    for output in pictures(notebook):
        text = output.metadata["image/png"]["alt"]
        assert len(text.split()) >= 8, text
        assert not text.startswith("Chart: "), text  # made up of the titles, because the figure got none
        html = output.data["text/html"].replace("data:image/png;base64", "png", 1)
        image = ElementTree.fromstring(html + "</img>")
        assert image.get("alt") == text
        assert image.get("src") == "png," + output.data["image/png"].replace("\n", "")


def shown(notebook) -> str:
    """All text a reader of the executed notebook sees."""
    texts = []
    for output in outputs(notebook):
        assert output.output_type != "error"
        texts += [output.get("text", ""), *map(str, output.get("data", {}).values())]
    return "\n".join(texts)


@SLOW
def test_demo_runs_all_notebooks(project):
    """On the tiny data set, after a training by papermill of a method that the command does not train."""
    trained = execute(project, "train", dataset="tiny", label_pct=50, method="sd")
    command = [sys.executable, "-m", "videossl_lab.make_demo", "tiny", "--label-pct", "50"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"Supervised +[\d.]+ +[\d.]+\nVideoSSL +[\d.]+ +[\d.]+\ngain", done.stdout)
    assert re.search(r"3 of 8: 2_train_videossl\n(    .*\n)+    training VideoSSL: 4 of 4", done.stdout)
    assert Path(re.search("Report: (.*), after ", done.stdout)[1]).samefile(
        project / "outputs/report/tiny.html"
    )
    folder = project / "outputs/tiny/notebooks/seed0"
    made = {path.stem: nbformat.read(path, 4) for path in sorted(folder.glob("*.ipynb"))}
    for notebook in made.values():
        check_pictures(notebook)
    waits = pd.read_csv(folder / "waits.csv", index_col="step")
    assert list(waits.index) == [*made, "report"]
    assert (waits.seconds > 0).all()
    assert "42 videos of 14 classes" in shown(made["1_data_prep"])
    assert len(pictures(made["1_data_prep"])) == 3
    for notebook in (trained, made["2_train_supervised"], made["2_train_videossl"]):
        assert re.search(r"training .*: 4 of 4", shown(notebook))
        assert len(pictures(notebook)) == 1
    evaluated = made["3_evaluate_videossl"]
    run = runs.Run(project / "outputs/tiny/videossl/50/seed0")
    last = pd.read_csv(run.metrics).query("subset == 'test'").iloc[-1]
    assert f"'video_top1': {last.video_top1:.1f}" in shown(evaluated)  # the same as at the end of training
    assert len(pictures(evaluated)) == 1
    compared = made["4_qualitative"]
    assert "models: Supervised, SD, VideoSSL" in shown(compared)
    assert "Videos by true class (rows) and predicted class (columns)" in shown(compared)  # the explorer
    figures = made["5_paper_figures"]
    assert "(42.0)" in shown(figures)  # the paper's number, although nothing was run there
    assert len(pictures(figures)) == 4
    assert "Pseudo-labels add to it: VideoSSL over SD" in shown(figures)
    for name in ("figure1", "figure4", "figure6"):
        saved = project / f"outputs/tiny/figures/{name}.svg"
        text = ElementTree.parse(saved).findtext("{http://www.w3.org/2000/svg}title")
        assert text.startswith(f"F{name[1:-1]} {name[-1]}")
        assert Image.open(saved.with_suffix(".png")).text["Description"] == text
    table = pd.read_csv(project / "outputs/tiny/results.csv")
    columns = "dataset method variant label_pct label_draw split seed clip_top1 video_top1 steps minutes"
    assert list(table.columns)[:11] == columns.split()
    assert set(table.method) == {"supervised", "sd", "videossl"}
    predicted = pd.read_csv(project / "outputs/tiny/answers.csv", index_col="video")
    right = predicted["videossl/50/seed0"] == predicted.class_name
    assert 100 * right.mean() == pytest.approx(table.set_index("method").video_top1["videossl"], abs=0.01)


@SLOW
def test_label_train_predict(project):
    """Without a label it says what is missing. With some it sorts the rest, without a network; if these are
    wanted, it compares all three and sorts the rest by one of them."""
    empty = execute(project, "annotate", demo_per_class=3)
    assert "Label videos of at least two classes first: 0 of 7 have one." in shown(empty)
    assert pictures(empty) == []
    data = project / "outputs/my_videos/data/videos"
    lines = [f"{v.name},{v.stem.rsplit('_', 2)[0]}," for v in sorted(data.glob("*.mp4")) if v.stem[-1] != "2"]
    (data / "labels.csv").write_text("\n".join(["video,label,split", *lines]) + "\n")
    for networks in (False, True):
        done = execute(project, "annotate", demo_per_class=3, networks=networks)
        runs_made = {path.name for path in (project / "outputs/my_videos").iterdir()} & set(METHODS)
        assert runs_made == ({"probe", "supervised", "videossl"} if networks else {"probe"})
        assert shown(done).count("<video ") == 6
        assert len(pictures(done)) == networks
        chosen = re.search(r"Use (\w+): these 7 held-out videos", shown(done))
        method = chosen[1] if networks else "probe"
        rest = pd.read_csv(project / "outputs/my_videos/predictions.csv")
        assert len(rest) == 14
        assert list(rest.margin) == sorted(rest.margin)
        given = {"dataset": "my_videos", "label_pct": 100, "videos": str(data / rest.video[0])}
        predicted = execute(project, "predict", **given, method=method, into="outputs/one.csv")
        assert shown(predicted).count("<video ") == shown(predicted).count("<img alt=") == 1
        one = pd.read_csv(project / "outputs/one.csv")
        assert one.predicted[0] == rest.predicted[0]
        assert one.margin[0] == pytest.approx(rest.margin[0], abs=2e-4)


@SLOW
def test_finished_run_stays_as_it_is(project):
    """train.ipynb says so and does nothing; evaluate.ipynb writes its picture elsewhere."""
    which = {"dataset": "tiny", "label_pct": 50, "method": "sd", "seed": 7}
    execute(project, "train", **which)
    run = runs.Run(project / "outputs/tiny/sd/50/seed7")
    before, stamps = tree(run.folder), {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    assert "was finished before" in shown(execute(project, "train", **which))
    evaluated = shown(execute(project, "evaluate", **which))
    assert "0 of 14 videos have another predicted class than on record" in evaluated
    assert (project / "outputs/tiny/figures/confusion-sd-50-seed7.svg").exists()
    assert tree(run.folder) == before
    assert {path: path.stat().st_mtime_ns for path in run.folder.iterdir()} == stamps


LONGER = {"dataset": "tiny", "label_pct": 50, "method": "sd", "steps": 160, "eval_every": 40}


def wait_for_checkpoint(run: runs.Run) -> None:
    end = time.monotonic() + 120
    while not run.checkpoint.exists() and time.monotonic() < end:
        time.sleep(0.05)


@SLOW
@pytest.mark.kill
def test_killed_notebook_runs_again(project, tiny, fault, forked_kernels, monkeypatch):
    given = LONGER | {"seed": 9}
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    command = [PAPERMILL, "notebooks/train.ipynb", "outputs/cut.ipynb", *words, "--no-progress-bar"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    run = runs.Run(project / "outputs/tiny/sd/50/seed9")
    wait_for_checkpoint(run)
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:  # the kernel, papermill
        child.kill()
    process.wait()
    assert not run.finished
    monkeypatch.setenv("JUPYTER_PATH", str(forked_kernels))  # nobody kills these
    again = "papermill outputs/cut.ipynb outputs/cut.ipynb"  # the executed notebook, and nothing else given
    done = shell(project, again)
    assert done.returncode == 0, done.stderr[-2000:]
    assert run.read_provenance()["resumed"][0]["step"] >= 40
    assert same(record(run), record(training.train(tiny(**given))))
    before = run.checkpoint.stat().st_mtime_ns
    assert shell(project, again).returncode == 0
    assert "was finished before" in shown(nbformat.read(project / "outputs/cut.ipynb", 4))
    assert run.checkpoint.stat().st_mtime_ns == before
    fault("kill -9 of papermill and its kernel, then the executed notebook run again", 1, "nothing")


@SLOW
@pytest.mark.kill
def test_interrupted_cell_runs_again(project, tiny, fault):
    """The stop button during the training cell: the same cell resumes at the very step."""
    given = LONGER | {"seed": 10}
    notebook = parameterize_notebook(load_notebook_node(str(project / "notebooks/train.ipynb")), given)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    training_cell = next(i for i, cell in enumerate(cells) if "runs.open(" in cell)
    run = runs.Run(project / "outputs/tiny/sd/50/seed10")
    manager, client = start_new_kernel(600, cwd=str(project))
    try:
        for cell in cells[:training_cell]:
            assert client.execute_interactive(cell, output_hook=id)["content"]["status"] == "ok"
        client.execute(cells[training_cell])
        wait_for_checkpoint(run)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        step = run.read_checkpoint()["step"]
        assert 40 <= step < 160
        reply = client.execute_interactive(cells[training_cell], output_hook=id, timeout=300)
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert [row["step"] for row in run.read_provenance()["resumed"]] == [step]
    assert same(record(run), record(training.train(tiny(**given))))
    fault("the kernel interrupted during the training cell, then the cell run again", 1, "nothing")


# The cells before the check, and what it gives or how its message begins.
WRITTEN = {
    "no parameters cell": (["x = 1"], "no parameters found"),
    "first comment deleted": (['dataset: str = "tiny"\nmethod: str = "sd"\nseed: int = 1'], "sd 50.0 1"),
    "first comment translated": (["# Parameter\ndataset = 'tiny'\nmethod = 's4l'  # Methode"], "s4l 50.0 0"),
    "timed": (["%%time\n# Parameters of this notebook\ndataset = 'tiny'\nseed = 2"], "videossl 50.0 2"),
    "tuple": (["dataset, method, seed = 'tiny', 'sd', 3"], "sd 50.0 3"),
    "chained": (["dataset = 'tiny'\nlabel_pct = seed = 4"], "videossl 4.0 4"),
    "computed": (["dataset = 'tiny'\nseed = 2 + 3"], "videossl 50.0 5"),
    "cell of its own": (["dataset = 'tiny'\nmethod = 'sd'", "seed = 6"], "sd 50.0 6"),
    "cell just before": (["dataset = 'tiny'\nmethod = 'sd'", "import json", "seed = 7"], "sd 50.0 7"),
    "injected": (["dataset = 'tiny'\nmethod = 'sd'", "# Parameters\nseed = 8\nlabel_pct = 5\n"], "sd 5.0 8"),
    "injected twice": (
        ["# Parameters\ndataset = 'tiny'\nmethod = 'sd'", "# Parameters\nseed = 9\nlabel_pct = 5"],
        "sd 5.0 9",
    ),
    "misspelt": (["dataset = 'tiny'\nsede = 9\nmethod = 'sd'"], "unknown parameter 'sede'; did you mean 'se"),
}


@SLOW
def test_parameters_however_written(project):
    """In a real kernel, one case after the other."""
    notebook = nbformat.v4.new_notebook()
    check = (
        "from videossl_lab import notebook\np = notebook.parameters()\nprint(p.method, p.label_pct, p.seed)"
    )
    for cells, _ in WRITTEN.values():
        notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in (*cells, check)]
    where = {"metadata": {"path": str(project)}}
    NotebookClient(
        notebook, kernel_name="python3", allow_errors=True, resources=where, startup_timeout=600
    ).execute()
    checks = [cell.outputs for cell in notebook.cells if cell.source == check]
    for (name, (_, expected)), outputs in zip(WRITTEN.items(), checks, strict=True):
        text = "".join(output.get("evalue", output.get("text")) for output in outputs)
        assert expected in text, name


UNKNOWN = "unknown parameter 'label_pctt'; did you mean 'label_pct'"


@SLOW
@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        *[(n.stem, {"label_pctt": 10}, UNKNOWN) for n in NOTEBOOKS],
        ("evaluate", {"delta": 0.8}, "unknown parameter 'delta': it belongs to the training. Here only "),
        ("train", {"label_pct": 0}, "label_pct = 0: "),
        ("train", {"method": "supervized"}, "did you mean 'supervised'"),
        ("paper_figures", {"label_pct": 0}, "label_pct = 0: "),
    ],
)
def test_wrong_parameter_stops_before_any_work(project, name, given, message):
    with pytest.raises(PapermillExecutionError, match=re.escape(message)):
        execute(project, name, **given)
    done = nbformat.read(project / f"outputs/{name}.ipynb", 4)
    ran = [c for c in done.cells if c.cell_type == "code" and c.execution_count]
    assert len(ran) == 3  # the parameters, what papermill injected, and the check that refused them


def shell(project: Path, command: str) -> subprocess.CompletedProcess:
    command = command.replace("papermill", str(PAPERMILL), 1)
    how = {"shell": True, "cwd": project, "timeout": 300, "stdin": subprocess.DEVNULL}
    return subprocess.run(command, **how, capture_output=True, text=True)


@SLOW
@pytest.mark.parametrize("seed", [0, 1])
def test_literal_command(project, seed):
    """With a file for the executed notebook, and down a pipe."""
    source = (project / "notebooks/train.ipynb").read_bytes()
    target, pipe = [("outputs/train.ipynb", ""), ("", "| tee /dev/stderr > /dev/null")][seed]
    done = shell(project, f"papermill notebooks/train.ipynb {target} -p label_pct 10 -p seed {seed} {pipe}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unknown parameter" not in done.stderr
    assert ('"cells"' in done.stderr) == bool(pipe)  # the executed notebook went down the pipe
    assert (project / f"outputs/demo/videossl/10/seed{seed}/metrics.csv").exists()
    assert (project / "notebooks/train.ipynb").read_bytes() == source


@SLOW
def test_notebooks_run_from_any_folder(project, tmp_path, monkeypatch):
    """JupyterLab starts a kernel in the notebook's folder, papermill in the caller's."""
    monkeypatch.chdir(tmp_path)
    execute(project, "data_prep", dataset="tiny", teacher="efficientnet_lite0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebooks_are_kept_clean(path):
    """No outputs, no machine's paths, short cells, text between them."""
    notebook = nbformat.read(path, 4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code)
    assert max(len(c.source.splitlines()) for c in code) <= 25
    assert sum(c.cell_type == "markdown" for c in notebook.cells) >= 4
    assert not any(re.search(r"""["' =(](/[a-z]+/|[A-Z]:\\)""", c.source) for c in code)
    assert not any(name in c.source for c in code for name in ("ucf101", "hmdb51", "kinetics"))


@SLOW
def test_figures_without_any_run(project, tmp_path):
    """A fresh clone shows the paper's numbers and empty cells of its own."""
    empty = shown(execute(project, "paper_figures", outputs=str(tmp_path)))
    assert "(42.0)" in empty
    assert list(tmp_path.iterdir()) == []


def test_papers_numbers():
    """A few cells of Tables 1 to 4, picked by hand, and their count."""
    paper = pd.read_csv(ROOT / "params/paper_results.csv").set_index(["dataset", "label_pct", "method"])
    cells = """ucf101 10 videossl 40.2 42.0, ucf101 5 supervised 15.1 16.9, ucf101 50 s4l 44.9 47.9,
        kinetics100 20 mt_sd 50.0 55.3, kinetics400 20 mean_teacher 23.3 20.0, hmdb51 60 sd 35.4 36.3"""
    for dataset, pct, method, clip, video in map(str.split, cells.split(",")):
        row = paper.loc[(dataset, int(pct), method), ["clip_top1", "video_top1"]]
        assert tuple(row) == (float(clip), float(video))
    counts = {"ucf101": 28, "kinetics100": 28, "kinetics400": 15, "hmdb51": 21}
    assert paper.groupby("dataset").size().to_dict() == counts
