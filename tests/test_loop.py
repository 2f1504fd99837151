"""The tour's training loop against the library: the same parameters make the same network, bit for bit."""

import re

import nbformat
import pytest
import torch
from support.helpers import same

from videossl_core import devices, prepare, training
from videossl_core.paths import ROOT

UNUSED = {
    "videossl": [],
    "pseudo_label": ["L_d"],
    "sd": ["L_u"],
    "supervised": ["L_u", "L_d"],
}
"""Losses of the cell that a method lacks."""


def loop() -> str:
    """The cells tagged "loop", after every import of the notebook."""
    code = [c for c in nbformat.read(ROOT / "notebooks/tour.ipynb", 4).cells if c.cell_type == "code"]
    lines = [line for cell in code for line in cell.source.splitlines()]
    imports = [line for line in lines if re.match("import |from ", line)]
    cells = [cell.source for cell in code if "loop" in cell.metadata.get("tags", [])]
    assert cells[-1].count("\n") < 25
    assert cells[-1].count("optimizer.step()") == 1
    return "\n".join([*imports, *cells])


def without(source: str, loss: str) -> str:
    """The line that computes the loss goes; so do its summand of equation 5 and its entry in the log; with
    L_d, the head that it alone needs."""
    parts = [rf"^ +{loss} = .*\n", rf" \+ \S+ \* {loss}\.sum\(\)", rf', "\w+": {loss}\b']
    for part in [*parts, ', "embedding": 1000'][: 4 if loss == "L_d" else 3]:
        source, count = re.subn(part, "", source, flags=re.M)
        assert count == 1, part
    return source


@pytest.mark.slow
@pytest.mark.parametrize("method", UNUSED)
def test_loop_is_the_library(tiny, method):
    """τ passes and some pseudo-labels are confident; the learning rate drops; λ_d is not 1."""
    given = {"steps": 6, "tau": 0.5, "delta": 0.12, "lambda_d": 0.7, "lr_drop_every": 4}
    given |= {"eval_every": 3, "eval_videos": 14}
    p = tiny(method=method, **given)
    assert torch.get_num_threads() == 1
    run = training.train(p)
    data = prepare.prepare(p)
    names = {"p": p, "data": data, "classes": data.classes, "first": None, "device": devices.device(p)}
    source = loop()
    for loss in UNUSED[method]:
        source = without(source, loss)
    exec(compile(source, "tour.ipynb", "exec"), names)
    trained = run.read_checkpoint()
    assert same(names["network"].state_dict(), trained["model"])
    assert list(names["networks"]) == [0, 3, 6]

    theirs = [row for row in trained["metrics"] if row["subset"] == "test"]
    assert names["metrics"] == theirs
    for mine, row in zip(names["log"], trained["log"], strict=True):
        assert mine.keys() == row.keys()
        assert all(mine[name] == row[name] for name in row.keys() - {"seconds", "clips_per_s"})
    if "L_u" not in UNUSED[method]:
        assert any(row["confident_pct"] for row in names["log"][3:])
