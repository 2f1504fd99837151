"""The tour's charts: what each loss of the paper does to real clips.

Every number comes from ``losses``, ``methods`` and autograd; here they are only drawn.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from videossl_core import losses, methods
from videossl_core.params import Params
from videossl_core.teacher import IMAGENET_CLASSES
from videossl_core.views import figures
from videossl_core.views.lesson import Clips

BLUE, ORANGE, RED, GREY = "#0072b2", "#e69f00", "#d55e00", "#bbbbbb"


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each clip (N,), and by autograd the gradient of their sum at the logits (N, outputs)."""
    at = logits.detach().clone().requires_grad_()
    each = loss(at)
    each.sum().backward()
    return each.detach(), at.grad


def _plain(name: str) -> str:
    return name.replace("_", " ")


def supervised_chart(logits: Tensor, label: int, classes: list[str], shift: float) -> Figure:
    """Equation 1 at one clip's logits (C,), that of its true class moved by ``shift``."""
    y = torch.zeros_like(logits)
    y[label] = 1

    def loss(x: Tensor) -> Tensor:
        return losses.supervised_loss(x, torch.full((len(x),), label))

    each, grad = gradient(loss, (logits + shift * y)[None])
    p = (logits + shift * y).softmax(-1)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4), width_ratios=(3, 3, 3))
    names, colours = [_plain(c) for c in classes], np.where(y > 0, RED, GREY)
    left.barh(names, p.numpy(), color=colours)
    left.set(xlim=(0, 1), title="p(x)")
    left.tick_params(axis="y", labelsize=8)
    middle.barh(names, -grad[0].numpy(), color=colours)
    middle.set(xlim=(-1, 1), title="y − p(x): where the step goes", yticklabels=[])
    shifts = torch.linspace(-10, 10, 81, dtype=logits.dtype)
    right.plot(shifts, loss(logits + shifts[:, None] * y), color="black")
    right.plot(shift, each[0], "o", color=RED)
    right.set(title=f"$L_s$ = {each[0]:.2f}", xlabel="shift of the true class's logit")
    for axis in (left, middle):
        axis.invert_yaxis()
    return figures.described(
        figure,
        f"""Three charts for a clip of class {names[label]}. Its probability is {p[label]:.2f}, the loss
        {each[0]:.2f}; a step against the gradient raises its logit by {-grad[0, label]:.2f} and lowers those
        of the other {len(p) - 1} classes by their probabilities. The loss falls with the true logit.""",
    )


def confidence_chart(logits: Tensor, truth: Tensor, delta: float, T: float) -> Figure:
    """Equations 2 and 3 over many unlabelled clips: how many are confident, how many of these are right, and
    how long the gradient is that each sends to its logits, as the equation is written and with one-hot ŷ."""
    (p, best), sure = logits.softmax(-1).max(-1), losses.confident(logits, delta)
    right = best == truth
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5.4), sharex=True)
    edges = np.linspace(0, 1, 41)
    bars = {"color": [BLUE, ORANGE], "hatch": ["", "///"], "label": ["right", "wrong"]}
    above.hist([p[right].numpy(), p[~right].numpy()], edges, stacked=True, **bars)
    share = f", {100 * right[sure].double().mean():.0f} % of them right" if sure.any() else ""
    title = f"δ = {delta:g}: {int(sure.sum())} of {len(p)} clips are confident{share}"
    above.set(title=title, ylabel="unlabelled clips")
    above.legend(loc="upper left")
    longest = {}
    for name, target, marker, colour in (
        ("ŷ as written", "literal", "o", BLUE),
        ("ŷ one-hot", "one_hot", "x", RED),
    ):
        _, grad = gradient(lambda x, t=target: losses.pseudo_label_loss(x, delta, T, "soft", t), logits)
        length = grad.norm(dim=-1)
        longest[name] = length.max()
        below.plot(p, length, marker, color=colour, label=name, ms=4)
    below.set(xlabel="largest $p^c(z)$", ylabel="length of $∂L_u/∂$logits", xlim=(0, 1.01))
    below.set_yscale("symlog", linthresh=1e-3)
    below.set_ylim(0, 30)
    below.legend(loc="upper left")
    for axis in (above, below):
        axis.axvline(delta, color="black", ls="--", lw=1)
    lengths = ", ".join(f"{name} at most {value:.2g}" for name, value in longest.items())
    return figures.described(
        figure,
        f"""Histogram of the confidence of {len(p)} unlabelled clips, right and wrong ones. {title}.
        Below it the gradient of each clip: zero left of δ; right of it, {lengths}.""",
    )


@dataclass(frozen=True)
class _Row:
    """One clip of a chart: its picture, and two distributions and a gradient over some named outputs."""

    picture: np.ndarray
    title: str
    names: list[str]
    ours: Tensor
    target: Tensor
    step: Tensor


def _rows_chart(rows: list[_Row], ours: str, target: str, step: str) -> Figure:
    figure, axes = plt.subplots(
        len(rows), 3, figsize=(10, 1.9 * len(rows) + 0.4), width_ratios=(1.3, 3, 2.4), squeeze=False
    )
    words = []
    for (left, middle, right), row in zip(axes, rows, strict=True):
        left.imshow(row.picture, interpolation="nearest")
        left.axis("off")
        at = np.arange(len(row.names))
        middle.barh(at - 0.2, row.ours.numpy(), 0.38, color=BLUE, label=ours)
        middle.barh(at + 0.2, row.target.numpy(), 0.38, color=ORANGE, label=target)
        middle.set(yticks=at, xlim=(0, 1.02))
        middle.set_yticklabels(row.names, fontsize=8)
        middle.set_title(row.title, fontsize=9, loc="left")
        values = torch.where(row.step.abs() < 1e-12, 0, row.step).numpy()  # p − p, but for rounding
        far = max(0.5, 1.5 * float(abs(values).max()))
        right.barh(at, values, color=np.where(values > 0, BLUE, RED))
        for i, v in enumerate(values.tolist()):
            side = {"xytext": (4, 0), "ha": "left"} if v >= 0 else {"xytext": (-4, 0), "ha": "right"}
            right.annotate(
                f"{v:+.2g}" if v else "0", (v, i), textcoords="offset points", va="center", fontsize=8, **side
            )
        right.set(xlim=(-far, far), yticks=at, yticklabels=[])
        middle.invert_yaxis()
        right.invert_yaxis()
        words.append(f"{row.title}; largest step {float(abs(values).max()):.2g}")
    axes[0, 1].legend(loc="lower right", fontsize=8)
    axes[0, 2].set_title(step, fontsize=9)
    return figures.described(
        figure, f"For {len(rows)} clips {ours}, {target}, and {step}. {'. '.join(words)}."
    )


def targets_chart(clips: Clips, logits: Tensor, classes: list[str], at: list[int], names: int = 4,
                  **options) -> Figure:  # fmt: skip
    """Equations 2 and 3 clip by clip: p(z), the target ŷ, and the step −∂L_u/∂logits.

    Args:
        at: positions of the clips to show.
        options: of ``losses.pseudo_label_loss``: delta, T, below_threshold, confident_target.
    """
    x = logits[at]
    told = losses.pseudo_labels(x.log_softmax(-1), **{k: v for k, v in options.items() if k != "T"})
    _, grad = gradient(lambda z: losses.pseudo_label_loss(z, **options), x)
    sure = losses.confident(x, options.get("delta", 0.95))
    rows = []
    for i, z in enumerate(x):
        best = z.argsort(descending=True)[:names]
        what = f"{'confident' if sure[i] else 'not confident'}, p = {z.softmax(-1).max():.3f}"
        title = f"{what}; in truth {_plain(clips.rows.class_name[at[i]])}"
        shown = [_plain(classes[c]) for c in best]
        rows.append(
            _Row(clips.frame(at[i]), title, shown, z.softmax(-1)[best], told[i, best], -grad[i, best])
        )
    return _rows_chart(rows, "p(z)", "ŷ", "the step, −∂L_u/∂logits")


def teacher_chart(
    clips: Clips, embedding: Tensor, at: list[int], temperature: float, names: int = 5
) -> Figure:
    """Equation 4 clip by clip: the teacher's h(a) at a temperature, the network's q(v), and the step."""
    x, h = embedding[at], losses.soften(clips.teacher[at], temperature)
    each, grad = gradient(lambda v: losses.distillation_loss(v, h), x)
    entropy = torch.special.entr(h).sum(-1)
    rows = []
    for i, v in enumerate(x):
        best = h[i].argsort(descending=True)[:names]
        title = f"entropy of h(a) {entropy[i]:.2f} nats, L_d {each[i]:.2f}"
        shown = [IMAGENET_CLASSES[m] for m in best]
        rows.append(_Row(clips.frame(at[i]), title, shown, v.softmax(-1)[best], h[i, best], -grad[i, best]))
    return _rows_chart(rows, "q(v)", "h(a)", "the step, h(a) − q(v)")


def tau_chart(log: pd.DataFrame, p: Params, tau: float) -> Figure:
    """λ_u of equation 5 over the iterations of a run, and the pseudo-labels that it would let in."""
    p = p.model_copy(update={"tau": tau})
    ends = log.step.tolist()
    spans = [range(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    let_in = np.array([sum(methods.lambda_u(s, p) for s in span) for span in spans])
    unlabelled = p.batch_size - methods.METHODS[p.method].labelled_clips(p.batch_size)
    sure = let_in * unlabelled * log.confident_pct.to_numpy() / 100
    right = (sure * log.confident_top1.fillna(0).to_numpy() / 100).sum()
    count = sure.sum()
    steps = np.arange(p.steps + 1)
    weight = np.array([methods.lambda_u(int(s), p) for s in steps])
    start = int((weight < 1).sum())
    figure, axis = plt.subplots(figsize=(8, 3.6))
    axis.fill_between(
        steps, 102 * weight, step="post", color=ORANGE, alpha=0.3, lw=0, label="$λ_u$ = 1: they are used"
    )
    axis.plot(log.step, log.confident_pct, color=BLUE, label="confident, % of the unlabelled clips")
    axis.plot(log.step, log.confident_top1, ".", color=RED, label="of these right, %")
    share = f", {100 * right / count:.0f} % of them right" if count else ""
    title = f"From iteration {start} on: {count:.0f} confident pseudo-labels used{share}"
    axis.set(title=title, xlabel="iteration", ylabel="%", ylim=(0, 102), xlim=(0, p.steps))
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.45), fontsize=8, frameon=True)
    return figures.described(
        figure,
        f"""Over {p.steps} iterations, confident clips go from {log.confident_pct.iloc[0]:.0f} to
        {log.confident_pct.iloc[-1]:.0f} % of the unlabelled ones. {title}.""",
    )


def pulls(network: nn.Module, batch: dict, p: Params) -> dict[str, float]:
    """How hard each summand of equation 5, with its λ at the end of the run, pulls at the backbone's weights:
    the length of its gradient there, for one training batch (an item of ``sampling.Batches``)."""
    method, network = methods.METHODS[p.method], copy.deepcopy(network).train()
    weights = list(network.backbone.parameters())
    batch = {k: v.to(weights[0].device) for k, v in batch.items() if isinstance(v, Tensor)}
    out = methods.forward(network, None, batch, method, p)
    lengths = {}
    for name in method.terms:
        loss, _ = methods.total_loss(replace(method, terms=(name,)), out, p.steps, p)
        grads = torch.autograd.grad(loss, weights, retain_graph=True)
        lengths[name] = float(nn.utils.get_total_norm(grads))
    return lengths


def pulls_chart(table: pd.DataFrame) -> Figure:
    """The pulls of each summand (columns) after some iterations (index)."""
    figure, axis = plt.subplots(figsize=(8, 3.2))
    for i, (name, colour) in enumerate(zip(table, (RED, ORANGE, BLUE), strict=False)):
        at = np.arange(len(table)) + 0.27 * (i - 1)
        bars = axis.bar(at, table[name], 0.25, color=colour, label=name)
        axis.bar_label(bars, [f"{v:.2g}" if v > 1e-4 else "0" for v in table[name]], fontsize=8)
    axis.set(yscale="log", xticks=range(len(table)), xticklabels=table.index, xlabel="after iteration")
    axis.set(ylabel="length of the gradient")
    axis.set_ylim(1e-3, 3 * table.to_numpy().max())  # below, there is rounding
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    last = ", ".join(f"{name} {value:.2g}" for name, value in table.iloc[-1].items())
    return figures.described(
        figure,
        f"Length of each loss's gradient at the backbone, at {len(table)} stages of training. Last: {last}.",
    )
