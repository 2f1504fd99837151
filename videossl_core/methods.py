"""The paper's seven methods and four more as a table: which losses each adds up (Table 1, section 4.2).

A new method is a row of METHODS; a new loss is a function in ``losses`` and a row of TERMS.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videossl_core import losses
from videossl_core.needs import NEEDS, Batch, Outputs, rotated_clips
from videossl_core.params import Params


@dataclass(frozen=True)
class Term:
    """One summand of equation 5: its values per example, its weight at a step, and what it needs."""

    loss: Callable[[Outputs, Batch, Params], Tensor]
    weight: Callable[[int, Params], float] = lambda step, p: 1.0
    needs: tuple[str, ...] = ()  # rows of needs.NEEDS


def lambda_u(step: int, p: Params) -> float:
    """λ_u of equation 5: 1 from iteration τ on (4.1: τ = 2/3 of all), 0 or rising linearly before."""
    start = p.tau * p.steps
    if step >= start:
        return 1.0
    return step / start if p.lambda_u_warmup == "linear" else 0.0


def consistency_weight(step: int, p: Params) -> float:
    """Mean teacher's sigmoid-shaped ramp exp(−5 (1 − x)²) to its largest weight."""
    ramp = p.consistency_ramp * p.steps
    x = min(1.0, step / ramp) if ramp else 1.0
    return p.consistency_weight * math.exp(-5 * (1 - x) ** 2)


def _supervised(out: Outputs, batch: Batch, p: Params) -> Tensor:
    each = losses.supervised_loss(out["classes"][: len(batch["labels"])], batch["labels"])
    return each * batch["label_weights"] if "label_weights" in batch else each


def _pseudo(out: Outputs, batch: Batch, p: Params) -> Tensor:
    unlabelled = out["classes"][len(batch["labels"]) :]
    return losses.pseudo_label_loss(unlabelled, p.delta, p.T, p.below_threshold, p.confident_target)


def _distil(out: Outputs, batch: Batch, p: Params) -> Tensor:
    return losses.distillation_loss(out["embedding"], losses.soften(batch["teacher"], p.teacher_temperature))


def _consistency(out: Outputs, batch: Batch, p: Params) -> Tensor:
    return losses.consistency_loss(out["classes"], out["ema_classes"])


def _fixmatch(out: Outputs, batch: Batch, p: Params) -> Tensor:
    return losses.fixmatch_loss(out["classes"][len(batch["labels"]) :], out["strong_classes"], p.delta)


def rotations(out: Outputs, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
    """S4L: logits (R, N, 4) of N clips at R rotations each, and the quarter turns (R, N) of these."""
    which = rotated_clips(batch, p)
    if p.s4l_rotations == "all":
        logits = torch.cat([out["rotation"][which], out["turn_rotation"]]).unflatten(0, (4, -1))
        return logits, torch.arange(4, device=logits.device)[:, None].expand(logits.shape[:2])
    return out["turn_rotation"][None], batch["turn"][which][None]


def _rotation(out: Outputs, batch: Batch, p: Params) -> Tensor:
    logits, turns = rotations(out, batch, p)
    each = losses.rotation_loss(logits.flatten(0, 1), turns.flatten())
    return each.view_as(turns).mean(0)  # a clip counts once, however many turns it is seen at


TERMS: dict[str, Term] = {
    "supervised": Term(_supervised),
    "pseudo": Term(_pseudo, lambda_u, ("unlabelled",)),
    "distil": Term(_distil, lambda step, p: p.lambda_d, ("unlabelled", "teacher")),
    "consistency": Term(_consistency, consistency_weight, ("unlabelled", "other")),
    "fixmatch": Term(_fixmatch, needs=("unlabelled", "strong")),
    "rotation": Term(_rotation, lambda step, p: p.s4l_weight, ("unlabelled", "turn")),
}


@dataclass(frozen=True)
class Method:
    """A column of the paper's tables: the losses of a network, or the teacher's features for ``probe``."""

    title: str
    terms: tuple[str, ...] = ()
    features: str = ""  # mean, mean_and_motion

    @property
    def needs(self) -> tuple[str, ...]:
        """Rows of NEEDS, in the order of that table."""
        return tuple(name for name in NEEDS if any(name in TERMS[t].needs for t in self.terms))

    def heads(self, classes: int, p: Params) -> dict[str, int]:
        """The network's outputs: p(x), and q(v) or the rotation where a loss needs it."""
        heads = {"classes": classes}
        for name in self.needs:
            heads |= NEEDS[name].heads(p)
        return heads

    def labelled_clips(self, batch_size: int) -> int:
        """3.2: half of a batch labelled, half not; the supervised baseline uses only labelled clips."""
        return batch_size // 2 if "unlabelled" in self.needs else batch_size


METHODS: dict[str, Method] = {
    "supervised": Method("Supervised", ("supervised",)),
    "pseudo_label": Method("PL", ("supervised", "pseudo")),
    "mean_teacher": Method("MT", ("supervised", "consistency")),
    "sd": Method("SD", ("supervised", "distil")),
    "mt_sd": Method("MT+SD", ("supervised", "consistency", "distil")),
    "s4l": Method("S4L", ("supervised", "rotation")),
    "videossl": Method("VideoSSL", ("supervised", "pseudo", "distil")),
    # Not in the paper
    "probe": Method("Frozen teacher", features="mean"),
    "probe_motion": Method("Frozen teacher, motion", features="mean_and_motion"),
    "fixmatch": Method("FixMatch", ("supervised", "fixmatch")),
    "videossl_plus": Method("VideoSSL+", ("supervised", "fixmatch", "distil")),
}


def forward(network: nn.Module, ema: nn.Module | None, batch: Batch, method: Method, p: Params) -> Outputs:
    """One pass over all clips of the batch and the views that the method's losses need."""
    rows = {name: NEEDS[name] for name in method.needs}
    views = {name: row.views(batch, p) for name, row in rows.items() if row.views}
    clips = torch.cat([batch["clips"], *views.values()]) if views else batch["clips"]
    sizes = [len(batch["clips"]), *map(len, views.values())]
    out: Outputs = {}
    for head, logits in network(clips).items():
        out[head], *more = logits.split(sizes)
        out |= {f"{name}_{head}": part for name, part in zip(views, more, strict=True)}
    with torch.no_grad():
        for row in rows.values():
            if row.averaged and ema is not None:
                out |= row.averaged(ema, batch)
    return out


def total_loss(
    method: Method, out: Outputs, batch: Batch, step: int, p: Params
) -> tuple[Tensor, dict[str, Tensor]]:
    """Equation 5 at one step, and its parts for the log (unweighted means over their own examples).

    The equations sum over the batch. ``loss_reduction = batch`` divides every sum by the one batch size
    K + U, a constant that the learning rate absorbs, so the parts keep the ratios of equation 5; ``mean``
    divides each by its own number of examples, which doubles L_s and L_u against L_d.
    """
    total = out["classes"].new_zeros(())
    parts: dict[str, Tensor] = {}
    for name in method.terms:
        term = TERMS[name]
        each = term.loss(out, batch, p)
        parts[name] = each.detach().mean()
        if weight := term.weight(step, p):
            count = len(out["classes"]) if p.loss_reduction == "batch" else len(each)
            total = total + weight * each.sum() / count
    return total, parts
