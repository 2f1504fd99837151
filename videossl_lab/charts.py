"""The tour's charts: what each loss of the paper does to real clips. Every number comes from ``losses``,
``methods`` and autograd; here they are only drawn."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from videossl_core import losses, methods
from videossl_core.params import Params
from videossl_lab import plots
from videossl_lab.clips import teacher_classes
from videossl_lab.tour import Clips

BLUE, ORANGE, RED, GREY = "#0072b2", "#e69f00", "#d55e00", "#bbbbbb"


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each clip (N,), and by autograd the gradient of their sum at the logits (N, outputs)."""
    x = logits.detach().clone().requires_grad_()
    each = loss(x)
    each.sum().backward()
    return each.detach(), x.grad


def supervised_chart(logits: Tensor, label: int, classes: list[str], shift: float) -> Figure:
    """Equation 1 at one clip's logits (C,), that of its true class moved by ``shift``."""
    y = torch.eye(len(classes), dtype=logits.dtype)[label]
    shifts = torch.linspace(-10, 10, 81, dtype=logits.dtype)[:, None]
    curve = losses.supervised_loss(logits + shifts * y, torch.full((81,), label))
    moved = logits + shift * y
    each, grad = gradient(lambda x: losses.supervised_loss(x, torch.tensor([label])), moved[None])
    p, step = moved.softmax(-1), -grad[0]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4))
    for axis, values in ((left, p), (middle, step)):
        axis.barh(classes, values.numpy(), color=np.where(y > 0, RED, GREY))
        axis.invert_yaxis()
    left.set(xlim=(0, 1), title="p(x)")
    left.tick_params(axis="y", labelsize=8)
    middle.set(xlim=(-1, 1), title="y − p(x): where the step goes", yticklabels=[])
    right.plot(shifts, curve, color="black")
    right.plot(shift, each[0], "o", color=RED)
    right.set(title=f"$L_s$ = {each[0]:.2f}", xlabel="shift of the true class's logit")
    text = f"""Three charts for a clip of class {classes[label]}. Its probability is {p[label]:.2f}, the loss
        {each[0]:.2f}; a step raises its logit by {step[label]:.2f} and lowers the {len(p) - 1} others."""
    return plots.described(figure, text)


def confidence_chart(logits: Tensor, truth: Tensor, delta: float, T: float) -> Figure:
    """Equations 2 and 3 over many unlabelled clips: how many are confident, how many of these are right, and
    how long the gradient is that each sends to its logits, as the equation is written and with one-hot ŷ."""
    (p, best), sure = logits.softmax(-1).max(-1), losses.confident(logits, delta)
    right = best == truth
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5.4), sharex=True)
    bars = {"color": [BLUE, ORANGE], "hatch": ["", "///"], "label": ["right", "wrong"]}
    above.hist([p[right].numpy(), p[~right].numpy()], np.linspace(0, 1, 41), stacked=True, **bars)
    share = f", {100 * right[sure].double().mean():.0f} % of them right" if sure.any() else ""
    title = f"δ = {delta:g}: {int(sure.sum())} of {len(p)} clips are confident{share}"
    above.set(title=title, ylabel="unlabelled clips")
    words = []
    for target, name, style in (("literal", "ŷ as written", "o"), ("one_hot", "ŷ one-hot", "x")):
        loss = partial(losses.pseudo_label_loss, delta=delta, T=T, confident_target=target)
        length = gradient(loss, logits)[1].norm(dim=-1)
        below.plot(p, length, style, color=BLUE if style == "o" else RED, label=name, ms=4)
        words.append(f"{name} at most {length.max():.2g}")
    below.set(xlabel="largest $p^c(z)$", ylabel="length of $∂L_u/∂$logits", xlim=(0, 1.01))
    below.set_yscale("symlog", linthresh=1e-3)
    below.set_ylim(0, 30)
    for axis in (above, below):
        axis.legend(loc="upper left")
        axis.axvline(delta, color="black", ls="--", lw=1)
    text = f"""Histogram of the confidence of {len(p)} unlabelled clips, right and wrong ones. {title}.
        Below it the gradient of each clip: zero left of δ; right of it, {", ".join(words)}."""
    return plots.described(figure, text)


def targets_chart(
    clips: Clips, logits: Tensor, classes: list[str], examples: list[int], delta: float, T: float, target: str
) -> Figure:
    """Equations 2 and 3 for the clips at these positions: p(z), ŷ, and the step −∂L_u/∂logits; ``target`` is
    the ``confident_target`` of ``losses.pseudo_labels``."""
    z = logits[examples]
    y = losses.pseudo_labels(z.log_softmax(-1), delta, confident_target=target)
    _, grad = gradient(partial(losses.pseudo_label_loss, delta=delta, T=T, confident_target=target), z)
    p, best = z.softmax(-1).topk(min(4, len(classes)))
    sure = ["confident" if c else "not confident" for c in losses.confident(z, delta)]
    truth = clips.rows.class_name[examples]
    titles = [f"{s}, p = {q[0]:.3f}; in truth {name}" for s, q, name in zip(sure, p, truth, strict=True)]
    values = {"p(z)": p, "ŷ": y.gather(1, best), "the step, −∂L_u/∂logits": -grad.gather(1, best)}
    return _clips_chart(clips, examples, titles, np.array(classes)[best], values)


def teacher_chart(clips: Clips, embedding: Tensor, examples: list[int], temperature: float) -> Figure:
    """Equation 4 clip by clip: the teacher's h(a) at a temperature, the network's q(v), and the step."""
    v, h = embedding[examples], losses.soften(clips.teacher[examples], temperature)
    each, grad = gradient(lambda x: losses.distillation_loss(x, h), v)
    entropy = torch.special.entr(h).sum(-1)
    titles = [f"entropy of h(a) {e:.2f} nats, L_d {loss:.2f}" for e, loss in zip(entropy, each, strict=True)]
    highest, best = h.topk(5)
    q, step = v.softmax(-1).gather(1, best), -grad.gather(1, best)
    values = {"q(v)": q, "h(a)": highest, "the step, h(a) − q(v)": step}
    return _clips_chart(clips, examples, titles, np.array(teacher_classes(h.shape[1]))[best], values)


def _clips_chart(
    clips: Clips, examples: list[int], titles: list[str], outputs: np.ndarray, values: dict[str, Tensor]
) -> Figure:
    """A row for each of these clips: its frame; over K of the network's outputs, two distributions as bars;
    the step. ``outputs`` (N, K) are names, ``values`` the distributions and the step by name, each (N, K)."""
    size, widths = (10, 1.9 * len(titles) + 0.4), (1.3, 3, 2.4)
    figure, axes = plt.subplots(len(titles), 3, figsize=size, width_ratios=widths, squeeze=False)
    ours, targets, steps = (tensor.numpy() for tensor in values.values())
    y, names = np.arange(outputs.shape[1]), list(values)
    steps = np.where(abs(steps) < 1e-12, 0, steps)  # p − p, but for rounding
    for i, (left, middle, right) in enumerate(axes):
        middle_frame = clips.pixels[examples[i], :, clips.pixels.shape[2] // 2]
        left.imshow(middle_frame.permute(1, 2, 0).numpy(), interpolation="nearest")
        left.axis("off")
        middle.barh(y - 0.2, ours[i], 0.38, color=BLUE, label=names[0])
        middle.barh(y + 0.2, targets[i], 0.38, color=ORANGE, label=names[1])
        middle.set(xlim=(0, 1.02), ylim=(len(y) - 0.5, -0.5))
        middle.set_yticks(y, outputs[i], fontsize=8)
        middle.set_title(titles[i], fontsize=9, loc="left")
        bars = right.barh(y, steps[i], color=np.where(steps[i] > 0, BLUE, RED))
        right.bar_label(bars, [f"{v:+.2g}" if v else "0" for v in steps[i]], padding=4, fontsize=8)
        far = max(0.5, 1.5 * abs(steps[i]).max())
        right.set(xlim=(-far, far), ylim=middle.get_ylim(), yticks=y, yticklabels=[])
    axes[0, 1].legend(loc="lower right", fontsize=8)
    axes[0, 2].set_title(names[2], fontsize=9)
    words = (f"{t}; largest step {abs(s).max():.2g}" for t, s in zip(titles, steps, strict=True))
    return plots.described(figure, f"For {len(titles)} clips {', '.join(names)}. {'. '.join(words)}.")


def tau_chart(log: pd.DataFrame, p: Params, tau: float) -> Figure:
    """λ_u of equation 5 over the iterations of a run, and the pseudo-labels that it would let in."""
    p = p.but(tau=tau)
    weight = np.array([methods.lambda_u(step, p) for step in range(p.steps + 1)])
    # Summed over the iterations of each row of the log: clips that are confident and count, and right ones.
    iterations = np.diff(np.cumsum([0, *weight])[[0, *log.step]])
    unlabelled = p.batch_size - methods.METHODS[p.method].labelled_clips(p.batch_size)
    sure = iterations * unlabelled * log.confident_pct / 100
    right = (sure * log.confident_top1.fillna(0) / 100).sum()
    share = f", {100 * right / sure.sum():.0f} % of them right" if sure.sum() else ""
    title = f"From iteration {(weight < 1).sum()} on: {sure.sum():.0f} confident pseudo-labels used{share}"
    figure, axis = plt.subplots(figsize=(8, 3.6))
    band = {"color": ORANGE, "alpha": 0.3, "lw": 0, "label": "$λ_u$ = 1: they are used"}
    axis.fill_between(np.arange(p.steps + 1), 102 * weight, step="post", **band)
    axis.plot(log.step, log.confident_pct, color=BLUE, label="confident, % of the unlabelled clips")
    axis.plot(log.step, log.confident_top1, ".", color=RED, label="of these right, %")
    axis.set(title=title, xlabel="iteration", ylabel="%", ylim=(0, 102), xlim=(0, p.steps))
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.45), fontsize=8, frameon=True)
    text = f"""Over {p.steps} iterations, confident clips go from {log.confident_pct.iloc[0]:.0f} to
        {log.confident_pct.iloc[-1]:.0f} % of the unlabelled ones. {title}."""
    return plots.described(figure, text)


def pulls(network: nn.Module, batch: dict, p: Params) -> dict[str, float]:
    """How hard each summand of equation 5, with its λ at the end of the run, pulls at the backbone's weights:
    the length of its gradient there, for one training batch (an item of ``batches.Batches``)."""
    method, network = methods.METHODS[p.method], copy.deepcopy(network).train()
    weights = list(network.backbone.parameters())
    batch = {k: v.to(weights[0].device) for k, v in batch.items() if isinstance(v, Tensor)}
    out = methods.forward(network, None, batch, method, p)
    lengths = {}
    for name in method.terms:
        loss, _ = methods.total_loss(replace(method, terms=(name,)), out, batch, p.steps, p)
        grads = torch.autograd.grad(loss, weights, retain_graph=True)
        lengths[name] = float(nn.utils.get_total_norm(grads))
    return lengths


def pulls_chart(table: pd.DataFrame) -> Figure:
    """The pulls of each summand (columns) after some iterations (index)."""
    axis = table.plot.bar(figsize=(8, 3.2), color=[RED, ORANGE, BLUE], width=0.8, rot=0, log=True)
    for bars in axis.containers:
        axis.bar_label(bars, [f"{v:.2g}" if v > 1e-4 else "0" for v in bars.datavalues], fontsize=8)
    axis.set(xlabel="after iteration", ylabel="length of the gradient")
    axis.set_ylim(1e-3, 3 * table.to_numpy().max())  # below, there is rounding
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    last = ", ".join(f"{name} {value:.2g}" for name, value in table.iloc[-1].items())
    text = f"Length of each loss's gradient at the backbone, {len(table)} stages of training. Last: {last}."
    return plots.described(axis.figure, text)
