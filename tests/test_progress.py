"""What is seen of work in progress: a short log, one line, TensorBoard's files."""

import itertools
import re

import nbformat
import pandas as pd
import papermill
import pytest
from helpers import start
from helpers import train as train_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videossl_core import monitor, runs, training
from videossl_core.views import progress
from videossl_core.views.progress import Line, LiveTraining

ROW = {
    "step": 10, "lr": 0.05, "seconds": 3.0, "loss": 2.5, "loss_supervised": 1.5, "loss_distil": 1.0,
    "confident_pct": 34.4, "confident_top1": None, "clips_per_s": 41.26,
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("seconds_a_step", [0.001, 0.1, 3600])
@pytest.mark.parametrize("total", [1, 7, 300, 80_000])
def test_an_unwatched_log_is_short(clock, capsys, total, seconds_a_step):
    times = []
    line = Line(total, "training SD")
    for done in range(1, total + 1):
        clock[0] += seconds_a_step
        line.at(done)
        if out := capsys.readouterr().out:
            times.append(clock[0])
    assert out.startswith(f"training SD: {total} of {total}, ")  # the last line is never left out
    assert len(times) <= 22
    assert all(b - a > 5 for a, b in itertools.pairwise(times[:-1]))
    if total == 80_000 and seconds_a_step == 0.1:
        assert len(times) == 21
        assert times[0] == pytest.approx(1010, abs=0.2)  # long before the first 5 %, it says how long


def test_a_line_says_loss_parts_speed_and_time_left(clock, capsys):
    line = Line(100, "training VideoSSL", done=50)
    clock[0] += 60
    line.at(60, progress.in_words(ROW))
    said = "4 min 0 s left, loss 2.5 (supervised 1.5, distil 1), lr 0.05, 34 % confident, 41.3 clips/s"
    assert capsys.readouterr().out == f"training VideoSSL: 60 of 100, {said}\n"
    clock[0] += 3600 * 5
    line.at(100)
    assert capsys.readouterr().out == "training VideoSSL: 100 of 100, 5 h 1 min\n"


def notebook(tmp_path, code: str) -> nbformat.NotebookNode:
    """This code in a notebook, executed by papermill."""
    cells = [nbformat.v4.new_code_cell(text) for text in code.split("\n\n")]
    source = nbformat.v4.new_notebook(cells=cells)
    source.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(source, tmp_path / "in.ipynb")
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", progress_bar=False)
    return nbformat.read(tmp_path / "out.ipynb", 4)


MANY = """
import pandas as pd
from videossl_core.views import figures, progress
figures.style()
live = progress.LiveTraining()
row = {"loss": 1.0, "loss_s": 1.0, "lr": 0.1, "clips_per_s": 10.0}
log, metrics = [], []
for step in live.progress(range(1, 200_001), 200_000, "training"):
    if step % 10 == 0:
        log.append(row | {"step": step})
        live.on_log(log[-1])
    if step % 200 == 0:
        metrics.append({"step": step, "subset": "test", "clip_top1": 1.0, "video_top1": 2.0})
        live.on_eval(pd.DataFrame(log[-100:]), pd.DataFrame(metrics[-100:]))
live.close()

figures.training_curves(pd.DataFrame(log), pd.DataFrame(metrics));
"""


def test_a_long_training_leaves_a_small_notebook(tmp_path):
    """200,000 steps, 20,000 rows of log and 1,000 evaluations."""
    done = notebook(tmp_path, MANY)
    assert (tmp_path / "out.ipynb").stat().st_size < 1e6
    trained, drawn = done.cells
    assert {(o.output_type, o.name) for o in trained.outputs} == {("stream", "stdout")}
    lines = "".join(o.text for o in trained.outputs).splitlines()
    assert len(lines) <= 22
    assert re.fullmatch(r"training: 200000 of 200000, .* s, loss 1 \(s 1\), lr 0.1, 10 clips/s", lines[-1])
    assert [o.output_type for o in drawn.outputs] == ["display_data"]


def test_watched_by_whom(tmp_path):
    done = notebook(tmp_path, "from videossl_core.views import progress\nprint(progress.watched())")
    assert done.cells[0].outputs[0].text == "False\n"  # a person's JupyterLab: tests/browser


def test_processes_report_while_they_work(tiny, capsys):
    live, seen = LiveTraining(), []
    p = tiny(num_processes=2, method="sd", steps=6)
    training.train(p, live.progress, lambda row: (seen.append(row), live.on_log(row)))
    log = pd.read_csv(p.run_dir / "log.csv")
    assert [row["step"] for row in seen] == list(log.step)
    assert [row["loss"] for row in seen] == pytest.approx(list(log.loss))
    assert re.search(r"training SD: 6 of 6, .* s, loss .* clips/s\n", capsys.readouterr().out)


# ---- TensorBoard


def scalars(run: runs.Run) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value), as TensorBoard itself reads the files."""
    events = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def written(run: runs.Run) -> dict[str, list[tuple[int, float]]]:
    """The same from log.csv and metrics.csv."""
    series = {}
    tables = {"train": pd.read_csv(run.log)} | dict(iter(pd.read_csv(run.metrics).groupby("subset")))
    for group, table in tables.items():
        for name in table.columns.drop(["step", "subset", "videos"], errors="ignore"):
            rows = table.dropna(subset=name)
            if len(rows):
                pairs = zip(rows.step, rows[name], strict=True)
                series[f"{group}/{name}"] = [(s, pytest.approx(v, rel=1e-6, abs=1e-6)) for s, v in pairs]
    return series


def test_event_files_hold_what_the_tables_hold(tiny):
    run = training.train(tiny(tensorboard=True, method="videossl"))
    found = scalars(run)
    assert {
        "train/loss",
        "train/loss_supervised",
        "train/loss_distil",
        "train/lr",
        "train/clips_per_s",
    } <= found.keys()
    assert {"test/video_top1", "unlabelled/clip_top1"} <= found.keys()
    assert found == written(run)
    training.train(tiny(method="videossl", overwrite=True))
    assert not run.tensorboard.exists()  # it would tell of another run


@pytest.mark.parametrize(
    "kill", [("changing the weights", 4), ("reading a test clip", 20), ("giving a file its name", 14)]
)
def test_a_killed_run_has_every_step_once(tiny, kill):
    p = tiny(tensorboard=True, method="sd", steps=6, checkpoint_minutes=0)
    process = start(train_here, p.model_dump(mode="json", exclude_none=True), kill)
    process.join()
    run = runs.Run(p.run_dir)
    assert process.exitcode == -9
    assert not run.finished
    training.train(p)
    assert "resumed" in run.read_provenance()
    assert scalars(run) == written(run)
    assert [s for s, _ in scalars(run)["train/loss"]] == list(range(1, 7))


def test_it_may_be_turned_on_later(tiny):
    def stop(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(tiny(method="sd"), on_log=stop)
    run = training.train(tiny(method="sd", tensorboard=True))
    assert scalars(run) == written(run)


def test_a_missing_package_is_said_before_any_work(tiny, monkeypatch):
    monkeypatch.setattr(monitor, "find_spec", lambda name: None)
    p = tiny(tensorboard=True)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tensorboard"):
        training.train(p)
    assert not p.run_dir.exists()
