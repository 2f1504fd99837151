"""A method that a notebook adds to the table: trained beside VideoSSL, refused by name elsewhere."""

import re

import pandas as pd
import pytest
from papermill.exceptions import PapermillExecutionError
from support.helpers import record, same
from test_notebooks import execute, outputs, pictures, shown

from videossl_core import params, runs, training
from videossl_core.params import ParameterError, WhichRun
from videossl_lab import results
from videossl_lab.notebook import OwnParams, PredictParams

GIVEN = {"dataset": "tiny", "label_pct": 50, "steps": 4, "eval_every": 2}


@pytest.mark.parametrize("model", [params.Params, WhichRun, PredictParams])
def test_name_is_refused_elsewhere(model):
    with pytest.raises(ParameterError, match="method = 'order' is not one of supervised, "):
        params.load(model, method="order")


@pytest.mark.parametrize("name", ["sd", "videossl_plus", "../x", "Order"])
def test_name_of_its_own(name):
    """Neither that of another method, nor anything but a word: it names a folder."""
    p = params.load(OwnParams, variant="own")
    assert p.run_name == "order@own/10/seed0"
    assert p.of_baseline == params.load(variant="own")
    with pytest.raises(ParameterError, match="method = "):
        params.load(OwnParams, method=name)


@pytest.mark.slow
def test_notebook(project, tiny):
    """VideoSSL is trained as ever and is kept the second time; the new method starts again."""
    done = execute(project, "own_method", **GIVEN)
    assert not any(output.get("name") == "stderr" for output in outputs(done))
    folder = project / "outputs/tiny"
    own, baseline = (runs.Run(folder / f"{name}@own/50/seed0") for name in ("order", "videossl"))
    assert same(record(baseline), record(training.train(tiny(**GIVEN, variant="own"))))
    assert own.split.read_bytes() == baseline.split.read_bytes()
    parts = {"loss_supervised", "loss_pseudo", "loss_distil", "loss_order"}
    assert parts <= set(pd.read_csv(own.log).columns)
    curves, compared = pictures(done)
    assert "order from " in curves.metadata["image/png"]["alt"]
    words = (
        r"VideoSSL [\d.]+, [\d.]+ %; VideoSSL \+ order [\d.]+, [\d.]+ %. gain in video top-1: .*; 14 videos"
    )
    assert re.search(words, compared.metadata["image/png"]["alt"])

    before = [run.checkpoint.stat().st_mtime_ns for run in (baseline, own)]
    again = shown(execute(project, "own_method", **GIVEN))
    assert "training VideoSSL + order: 4 of 4" in again
    assert "training VideoSSL: " not in again
    after = [run.checkpoint.stat().st_mtime_ns for run in (baseline, own)]
    assert before[0] == after[0]
    assert before[1] < after[1]
    assert "training VideoSSL: 3 of 3" in shown(execute(project, "own_method", **GIVEN | {"steps": 3}))

    assert results.find(project / "outputs", "tiny").empty
    assert set(results.find(project / "outputs", "tiny", variants=True).method) == {"videossl"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "evaluate", "predict"])
def test_notebooks_refuse_it(project, name):
    with pytest.raises(PapermillExecutionError, match="method = 'order' is not one of"):
        execute(project, name, dataset="tiny", method="order")
