"""What the log says about a step, and the check that its numbers, gradients and weights are finite."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from videossl_core import losses
from videossl_core.distributed import Ranks
from videossl_core.needs import Batch, Outputs
from videossl_core.params import Params


@torch.no_grad()
def measure(
    loss: Tensor, parts: dict[str, Tensor], out: Outputs, batch: Batch, p: Params
) -> dict[str, Tensor]:
    """The log's numbers of one step, each () on the device: a GPU need not wait until they are fetched."""
    values = {"loss": loss.detach()} | {f"loss_{name}": value for name, value in parts.items()}
    unlabelled = out["classes"][len(batch["labels"]) :]
    if len(unlabelled):
        sure = losses.confident(unlabelled, p.delta)
        right, known = unlabelled.argmax(-1) == batch["hidden"], batch["hidden"] >= 0
        values |= {"confident": sure.float().mean(), "confident_known": (sure & known).float().mean()}
        values["confident_right"] = (sure & right).float().mean()
    return values


def fetch(steps: list[dict[str, Tensor]], ranks: Ranks | None = None) -> list[dict[str, float]]:
    """The same of some steps as numbers, fetched from the device at once; of several processes the mean."""
    table = torch.stack([torch.stack([value.float() for value in values.values()]) for values in steps])
    table = ranks.mean(table) if ranks else table
    return [dict(zip(steps[0], row, strict=True)) for row in table.tolist()]


def log_values(
    loss: Tensor, parts: dict[str, Tensor], out: Outputs, batch: Batch, p: Params
) -> dict[str, float]:
    """``measure`` and ``fetch`` of one step."""
    return fetch([measure(loss, parts, out, batch, p)])[0]


def mean_values(window: list[dict[str, float]]) -> dict[str, float | None]:
    """Means over the steps between two rows of the log. confident_top1 is the true accuracy of the confident
    pseudo-labels in percent, known only because the data set's labels are; empty while none is confident or
    known."""
    row: dict[str, Any] = {n: sum(v[n] for v in window) / len(window) for n in window[0]}
    seconds, clips = (row.pop(name) for name in ("seconds", "clips"))
    if "confident" in row:
        right, known, sure = (row.pop(f"confident{which}") for which in ("_right", "_known", ""))
        row |= {"confident_pct": 100 * sure, "confident_top1": 100 * right / known if known else None}
    return row | {"clips_per_s": round(clips / seconds, 2)}


def check_loss(step: int, values: dict[str, float]) -> None:
    """Raises FloatingPointError with the parts of a loss that is not finite."""
    if not math.isfinite(values["loss"]):
        parts = [f"{n.removeprefix('loss_')} = {v:g}" for n, v in values.items() if n.startswith("loss_")]
        raise FloatingPointError(f"step {step}: the loss is not finite ({', '.join(parts)})")


@torch.no_grad()
def check_finite(tensors: dict[str, Tensor], what: str) -> None:
    """Raises FloatingPointError that names the tensors which are not finite; while all are, one number is
    fetched."""
    if math.isfinite(nn.utils.get_total_norm(list(tensors.values())).item()):
        return
    bad = [n for n, t in tensors.items() if not t.isfinite().all()]
    bad = bad or [max(tensors, key=lambda n: tensors[n].abs().max().item())]  # finite, but its square is not
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise FloatingPointError(f"{what} {', '.join(bad[:3])}{more} is not finite")
