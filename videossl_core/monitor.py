"""What is watched while a run trains: the means for its log, and that every number is a number."""

import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from videossl_core import losses, methods

if TYPE_CHECKING:
    from videossl_core.params import Params


class Window:
    """Means over the steps between two rows of the log; ``state`` is kept in checkpoints."""

    def __init__(self, state: dict | None = None):
        self.state = state or {"steps": 0, "clips": 0, "seconds": 0.0, "sums": {}}

    def add(self, values: dict[str, float], clips: int, seconds: float) -> None:
        sums = self.state["sums"]
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        for name, value in (("steps", 1), ("clips", clips), ("seconds", seconds)):
            self.state[name] += value

    def close(self) -> dict[str, float]:
        """The row, and a fresh window. confident_top1 is the true accuracy of the confident pseudo-labels in
        percent, known only because the data set's labels are; empty while none is confident or known."""
        s = self.state
        row = {name: value / s["steps"] for name, value in s["sums"].items()}
        if "confident" in row:
            right, known, sure = (row.pop(f"confident{which}") for which in ("_right", "_known", ""))
            row |= {"confident_pct": 100 * sure, "confident_top1": 100 * right / known if known else None}
        row["clips_per_s"] = round(s["clips"] / s["seconds"], 2)
        self.__init__()
        return row


class Events:
    """The rows of log.csv and metrics.csv as event files for TensorBoard.

    Each start makes them anew from its checkpoint, like the tables, so that no step is missing or there twice
    after a kill, and TensorBoard, should it be open, is told to forget what it has read.
    """

    def __init__(self, folder: Path, state: dict):
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self.writer = SummaryWriter(folder, purge_step=0)
        self.add(state["log"] + state["metrics"])

    def close(self) -> None:
        self.writer.close()

    @staticmethod
    def check_installed() -> None:
        """Raises ModuleNotFoundError with the command that helps."""
        if find_spec("tensorboard") is None:
            raise ModuleNotFoundError(
                "tensorboard = True needs a package that is not here: pip install 'tensorboard>=2.19,<3'"
            )

    def add(self, rows: list[dict]) -> None:
        for row in rows:
            group = row.get("subset", "train")
            for name, value in row.items():
                if name not in ("step", "subset", "videos") and value is not None:
                    self.writer.add_scalar(f"{group}/{name}", value, row["step"])
        self.writer.flush()


@torch.no_grad()
def values(
    loss: Tensor, parts: dict[str, Tensor], out: methods.Outputs, batch: dict, p: "Params"
) -> dict[str, float]:
    """What the log says of one step; fetched from the device all at once."""
    found = {"loss": loss.detach()} | {f"loss_{name}": value for name, value in parts.items()}
    unlabelled = out["classes"][len(out["labels"]) :]
    if len(unlabelled):
        sure = losses.confident(unlabelled, p.delta)
        right, known = unlabelled.argmax(-1) == batch["hidden"], batch["hidden"] >= 0
        found |= {"confident": sure.float().mean(), "confident_known": (sure & known).float().mean()}
        found["confident_right"] = (sure & right).float().mean()
    return dict(zip(found, torch.stack([v.float() for v in found.values()]).tolist(), strict=True))


def check_step(step: int, said: dict[str, float], network: nn.Module) -> None:
    """Before the weights are changed: are the loss and all gradients numbers?

    Raises:
        FloatingPointError: names the step, and the loss part or the parameters.
    """
    if not math.isfinite(said["loss"]):
        parts = [f"{n.removeprefix('loss_')} = {v:g}" for n, v in said.items() if n.startswith("loss_")]
        raise FloatingPointError(f"step {step}: the loss is not finite ({', '.join(parts)})")
    grads = {n: w.grad for n, w in network.named_parameters() if w.grad is not None}
    if bad := _not_finite(grads):
        raise FloatingPointError(f"step {step}: the gradient of {bad} is not finite")


def check_weights(step: int, network: nn.Module) -> None:
    """Before a checkpoint: a step can make infinite weights of finite gradients.

    Raises:
        FloatingPointError: names the step and the parameters or batch-norm statistics.
    """
    values = {n: v for n, v in network.state_dict().items() if v.is_floating_point()}
    if bad := _not_finite(values):
        raise FloatingPointError(f"after step {step}: the weights of {bad} are not finite")


@torch.no_grad()
def _not_finite(tensors: dict[str, Tensor]) -> str:
    """Names of the tensors that are not finite; one number is fetched while all are well."""
    if math.isfinite(nn.utils.get_total_norm(list(tensors.values())).item()):
        return ""
    bad = [n for n, t in tensors.items() if not t.isfinite().all()]
    bad = bad or [max(tensors, key=lambda n: tensors[n].abs().max().item())]  # finite, but its square is not
    return ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
