"""Equations 1 to 4 of the paper and the losses of its baselines, one small pure function each.

Every function returns one value per example, shape (N,), so that how they are summed is decided in one
place (``methods.total_loss``). N counts clips, C video classes, M the teacher's classes (1000).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def supervised_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Equation 1, one summand: −Σ_c y^c log p^c(x).

    Args:
        logits: (N, C) class scores of labelled clips, before the softmax.
        labels: (N,) class ids.
    """
    return F.cross_entropy(logits, labels, reduction="none")


def confident(logits: Tensor, delta: float) -> Tensor:
    """(N,) bool: does the largest probability reach δ? With δ > 0.5 at most one class can."""
    return logits.detach().softmax(-1).amax(-1) >= delta


def pseudo_labels(
    log_p: Tensor, delta: float = 0.95, below_threshold: str = "soft", confident_target: str = "literal"
) -> Tensor:
    """Equation 2: ŷ (N, C), where ŷ^c is 1 if p^c(z) ≥ δ and p^c(z) itself otherwise.

    It is a target, so no gradient flows through it.

    Args:
        log_p: (N, C) log-softmax of unlabelled clips.
        delta: the confidence threshold δ.
        below_threshold: what a clip without any confident class is told. ``soft`` (literal): its own
            probabilities, whose gradient is exactly zero (p − p); ``mask``: nothing, the same gradient with
            another logged value; ``entropy``: its own probabilities with the gradient kept, which minimises
            their entropy.
        confident_target: ``literal`` keeps p^c for the other classes of a confident clip, as equation 2 is
            written; the gradient is then (1 − p^c) times that of ``one_hot``, where they are 0.
    """
    p = log_p.detach().exp()
    over = p >= delta
    target = over.to(p.dtype) if confident_target == "one_hot" else torch.where(over, torch.ones_like(p), p)
    sure = over.any(-1, keepdim=True)
    unsure = {"soft": p, "mask": torch.zeros_like(p), "entropy": log_p.exp()}
    if below_threshold not in unsure:
        raise ValueError(f"below_threshold = {below_threshold!r} is not one of {', '.join(unsure)}")
    return torch.where(sure, target, unsure[below_threshold])


def pseudo_label_loss(
    logits: Tensor,
    delta: float = 0.95,
    T: float = 10.0,
    below_threshold: str = "soft",
    confident_target: str = "literal",
) -> Tensor:
    """Equation 3, one summand: −Σ_c T ŷ^c log p^c(z), for unlabelled clips with their ``pseudo_labels``.

    Args:
        logits: (N, C) class scores of unlabelled clips.
        T: the weight of equation 3.
    """
    log_p = logits.log_softmax(-1)
    return -T * (pseudo_labels(log_p, delta, below_threshold, confident_target) * log_p).sum(-1)


def soften(h: Tensor, temperature: float) -> Tensor:
    """The teacher's softmax (N, M) at another temperature: flatter above 1, sharper below, as it is at 1."""
    if temperature == 1:
        return h
    h = h.pow(1 / temperature)
    return h / h.sum(-1, keepdim=True)


def distillation_loss(embedding: Tensor, teacher: Tensor) -> Tensor:
    """Equation 4, one summand: −Σ_l h^l(a) log q^l(v), for labelled and unlabelled clips.

    Args:
        embedding: (N, M) second output of the 3D network, before the softmax that makes it q(v).
        teacher: (N, M) softmax h(a) of the image classifier on one frame a of the clip.
    """
    return -(teacher * embedding.log_softmax(-1)).sum(-1)


def consistency_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean teacher (baseline MT): squared difference of the two softmax outputs, averaged over classes.

    Args:
        logits: (N, C) of the student, which gets the gradient.
        teacher_logits: (N, C) of the weight-averaged network, which gets none.
    """
    return (logits.softmax(-1) - teacher_logits.detach().softmax(-1)).square().mean(-1)


def fixmatch_loss(weak_logits: Tensor, strong_logits: Tensor, delta: float = 0.95) -> Tensor:
    """FixMatch (Sohn et al., 2020; not in the paper): cross-entropy of the strong view against the class that
    the weak view is confident of; 0 for a clip without one.

    Args:
        weak_logits: (N, C) of unlabelled clips as every method sees them; they get no gradient.
        strong_logits: (N, C) of the same clips, distorted.
        delta: the confidence threshold δ.
    """
    each = F.cross_entropy(strong_logits, weak_logits.detach().argmax(-1), reduction="none")
    return each * confident(weak_logits, delta)


def rotation_loss(logits: Tensor, quarter_turns: Tensor) -> Tensor:
    """S4L-rotate: which multiple of 90 degrees was the clip turned by?

    Args:
        logits: (N, 4) of the rotation head.
        quarter_turns: (N,) ids 0 to 3.
    """
    return F.cross_entropy(logits, quarter_turns, reduction="none")
