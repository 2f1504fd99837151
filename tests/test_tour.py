"""The tour: its charts against arithmetic written out here, its sliders, and the whole notebook with the
solutions of its exercises."""

import math
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from test_notebooks import check_pictures, outputs, pictures, shown

from videossl_core import models, params
from videossl_core.paths import ROOT
from videossl_lab import charts, notebook, tour

CLASSES = ["clock_rises", "clock_falls", "daisy_rises"]
LOGITS = [[4.0, 0.0, 0.0], [9.0, 1.0, 0.0], [1.0, 0.5, 0.0], [0.0, 6.0, 1.0]]


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def softmax(row):
    e = [math.exp(x - max(row)) for x in row]
    return [x / sum(e) for x in e]


def pseudo_gradient(row, delta, T, one_hot=False):
    """d/dx_c of −T Σ ŷ log p is T (p_c Σŷ − ŷ_c)."""
    p = softmax(row)
    if max(p) < delta:
        return [0.0] * len(p)
    target = [1.0 if x >= delta else 0.0 if one_hot else x for x in p]
    return [T * (x * sum(target) - y) for x, y in zip(p, target, strict=True)]


def widths(axis) -> list[float]:
    return [bar.get_width() for bar in axis.patches]


def logits() -> torch.Tensor:
    return torch.tensor(LOGITS, dtype=torch.float64)


def clips(n: int = 4, outputs: int = 5) -> tour.Clips:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"video": [f"v{i}" for i in range(n)], "class_name": "clock_rises", "label": 0})
    teacher = torch.from_numpy(rng.dirichlet(np.ones(outputs), n))
    return tour.Clips(rows, torch.zeros(n, 3, 4, 8, 8, dtype=torch.uint8), teacher)


@pytest.mark.parametrize("shift", [0.0, -3.0, 7.5])
def test_supervised_chart(shift):
    """It shows p and the step y − p."""
    figure = charts.supervised_chart(logits()[2], 1, CLASSES, shift)
    p = softmax([1.0, 0.5 + shift, 0.0])
    assert widths(figure.axes[0]) == pytest.approx(p)
    assert widths(figure.axes[1]) == pytest.approx([-p[0], 1 - p[1], -p[2]])
    assert figure.axes[2].get_title() == f"$L_s$ = {-math.log(p[1]):.2f}"
    x, y = figure.axes[2].lines[1].get_data()
    assert (float(x[0]), float(y[0])) == pytest.approx((shift, -math.log(p[1])))


@pytest.mark.parametrize(
    ("delta", "T", "sure", "right"), [(0.95, 10, 3, 2), (0.999, 2, 1, 1), (0.4, 1, 4, 3), (1.0, 10, 0, 0)]
)
def test_confidence_chart(delta, T, sure, right):
    """Counts of confident clips and the length of their gradients."""
    figure = charts.confidence_chart(logits(), torch.tensor([0, 0, 0, 2]), delta, T)
    title = figure.axes[0].get_title()
    assert f"{sure} of 4 clips are confident" in title
    assert ("right" in title) == bool(sure)
    if sure:
        assert f"{100 * right / sure:.0f} % of them right" in title
    for line, one_hot in zip(figure.axes[1].lines, (False, True), strict=False):
        expected = [math.hypot(*pseudo_gradient(row, delta, T, one_hot)) for row in LOGITS]
        assert line.get_ydata() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("target", ["literal", "one_hot"])
def test_targets_chart(target):
    figure = charts.targets_chart(clips(), logits(), CLASSES, [1, 2], 0.95, 10, target)
    sure, unsure = figure.axes[:3], figure.axes[3:]
    p, q = softmax(LOGITS[1]), softmax(LOGITS[2])
    assert widths(sure[1]) == pytest.approx([*p, 1, *(p[1:] if target == "literal" else (0, 0))])
    assert widths(unsure[1]) == pytest.approx(q + q)
    step = [-g for g in pseudo_gradient(LOGITS[1], 0.95, 10, target == "one_hot")]
    assert widths(sure[2]) == pytest.approx(step)
    assert widths(unsure[2]) == [0, 0, 0]
    assert [t.get_text() for t in unsure[2].texts] == ["0"] * 3
    assert "not confident, p = 0.506" in unsure[1].get_title(loc="left")


@pytest.mark.parametrize("temperature", [1, 4])
def test_teacher_chart(temperature):
    some, v = clips(), torch.tensor([[2.0, 1, 0, -1, 0]] * 4, dtype=torch.float64)
    figure = charts.teacher_chart(some, v, [3], temperature)
    h = [x ** (1 / temperature) for x in some.teacher[3].tolist()]
    h = [x / sum(h) for x in h]
    order = sorted(range(5), key=lambda m: -h[m])
    q = softmax([2, 1, 0, -1, 0])
    assert widths(figure.axes[1]) == pytest.approx([q[m] for m in order] + [h[m] for m in order])
    assert widths(figure.axes[2]) == pytest.approx([h[m] - q[m] for m in order])
    entropy = -sum(x * math.log(x) for x in h)
    assert f"entropy of h(a) {entropy:.2f}" in figure.axes[1].get_title(loc="left")


@pytest.mark.parametrize(
    ("tau", "start", "count", "right"), [(0.5, 20, 96, 80), (0.75, 30, 64, 72), (1, 40, 0, 0)]
)
def test_tau_chart(tau, start, count, right):
    """The pseudo-labels that a τ lets in. 16 unlabelled clips a step: 0.2 × 160 = 32 from
    steps 20 to 30 and 0.4 × 160 = 64 from 30 to 40."""
    p = params.load(steps=40)
    log = pd.DataFrame({"step": [10, 20, 30, 40], "confident_pct": [0, 10, 20, 40]})
    log["confident_top1"] = [np.nan, 50, 96, 72]
    title = charts.tau_chart(log, p, tau).axes[0].get_title()
    assert title.startswith(f"From iteration {start} on: {count} confident")
    assert ("right" in title) == bool(count)
    assert f"{right} % of them right" in title or not count


def test_pulls():
    """The pulls are the lengths of the summands' gradients at the backbone."""
    p = params.load(batch_size=4, T=3.0, lambda_d=2.0, delta=0.3)
    torch.manual_seed(0)
    network = models.VideoNet("resnet10", {"classes": 3, "embedding": 5}, width=0.125)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    batch = {"step": 0, "clips": torch.randint(0, 255, (4, 3, 8, 24, 24), dtype=torch.uint8)}
    batch |= {"labels": torch.tensor([2, 0]), "teacher": torch.rand(4, 5).softmax(-1)}
    lengths = charts.pulls(network, batch, p)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    out = network.train()(batch["clips"])
    log_p, log_q = out["classes"].log_softmax(-1), out["embedding"].log_softmax(-1)
    target = log_p[2:].detach().exp()
    target = torch.where(target >= 0.3, 1.0, target)
    summands = {
        "supervised": -(log_p[0, 2] + log_p[1, 0]) / 4,
        "pseudo": -3 * (target * log_p[2:]).sum() / 4,
        "distil": -2 * (batch["teacher"] * log_q).sum() / 4,
    }
    for name, value in summands.items():
        grads = torch.autograd.grad(value, network.backbone.parameters(), retain_graph=True)
        length = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
        assert lengths[name] == pytest.approx(length, rel=1e-3)


def test_pick_examples():
    table = pd.DataFrame({"p": [0.5, 0.97, 0.96, 0.91, 0.99], "right": [True, True, False, False, False]})
    assert tour.pick_examples(table) == [1, 2, 3, 0]
    assert tour.pick_examples(table[table.right]) == [1, 0]


def test_predictions():
    table = tour.predictions(clips(), logits(), CLASSES)
    assert list(table.predicted) == ["clock_rises", "clock_rises", "clock_rises", "clock_falls"]
    assert list(table.p) == pytest.approx([max(softmax(row)) for row in LOGITS])
    assert list(table.right) == [True, True, True, False]


def test_slider_redraws_picture(monkeypatch):
    shown, updates = [], []

    class Handle:
        update = updates.append

    monkeypatch.setattr(tour, "display", lambda what, **how: shown.append(what) or Handle)

    def draw(delta, target):
        figure, axis = plt.subplots()
        axis.set_title(f"{delta:g} {target}")
        return figure

    delta, target = tour.slider("δ", 0.95, 0, 1, 0.05), tour.dropdown("target", "soft", ["soft", "mask"])
    tour.interact(draw, delta=delta, target=target)
    controls, figure = shown
    assert "application/vnd.jupyter.widget-view+json" in controls
    assert "δ = 0.95, target = soft" in controls["text/html"]
    assert "VBox" not in str(controls)
    delta.value = 0.5
    target.value = "mask"
    assert [f.axes[0].get_title() for f in (figure, *updates)] == ["0.95 soft", "0.5 soft", "0.5 mask"]
    assert plt.get_fignums() == []


@pytest.mark.parametrize("given", [{"method": "sd"}, {"precision": "bf16"}, {"teacher_view": "same"}])
def test_other_equations_are_refused(given):
    """What the loop does not do, the tour's parameters do not promise."""
    assert params.load(notebook.TourParams, steps=4).method == "videossl"
    with pytest.raises(params.ParameterError, match=next(iter(given))):
        params.load(notebook.TourParams, **given)


def solved(path):
    """The tour with each solution in a cell of its own behind the exercise."""
    book = nbformat.read(path, 4)
    cells = []
    for cell in book.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            for code in re.findall(r"<details><summary>Solution.*?```python\n(.*?)```", cell.source, re.S):
                cells.append(nbformat.v4.new_code_cell(code, metadata={"tags": ["solution"]}))
    book.cells = cells
    return book


@pytest.mark.slow
def test_notebook_and_its_solutions(project):
    """The exercises' hidden solutions run, and come to what their text says."""
    source, out = project / "notebooks/solved.ipynb", project / "outputs/solved.ipynb"
    nbformat.write(solved(ROOT / "notebooks/tour.ipynb"), source)
    given = {"steps": 4, "eval_every": 2, "label_pct": 50}
    papermill.execute_notebook(source, out, given, progress_bar=False)  # raises where a cell fails
    source.unlink()
    done = nbformat.read(out, 4)
    check_pictures(done)
    assert not any(output.get("name") == "stderr" for output in outputs(done))
    cells = [c for c in done.cells if "solution" in c.metadata.get("tags", [])]
    one, two, three = (shown(nbformat.v4.new_notebook(cells=[c])) for c in cells)
    lengths = dict(re.findall(r"(soft|mask|entropy) .*gradient (\S+)", one))
    assert float(lengths["soft"]) < 1e-12
    assert float(lengths["mask"]) == 0
    assert float(lengths["entropy"]) > 1e-3
    assert len(re.findall(r"δ = [\d.na]+: \d+ clips", two)) == 2
    lowest = [float(x) for x in re.findall(r"lowest L_d ([\d.]+)", three)]
    apart = [float(x) for x in re.findall(r"objects ([\d.]+) apart", three)]
    assert lowest == sorted(lowest)
    assert lowest[2] == pytest.approx(math.log(1000), abs=0.02)
    assert apart[0] > 0.3 > apart[1] > apart[2]

    done.cells = [c for c in done.cells if c not in cells]
    assert len(pictures(done)) == 9
    assert len(nbformat.writes(done)) < 2e6
    texts = shown(done)
    for name in ("supervised_loss", "pseudo_labels", "distillation_loss", "lambda_u", "total_loss"):
        assert re.search(
            rf"<details><summary>[^<]*\b{name}\b[^<]*</summary>\n\n```python\n.*def {name}\(", texts, re.S
        )
    assert texts.count("by the function") == 2 * 4  # as text and as HTML: equations 1, 3, 4 and 5
    assert "'clips': (4, 3, 8, 24, 24)" in texts
    assert "'L_s': (2,),\n 'L_u': (2,),\n 'L_d': (4,),\n 'loss': ()" in texts
    html = "".join(output.get("data", {}).get("text/html", "") for output in outputs(done))
    assert html.count("Drawn for ") == 5  # readable without a kernel
    assert html.count("<video") in (7, 8)  # after four steps there may be no right one to show
    assert "VBox" not in texts
    assert not re.search(r'src="(?!data:)', html)
