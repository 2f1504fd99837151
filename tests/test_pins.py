"""What changes only on purpose: a tiny run of every method, the random draws, the published tables.

The values lie in ``tests/pins/``; ``PYTHONPATH=. python tests/test_pins.py`` writes them again where a change
is meant, and the commit says why.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.helpers import slow_after

from benchmarks.bench import machine
from videossl_core import methods, params, runs, sampling, training
from videossl_core.data import files
from videossl_lab import claims, paper, results

PINS = Path(__file__).parent / "pins"
GIVEN = {"tau": 0.5, "delta": 0.075, "seed": 3, "hflip": True, "lr": 0.05, "consistency_ramp": 0.25}
GIVEN |= {"T": 1}  # with 10 the pseudo-labels of four steps multiply rounding a thousandfold


def summary(run: runs.Run) -> dict:
    """Loss parts, accuracy and weights of a run, as numbers that rounding leaves nearly alike."""
    state = run.read_checkpoint()
    weights = sorted(state["model"].items())
    log = pd.read_csv(run.log)
    return {
        "machine": machine("cpu"),
        "sha256": files.sha256(b"".join(k.encode() + v.numpy().tobytes() for k, v in weights)),
        "weights": {k: [v.double().sum().item(), v.double().norm().item()] for k, v in weights},
        "averaged": sum(v.double().norm().item() for v in (state.get("ema") or {}).values()) or None,
        "log": {c: log[c].tolist() for c in log if c.startswith(("loss", "confident_pct", "lr"))},
        "metrics": pd.read_csv(run.metrics).to_dict("list"),
    }


def draws() -> dict:
    return {k: v.tolist() for k, v in sampling.draws_of_step(7, 5, 2)._asdict().items()}


def tables(dataset: str) -> dict[str, str]:
    """The tables of paper_figures.ipynb, made from the published CSVs alone."""
    every = results.published(dataset)
    plain = every[every.variant.fillna("") == ""] if "variant" in every else every
    found = {"results": paper.results_table(plain, dataset)}
    if (results.FOLDER / dataset / "answers.csv").exists():
        compared = claims.Runs(every, results.predicted_classes(every))
        found["claims"], found["gains"] = claims.claims(compared), compared.gains()
        found["variants"] = compared.variants()
        found["figure6"] = claims.improved(results.by_class(every), 10).round(2).to_frame("gain")
    return {name: table.to_csv() for name, table in found.items()}


@pytest.mark.parametrize("method", slow_after(1, methods.METHODS))
def test_tiny_run(tiny, method):
    """Weights, losses and accuracy; bit for bit on the processor that the pins were made on."""
    pinned = json.loads((PINS / "runs.json").read_text())[method]
    now = summary(training.train(tiny(**GIVEN, method=method)))
    if now["machine"] == pinned["machine"]:
        assert now["sha256"] == pinned["sha256"]
    assert now["weights"].keys() == pinned["weights"].keys()
    for name, values in pinned["weights"].items():
        assert now["weights"][name] == pytest.approx(values, rel=1e-3, abs=1e-4), name
    assert now["averaged"] == (pinned["averaged"] and pytest.approx(pinned["averaged"], rel=1e-3))
    assert now["log"].keys() == pinned["log"].keys()
    for name, values in pinned["log"].items():
        np.testing.assert_allclose(now["log"][name], values, rtol=2e-3, atol=1e-6, err_msg=name)
    for name in ("step", "subset", "videos"):
        assert now["metrics"][name] == pinned["metrics"][name]
    for name in ("clip_top1", "video_top1"):  # one near tie of 14 videos may fall otherwise
        assert now["metrics"][name] == pytest.approx(pinned["metrics"][name], abs=7.2)


def test_draws():
    """All of a step's random numbers: a field inserted among them would change every later one."""
    pinned = json.loads((PINS / "draws.json").read_text())
    assert list(draws()) == list(pinned)
    for name, values in pinned.items():
        assert draws()[name] == pytest.approx(values, rel=1e-12), name


@pytest.mark.parametrize("dataset", slow_after(1, ["demo", "ucf101_6"]))
def test_published_tables(dataset):
    pinned = {path.stem: path.read_text() for path in (PINS / dataset).glob("*.csv")}
    assert tables(dataset) == pinned


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests
    import tempfile

    from support.helpers import TINY

    with tempfile.TemporaryDirectory() as folder:
        p = {m: params.load(**TINY | GIVEN | {"method": m, "outputs": folder}) for m in methods.METHODS}
        found = {m: summary(training.train(given)) for m, given in p.items()}
    lines = [f"{json.dumps(method)}: {json.dumps(values)}" for method, values in found.items()]
    files.write_text(PINS / "runs.json", ",\n".join(lines).join(["{\n", "\n}\n"]))
    files.write_text(PINS / "draws.json", json.dumps(draws(), indent=1) + "\n")
    for dataset in ("ucf101_6", "demo"):
        for name, text in tables(dataset).items():
            files.write_text(PINS / dataset / f"{name}.csv", text)
