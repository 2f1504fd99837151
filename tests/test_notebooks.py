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
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from videossl_core import runs
from videossl_core.params import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAPERMILL = Path(sys.executable).with_name("papermill")


def execute(project: Path, name: str, **given) -> nbformat.NotebookNode:
    out = project / "outputs" / f"{name}.ipynb"
    papermill.execute_notebook(project / f"notebooks/{name}.ipynb", out, given, progress_bar=False)
    done = nbformat.read(out, 4)
    check_pictures(done)
    return done


def check_pictures(notebook) -> None:
    """Each has a text that says what is in it, in HTML for JupyterLab and in its metadata for nbconvert."""
    for output in (
        o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ):
        text = output.metadata["image/png"]["alt"]
        assert len(text.split()) >= 8, text
        assert not text.startswith("Chart: "), text  # made up of the titles, because the figure got none
        html = ElementTree.fromstring(
            output.data["text/html"].replace("data:image/png;base64", "png", 1) + "</img>"
        )
        assert html.get("alt") == text
        assert html.get("src") == "png," + output.data["image/png"].replace("\n", "")


def shown(notebook) -> str:
    """All text a reader of the executed notebook sees."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            texts += [output.get("text", ""), *map(str, output.get("data", {}).values())]
    return "\n".join(texts)


def pictures(notebook) -> int:
    return sum("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", []))


def test_the_demo_command_runs_all_notebooks_and_makes_a_page(project):
    """On the tiny data set, after a training by papermill of a method that the command does not train."""
    trained = execute(project, "train", dataset="tiny", label_pct=50, method="sd")
    command = [sys.executable, "-m", "videossl_lab.make_demo", "tiny", "--label-pct", "50"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"Supervised +[\d.]+ +[\d.]+\nVideoSSL +[\d.]+ +[\d.]+\ngain", done.stdout)
    folder = project / "outputs/tiny/notebooks/seed0"
    made = {path.stem: nbformat.read(path, 4) for path in sorted(folder.glob("*.ipynb"))}
    for notebook in made.values():
        check_pictures(notebook)
    prepared = made["1_data_prep"]
    assert "42 videos of 14 classes" in shown(prepared)
    assert pictures(prepared) == 3
    for method, notebook in (
        ("sd", trained),
        ("supervised", made["2_train_supervised"]),
        ("videossl", made["2_train_videossl"]),
    ):
        assert re.search(r"training .*: 4 of 4", shown(notebook))
        assert pictures(notebook) == 1
        assert (project / f"outputs/tiny/{method}/50/seed0/checkpoint.pt").exists()
    evaluated = made["3_evaluate_videossl"]
    run = runs.Run(project / "outputs/tiny/videossl/50/seed0")
    last = pd.read_csv(run.metrics).query("subset == 'test'").iloc[-1]
    assert f"'video_top1': {last.video_top1:.1f}" in shown(evaluated)  # the same as at the end of training
    assert pictures(evaluated) == 1
    compared = made["4_qualitative"]
    assert "models: Supervised, SD, VideoSSL" in shown(compared)
    assert "Videos by true class (rows) and said class (columns)" in shown(compared)  # the explorer's page
    figures = made["5_paper_figures"]
    assert "tiny" in shown(figures)
    assert "(42.0)" in shown(figures)  # the paper's number, although nothing was run there
    assert pictures(figures) == 4
    assert "Pseudo-labels add to it: VideoSSL over SD" in shown(figures)
    for name in ("figure1", "figure4", "figure6"):
        saved = project / f"outputs/tiny/figures/{name}.svg"
        told = ElementTree.parse(saved).findtext("{http://www.w3.org/2000/svg}title")
        assert told.startswith(f"F{name[1:-1]} {name[-1]}")
        assert Image.open(saved.with_suffix(".png")).text["Description"] == told
    results = pd.read_csv(project / "outputs/tiny/results.csv")
    columns = "dataset method variant label_pct label_draw split seed clip_top1 video_top1 steps minutes"
    assert list(results.columns)[:11] == columns.split()
    assert set(results.method) == {"supervised", "sd", "videossl"}
    answers = pd.read_csv(project / "outputs/tiny/answers.csv", index_col="video")
    right = answers["videossl/50/seed0"] == answers.class_name
    assert 100 * right.mean() == pytest.approx(results.set_index("method").video_top1["videossl"], abs=0.01)
    page = project / "outputs/report/runs/tiny/index.html"
    assert f"Report: {page}" in done.stdout
    links = re.findall(r'href="([^"]+\.html)"', page.read_text())
    executed = [link for link in links if "/notebooks/tiny/notebooks/seed0/" in link]
    assert len(executed) == 7
    for link in ["index.html", *links]:
        images = re.findall(r"<img[^>]*>", (page.parent / link).read_text())
        assert all(re.search(r'alt="[^"]{40,}"', tag) for tag in images)


def test_label_train_predict(project):
    """Without a label it says what is missing; with some it trains, tells the gain and sorts the rest."""
    empty = execute(project, "annotate", demo_per_class=3)
    assert "Label videos of at least two classes first: 0 of 7 have one." in shown(empty)
    assert pictures(empty) == 0
    data = project / "outputs/my_videos/data/videos"
    lines = [f"{v.name},{v.stem.rsplit('_', 2)[0]}," for v in sorted(data.glob("*.mp4")) if v.stem[-1] != "2"]
    (data / "labels.csv").write_text("\n".join(["video,label,split", *lines]) + "\n")
    done = execute(project, "annotate", demo_per_class=3)
    assert re.search(r"gain in video top-1: [+-][\d.]+ points \(95 % interval .*; 7 videos", shown(done))
    assert pictures(done) == 1
    assert shown(done).count("<video ") == 6
    rest = pd.read_csv(project / "outputs/my_videos/predictions.csv")
    assert len(rest) == 14
    assert list(rest.margin) == sorted(rest.margin)
    given = {"dataset": "my_videos", "label_pct": 100, "videos": str(data / rest.video[0])}
    predicted = execute(project, "predict", **given, into="outputs/one.csv")
    assert shown(predicted).count("<video ") == shown(predicted).count("<img alt=") == 1
    one = pd.read_csv(project / "outputs/one.csv")
    assert one.predicted[0] == rest.predicted[0]
    assert one.margin[0] == pytest.approx(rest.margin[0], abs=2e-4)


def test_training_by_two_processes_from_the_notebook(project):
    given = {"dataset": "tiny", "label_pct": 50, "method": "sd", "seed": 8, "num_processes": 2}
    done = execute(project, "train", **given)
    assert "is finished" in shown(done)
    assert pictures(done) == 1
    assert runs.Run(project / "outputs/tiny/sd/50/seed8").read_provenance()["processes"] == 2


def test_a_finished_run_says_so_and_does_nothing(project):
    given = {"dataset": "tiny", "label_pct": 50, "method": "sd", "seed": 7}
    execute(project, "train", **given)
    checkpoint = project / "outputs/tiny/sd/50/seed7/checkpoint.pt"
    before = checkpoint.stat().st_mtime_ns
    again = shown(execute(project, "train", **given))
    assert "was finished before" in again
    assert checkpoint.stat().st_mtime_ns == before


def test_an_executed_notebook_that_was_killed_can_be_run_again(project, tmp_path, fault):
    given = {"dataset": "tiny", "label_pct": 50, "method": "sd", "seed": 9, "steps": 160, "eval_every": 40}
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    command = [PAPERMILL, "notebooks/train.ipynb", "outputs/cut.ipynb", *words, "--no-progress-bar"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    run = runs.Run(project / "outputs/tiny/sd/50/seed9")
    while not run.checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.05)
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:  # the kernel, papermill
        child.kill()
    process.wait()
    assert not run.finished
    again = "papermill outputs/cut.ipynb outputs/cut.ipynb"  # the executed notebook, nothing else said
    done = shell(project, again)
    assert done.returncode == 0, done.stderr[-2000:]
    assert run.read_provenance()["resumed"][0]["step"] >= 40
    whole = project / "outputs" / "whole"
    (whole / "tiny").mkdir(parents=True)
    (whole / "tiny/data").symlink_to(project / "outputs/tiny/data")
    execute(project, "train", **given, outputs=str(whole))
    for name in ("metrics.csv", "predictions_test.csv", "split.csv"):
        assert (run.folder / name).read_bytes() == (whole / "tiny/sd/50/seed9" / name).read_bytes()
    before = run.checkpoint.stat().st_mtime_ns
    assert shell(project, again).returncode == 0
    assert "was finished before" in shown(nbformat.read(project / "outputs/cut.ipynb", 4))
    assert run.checkpoint.stat().st_mtime_ns == before
    fault("kill -9 of papermill and its kernel, then the executed notebook run again", 1, "nothing")


UNKNOWN = "unknown parameter 'label_pctt'; did you mean 'label_pct'"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        *[(n.stem, {"label_pctt": 10}, UNKNOWN) for n in NOTEBOOKS],
        ("train", {"label_pct": 0}, "label_pct = 0: "),
        ("train", {"method": "supervized"}, "did you mean 'supervised'"),
        ("paper_figures", {"label_pct": 0}, "label_pct = 0: "),
    ],
)
def test_a_wrong_parameter_stops_before_any_work(project, name, given, message):
    with pytest.raises(PapermillExecutionError, match=re.escape(message)):
        execute(project, name, **given)
    done = nbformat.read(project / f"outputs/{name}.ipynb", 4)
    ran = [c for c in done.cells if c.cell_type == "code" and c.execution_count]
    assert len(ran) == 3  # the parameters, what papermill injected, and the check that refused them


def shell(project: Path, command: str) -> subprocess.CompletedProcess:
    command = command.replace("papermill", str(PAPERMILL), 1)
    return subprocess.run(
        command,
        shell=True,
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


def test_the_literal_command(project):
    done = shell(project, "papermill notebooks/train.ipynb outputs/train.ipynb -p label_pct 10")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unknown parameter" not in done.stderr
    assert (project / "outputs/demo/videossl/10/seed0/metrics.csv").exists()


def test_the_literal_command_in_a_pipe(project):
    source = (project / "notebooks/train.ipynb").read_bytes()
    done = shell(
        project, "papermill notebooks/train.ipynb -p label_pct 10 -p seed 1 | tee /dev/stderr > /dev/null"
    )
    assert done.returncode == 0
    assert '"cells"' in done.stderr  # the executed notebook went down the pipe
    assert (project / "outputs/demo/videossl/10/seed1/metrics.csv").exists()
    assert (project / "notebooks/train.ipynb").read_bytes() == source


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
    checked = subprocess.run(
        [Path(sys.executable).with_name("nbstripout"), "--verify", path], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


def test_figures_without_any_run(project, tmp_path):
    """A fresh clone shows the paper's numbers and empty cells of its own."""
    empty = shown(execute(project, "paper_figures", outputs=str(tmp_path)))
    assert "(42.0)" in empty
    assert list(tmp_path.iterdir()) == []


def test_the_papers_numbers():
    """A few cells of Tables 1 to 4, picked by hand, and their count."""
    paper = pd.read_csv(ROOT / "params/paper_results.csv").set_index(["dataset", "label_pct", "method"])
    cells = {
        ("ucf101", 10, "videossl"): (40.2, 42.0),
        ("ucf101", 5, "supervised"): (15.1, 16.9),
        ("ucf101", 50, "s4l"): (44.9, 47.9),
        ("kinetics100", 20, "mt_sd"): (50.0, 55.3),
        ("kinetics400", 20, "mean_teacher"): (23.3, 20.0),
        ("hmdb51", 60, "sd"): (35.4, 36.3),
    }
    for key, values in cells.items():
        assert tuple(paper.loc[key, ["clip_top1", "video_top1"]]) == values
    assert paper.groupby("dataset").size().to_dict() == {
        "ucf101": 28, "kinetics100": 28, "kinetics400": 15, "hmdb51": 21,
    }  # fmt: skip
