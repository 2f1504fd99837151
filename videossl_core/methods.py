"""The paper's seven methods, and two beyond it, as a table: which losses each adds up, and what they need.

A new method is a row of METHODS; a new loss is a function in ``losses`` and a row of TERMS.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from videossl_core import losses

if TYPE_CHECKING:
    from videossl_core.params import Params

Outputs = dict[str, Tensor]
"""What the network said, by head, and what the batch knows. The first K clips are labelled, U are not.

classes (K+U, C) and embedding (K+U, M) logits; labels (K,); teacher (K+U, M) softmax of a frame;
ema_classes (K+U, C) of the averaged network; strong_classes (U, C) of distorted views; rotation (turns, N, 4)
logits with quarter_turns (turns, N).
"""


@dataclass(frozen=True)
class Term:
    """One summand of equation 5: values per example, their weight at a step, what must be computed."""

    loss: Callable[[Outputs, "Params"], Tensor]
    weight: Callable[[int, "Params"], float] = lambda step, p: 1.0
    needs: frozenset[str] = frozenset()  # of: unlabelled, teacher, ema, strong, rotations


def lambda_u(step: int, p: "Params") -> float:
    """λ_u of equation 5: 1 from iteration τ on (4.1: τ = 2/3 of all), 0 or rising linearly before."""
    start = p.tau * p.steps
    if step >= start:
        return 1.0
    return step / start if p.lambda_u_warmup == "linear" else 0.0


def consistency_weight(step: int, p: "Params") -> float:
    """Mean teacher's sigmoid-shaped ramp exp(−5 (1 − x)²) to its largest weight."""
    ramp = p.consistency_ramp * p.steps
    x = min(1.0, step / ramp) if ramp else 1.0
    return p.consistency_weight * math.exp(-5 * (1 - x) ** 2)


def _supervised(out: Outputs, p: "Params") -> Tensor:
    return losses.supervised_loss(out["classes"][: len(out["labels"])], out["labels"])


def _pseudo(out: Outputs, p: "Params") -> Tensor:
    unlabelled = out["classes"][len(out["labels"]) :]
    return losses.pseudo_label_loss(unlabelled, p.delta, p.T, p.below_threshold, p.confident_target)


def _distil(out: Outputs, p: "Params") -> Tensor:
    return losses.distillation_loss(out["embedding"], losses.soften(out["teacher"], p.teacher_temperature))


def _rotation(out: Outputs, p: "Params") -> Tensor:
    each = losses.rotation_loss(out["rotation"].flatten(0, 1), out["quarter_turns"].flatten())
    return each.view_as(out["quarter_turns"]).mean(0)  # a clip counts once, however many turns it is seen at


TERMS: dict[str, Term] = {
    "supervised": Term(_supervised),
    "pseudo": Term(_pseudo, lambda_u, frozenset({"unlabelled"})),
    "distil": Term(
        _distil,
        lambda step, p: p.lambda_d,
        frozenset({"unlabelled", "teacher"}),
    ),
    "consistency": Term(
        lambda out, p: losses.consistency_loss(out["classes"], out["ema_classes"]),
        consistency_weight,
        frozenset({"unlabelled", "ema"}),
    ),
    "fixmatch": Term(
        lambda out, p: losses.fixmatch_loss(
            out["classes"][len(out["labels"]) :], out["strong_classes"], p.delta
        ),
        needs=frozenset({"unlabelled", "strong"}),
    ),
    "rotation": Term(
        _rotation,
        lambda step, p: p.s4l_weight,
        frozenset({"unlabelled", "rotations"}),
    ),
}


@dataclass(frozen=True)
class Method:
    """A column of the paper's tables."""

    title: str
    terms: tuple[str, ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(TERMS[t].needs for t in self.terms))

    def heads(self, classes: int, teacher_classes: int) -> dict[str, int]:
        """The network's outputs: p(x), and q(v) or the rotation where a loss asks for it."""
        heads = {"classes": classes}
        if "teacher" in self.needs:
            heads["embedding"] = teacher_classes
        if "rotations" in self.needs:
            heads["rotation"] = 4
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
    "fixmatch": Method("FixMatch", ("supervised", "fixmatch")),
    "videossl_plus": Method("VideoSSL+", ("supervised", "fixmatch", "distil")),
}


def forward(network: nn.Module, ema: nn.Module | None, batch: dict, method: Method, p: "Params") -> Outputs:
    """One pass over all clips of the batch, and whatever else the method's losses ask for."""
    clips, k = batch["clips"], len(batch["labels"])
    out: Outputs = {"labels": batch["labels"]}
    if "strong" in batch:
        both = network(torch.cat([clips, batch["strong"]]))
        out |= {head: logits[: len(clips)] for head, logits in both.items()}
        out["strong_classes"] = both["classes"][len(clips) :]
    elif "rotations" not in method.needs:
        out |= network(clips)
    else:
        rotated = clips if p.s4l_rotate_on == "both" else clips[k:]
        if p.s4l_rotations == "all":  # the upright clips are the first of four copies
            turned = [torch.rot90(rotated, turn, (3, 4)) for turn in (1, 2, 3)]
            turns = torch.arange(4, device=clips.device)[:, None].expand(4, len(rotated))
        else:
            own = batch["turn"][-len(rotated) :]
            turned = [
                torch.stack([torch.rot90(c, int(t), (2, 3)) for c, t in zip(rotated, own, strict=True)])
            ]
            turns = own[None]
        both = network(torch.cat([clips, *turned]))
        first = len(clips) - len(rotated) if p.s4l_rotations == "all" else len(clips)
        out["classes"] = both["classes"][: len(clips)]
        out["rotation"] = both["rotation"][first:].unflatten(0, turns.shape)
        out["quarter_turns"] = turns
    if "teacher" in batch:
        out["teacher"] = batch["teacher"]
    if ema is not None:
        with torch.no_grad():
            out["ema_classes"] = ema(batch.get("other", clips))["classes"]
    return out


def total_loss(method: Method, out: Outputs, step: int, p: "Params") -> tuple[Tensor, dict[str, Any]]:
    """Equation 5 at one step, and its parts for the log (unweighted means over their own examples).

    The equations sum over the batch. ``loss_reduction = batch`` divides every sum by the one batch size
    K + U, a constant that the learning rate absorbs, so the parts keep the ratios of equation 5; ``mean``
    divides each by its own number of examples, which doubles L_s and L_u against L_d.
    """
    total = out["classes"].new_zeros(())
    parts: dict[str, Any] = {}
    for name in method.terms:
        term = TERMS[name]
        each = term.loss(out, p)
        parts[name] = each.detach().mean()
        if weight := term.weight(step, p):
            count = len(out["classes"]) if p.loss_reduction == "batch" else len(each)
            total = total + weight * each.sum() / count
    return total, parts
