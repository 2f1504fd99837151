"""Every equation against an independent float64 computation written out with math.log and math.exp."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.helpers import NETWORKS

from videossl_core import losses, methods, params


def softmax(row):
    top = max(row)
    e = [math.exp(x - top) for x in row]
    return [x / sum(e) for x in e]


def logits_of(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


SURE = [9.0, 1.0, 0.0]  # p = (0.99954, 0.00034, 0.00012)
UNSURE = [1.0, 0.5, 0.0]  # p = (0.506, 0.307, 0.186)


def test_equations_2_and_3_as_written():
    """ŷ^c = 1 where p^c ≥ δ, p^c otherwise; L_u = −Σ T ŷ^c log p^c."""
    p, q = softmax(SURE), softmax(UNSURE)
    expected = [
        -10 * (math.log(p[0]) + p[1] * math.log(p[1]) + p[2] * math.log(p[2])),
        -10 * sum(x * math.log(x) for x in q),
    ]
    values = losses.pseudo_label_loss(logits_of(SURE, UNSURE), delta=0.95, T=10)
    assert values.tolist() == pytest.approx(expected, rel=1e-12)
    options = {"confident_target": "one_hot", "below_threshold": "mask"}
    values = losses.pseudo_label_loss(logits_of(SURE, UNSURE), **options)
    assert values.tolist() == pytest.approx([-10 * math.log(p[0]), 0], rel=1e-12)


def test_threshold_itself_is_confident():
    logits = logits_of([math.log(0.75), math.log(0.25)])
    p = logits.detach().softmax(-1).max().item()
    value = losses.pseudo_label_loss(logits, delta=p, T=1, confident_target="one_hot")
    assert value.item() == pytest.approx(-math.log(0.75))
    assert losses.confident(logits, p).all()


def test_consistency_moves_the_student_only():
    student, teacher = logits_of(SURE), logits_of(UNSURE)
    losses.consistency_loss(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    equal = logits_of(SURE)
    losses.consistency_loss(equal, logits_of(SURE)).sum().backward()
    assert equal.grad.abs().sum() == 0


# from near certainty to none
rows_of_logits = st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=1, max_size=5)


def gradient(rows, **options) -> torch.Tensor:
    logits = logits_of(*rows)
    losses.pseudo_label_loss(logits, **options).sum().backward()
    return logits.grad


@settings(max_examples=100, deadline=None)
@given(rows_of_logits, st.sampled_from(["literal", "one_hot"]), st.floats(0.5, 1.0))
def test_soft_and_mask_have_equal_gradients(rows, target, delta):
    options = {"confident_target": target, "delta": delta}
    soft, mask = (gradient(rows, below_threshold=b, **options) for b in ("soft", "mask"))
    assert torch.allclose(soft, mask, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(rows_of_logits)
def test_literal_target_shrinks_the_gradient(rows):
    """By the factor 1 − p."""
    p = torch.tensor(rows, dtype=torch.float64).softmax(-1).amax(-1, keepdim=True)
    expected = (1 - p) * gradient(rows, below_threshold="mask", confident_target="one_hot")
    assert torch.allclose(gradient(rows, below_threshold="mask"), expected, atol=1e-12)


def test_entropy_below_the_threshold():
    assert gradient([UNSURE], below_threshold="soft").abs().max() < 1e-15
    p = softmax(UNSURE)
    entropy = -sum(x * math.log(x) for x in p)
    expected = [-10 * x * (math.log(x) + entropy) for x in p]  # d/dlogits of T times the entropy
    assert gradient([UNSURE], below_threshold="entropy")[0].tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="soft, mask, entropy"):
        losses.pseudo_label_loss(logits_of(UNSURE), below_threshold="hard")


ROWS = torch.tensor([UNSURE, SURE], dtype=torch.float64)
TURNED = torch.arange(32, dtype=torch.float64).sin().view(8, 4)  # two clips at 0, 90, 180, 270 degrees

# One labelled and one unlabelled clip, with all that any method needs.
OUT = {
    "classes": ROWS,
    "embedding": ROWS.flip(1),
    "ema_classes": ROWS.flip(0),
    "strong_classes": ROWS[:1],
    "rotation": TURNED[:2],
    "turn_rotation": TURNED[2:],
}
TEACHER = [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]
BATCH = {"labels": torch.tensor([2]), "teacher": torch.tensor(TEACHER, dtype=torch.float64)}


def by_hand() -> dict[str, float]:
    """Sums over the examples of ``BATCH``, without weights: equation 1, equation 3, and so on."""
    p, q = softmax(UNSURE), softmax(SURE)
    turned = [softmax([math.sin(k) for k in range(4 * i, 4 * i + 4)]) for i in range(8)]
    return {
        "supervised": -math.log(p[2]),
        "pseudo": -10 * (math.log(q[0]) + q[1] * math.log(q[1]) + q[2] * math.log(q[2])),
        "distil": -sum(h * math.log(x) for h, x in zip(TEACHER[0], p[::-1], strict=True))
        - sum(h * math.log(x) for h, x in zip(TEACHER[1], q[::-1], strict=True)),
        "consistency": 2 * sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / 3,
        "fixmatch": -math.log(p[SURE.index(max(SURE))]),
        "rotation": -sum(math.log(turned[i][i // 2]) for i in range(8)) / 4,
    }


# Of each term: the examples in BATCH, and the weight that the test gives it.
COUNTS = {"supervised": 1, "pseudo": 1, "fixmatch": 1, "distil": 2, "consistency": 2, "rotation": 2}
WEIGHTS = {"supervised": 1, "pseudo": 1, "fixmatch": 1, "distil": 0.5, "consistency": 8, "rotation": 2}


@pytest.mark.parametrize("reduction", ["batch", "mean"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equation_5_for_every_method(name, reduction):
    p = params.load(
        method=name, steps=90, loss_reduction=reduction, lambda_d=0.5, s4l_weight=2, consistency_weight=8
    )
    method, sums = methods.METHODS[name], by_hand()
    # at the last step every ramp is up
    expected = sum(WEIGHTS[t] * sums[t] / (2 if reduction == "batch" else COUNTS[t]) for t in method.terms)
    total, parts = methods.total_loss(method, OUT, BATCH, 89, p)
    assert total.item() == pytest.approx(expected, rel=1e-12)
    means = {t: sums[t] / COUNTS[t] for t in method.terms}
    assert {t: v.item() for t, v in parts.items()} == pytest.approx(means, rel=1e-12)


def test_fixmatch_teaches_the_strong_view():
    weak = torch.tensor([SURE, UNSURE], dtype=torch.float64, requires_grad=True)
    strong = torch.tensor([UNSURE, SURE], dtype=torch.float64, requires_grad=True)
    losses.fixmatch_loss(weak, strong, 0.95).sum().backward()
    target = [float(x == max(SURE)) for x in SURE]
    expected = [p - y for p, y in zip(softmax(UNSURE), target, strict=True)]  # dCE/dlogits
    assert strong.grad[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert strong.grad[1].abs().max() == 0  # the weak view of the second clip was unsure
    assert weak.grad is None


def test_pseudo_labels_switch_on_at_tau():
    p = params.load(steps=90, tau=2 / 3)
    assert [methods.lambda_u(step, p) for step in (0, 59, 60, 89)] == [0, 0, 1, 1]
    p = params.load(steps=90, tau=2 / 3, lambda_u_warmup="linear")
    assert [methods.lambda_u(step, p) for step in (0, 30, 60)] == [0, 0.5, 1]
    assert methods.lambda_u(0, params.load(tau=0)) == 1


def test_consistency_ramp():
    p = params.load(steps=90, consistency_ramp=1 / 3, consistency_weight=8)
    weights = [methods.consistency_weight(step, p) for step in (0, 15, 30, 89)]
    assert weights == pytest.approx([8 * math.exp(-5), 8 * math.exp(-1.25), 8, 8])


def test_teacher_temperature():
    p = params.load(steps=90, teacher_temperature=2.0)
    soft = [[math.sqrt(h) for h in row] for row in TEACHER]
    soft = [[h / sum(row) for h in row] for row in soft]
    logs = [[math.log(x) for x in softmax(row[::-1])] for row in (UNSURE, SURE)]
    expected = -sum(h * x for a, b in zip(soft, logs, strict=True) for h, x in zip(a, b, strict=True)) / 2
    _, parts = methods.total_loss(methods.METHODS["sd"], OUT, BATCH, 0, p)
    assert parts["distil"].item() == pytest.approx(expected, rel=1e-12)
