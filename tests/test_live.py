"""What is seen of long work: one line that changes, a short log where nobody watches, curves."""

import itertools
import re
from types import SimpleNamespace
from unittest.mock import Mock

import nbformat
import papermill
import pytest

from videossl_core import params, progress
from videossl_lab import live
from videossl_lab.live import Line, Live

LOSS = {"loss": 2.5, "loss_supervised": 1.5, "loss_distil": 1.0}
ROW = {"step": 10, "lr": 0.05, "seconds": 3.0, **LOSS, "confident_pct": 34.4, "clips_per_s": 41.26}


@pytest.fixture(autouse=True)
def shown_as_before(monkeypatch):
    """What these tests show or hide is undone."""
    monkeypatch.setattr(progress, "display", progress.display)


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move."""
    now = [1000.0]
    monkeypatch.setattr(live.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("seconds_a_step", [0.001, 0.1, 3600])
@pytest.mark.parametrize("total", [1, 7, 300, 80_000])
def test_unwatched_log_is_short(clock, capsys, total, seconds_a_step):
    """At most 22 lines, more than five seconds apart, however long the work; the last is never left out."""
    times = []
    line = Line(total, "training SD")
    for done in range(1, total + 1):
        clock[0] += seconds_a_step
        line.update(done)
        if out := capsys.readouterr().out:
            times.append(clock[0])
    assert out.startswith(f"training SD: {total} of {total}, ")
    assert len(times) <= 22
    assert all(b - a > 5 for a, b in itertools.pairwise(times[:-1]))
    if total == 80_000 and seconds_a_step == 0.1:
        assert len(times) == 21
        assert times[0] == pytest.approx(1005, abs=0.2)  # long before the first 5 %, it says how long


def test_track_shows_progress(clock, capsys):
    """The core's loops are shown from ``show_progress`` on; an empty one is not."""
    live.show_progress(False)
    assert list(progress.track("abc", 3, "reading")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""
    live.show_progress()
    for item in progress.track("abc", 3, "reading"):
        clock[0] += 6
        assert item in "abc"
    assert list(progress.track([], 0, "reading")) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"reading: {text}" for text in ("1 of 3, 12 s left", "2 of 3, 6 s left", "3 of 3, 18 s")]


def test_line_of_a_training(clock, capsys):
    """Loss, its parts, learning rate, confident share, speed and time left; at the end, the time it took."""
    shown = Live(params.load(steps=100), draw=None)
    shown.add(ROW | {"step": 60, "seconds": 90})
    text = "1 min 0 s left, loss 2.5 (supervised 1.5, distil 1), lr 0.05, 34 % confident, 41.3 clips/s"
    assert capsys.readouterr().out == f"training VideoSSL: 60 of 100, {text}\n"
    clock[0] += 3600 * 5
    shown.add(ROW | {"step": 100, "seconds": 90 + 3600 * 5})
    assert capsys.readouterr().out.startswith("training VideoSSL: 100 of 100, 5 h 1 min, loss 2.5 ")


def test_watched_curves(clock, monkeypatch):
    """Earlier rows are drawn too. An evaluation is drawn at once, a row when 1/20 of the time allows it."""
    test = {"step": 20, "subset": "test", "clip_top1": 1.0, "video_top1": 2.0, "videos": 3}
    resumed = SimpleNamespace(log=[ROW | {"step": step} for step in (10, 20, 30)], metrics=[test])
    curves, line, drawn = Mock(), Mock(), []  # two display handles
    monkeypatch.setattr(live, "watched", lambda: True)
    monkeypatch.setattr(live, "display", Mock(side_effect=[curves, line]))
    monkeypatch.setattr(live.plt, "close", lambda figure: None)

    def draw(log, metrics):
        clock[0] += 1
        drawn.append((list(log.step), list(metrics.step)))

    shown = Live(params.load(steps=300), draw, resumed)
    shown.add(resumed.log[-1])
    for step in (40, 50, 60):
        clock[0] += 11
        shown.add(ROW | {"step": step})
    shown.add(test | {"step": 60})
    shown.close()
    assert drawn == [([10, 20, 30], [20]), ([10, 20, 30, 40, 50], [20]), ([10, 20, 30, 40, 50, 60], [20, 60])]
    assert curves.update.call_count == 4  # the last one takes the picture away
    lines = [call.args[0]["text/plain"].split(",")[0] for call in line.update.call_args_list]
    assert lines == [f"training VideoSSL: {step} of 300" for step in (30, 40, 50, 60)]


LONG = """
import pandas as pd
from videossl_core import params
from videossl_lab import live, plots
plots.style()
curves = live.Live(params.load(method="sd", steps=200_000), plots.training_curves)
row = {"loss": 1.0, "loss_s": 1.0, "lr": 0.1, "clips_per_s": 10.0}
for step in range(10, 200_001, 10):
    curves.add(row | {"step": step, "seconds": step / 1000})
    if step % 200 == 0:
        curves.add({"step": step, "subset": "test", "clip_top1": 1.0, "video_top1": 2.0})
curves.close()

plots.training_curves(pd.DataFrame(curves.log), pd.DataFrame(curves.metrics));

print(live.watched())
"""


@pytest.mark.slow
def test_long_training_small_notebook(tmp_path):
    """200,000 steps, 20,000 rows of log and 1,000 evaluations. Papermill is nobody who watches."""
    source = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in LONG.split("\n\n")])
    source.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(source, tmp_path / "in.ipynb")
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", progress_bar=False)
    assert (tmp_path / "out.ipynb").stat().st_size < 1e6
    trained, drawn, watched = nbformat.read(tmp_path / "out.ipynb", 4).cells
    assert {(o.output_type, o.name) for o in trained.outputs} == {("stream", "stdout")}
    lines = "".join(o.text for o in trained.outputs).splitlines()
    assert len(lines) <= 22
    assert re.fullmatch(r"training SD: 200000 of 200000, .* s, loss 1 \(s 1\), lr 0.1, 10 clips/s", lines[-1])
    assert [o.output_type for o in drawn.outputs] == ["display_data"]
    assert watched.outputs[0].text == "False\n"  # a person's JupyterLab: tests/browser
