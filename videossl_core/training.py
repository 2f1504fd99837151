"""The loop: one forward pass over labelled and unlabelled clips, the method's losses, evaluation, resume."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from videossl_core import evaluation, files, methods, models, monitor, precision, runs
from videossl_core.monitor import Window
from videossl_core.pool import quiet
from videossl_core.prepare import Data, device, draw, prepare
from videossl_core.sampling import Batches, loader
from videossl_core.teacher import IMAGENET_CLASSES

if TYPE_CHECKING:
    from videossl_core.params import Params


def build_network(p: "Params", classes: int) -> models.VideoNet:
    """The network with the heads its method trains; the same seed gives the same first weights."""
    torch.manual_seed(p.seed)
    heads = methods.METHODS[p.method].heads(classes, len(IMAGENET_CLASSES))
    return models.VideoNet(p.backbone, heads, p.shortcut, p.width)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """Mean teacher: the exponential moving average of the weights, batch-norm statistics copied.

    The decay starts low, min(decay, 1 − 1/(n + 1)) after n updates, so that a short run is not an average
    of its random start.
    """

    def update(averages: list[Tensor], values: list[Tensor], n) -> None:
        get_ema_multi_avg_fn(min(decay, 1 - 1 / (int(n) + 1)))(averages, values, n)

    ema = AveragedModel(network, multi_avg_fn=update)
    return ema.eval().requires_grad_(False)


@contextmanager
def reproducible(strictly: bool) -> Iterator[None]:
    """Where asked for, PyTorch takes algorithms that give the same bits each time, or raises an error. A CPU
    does so anyway."""
    was = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if strictly:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was[0])
        torch.backends.cudnn.benchmark = was[1]


def learning_rate(step: int, p: "Params") -> float:
    """4.1: divided by ten every ``lr_drop_every`` iterations."""
    return p.lr * 0.1 ** (step // p.lr_drop_every)


def forward(
    network: nn.Module, ema: nn.Module | None, batch: dict, method: methods.Method, p: "Params"
) -> methods.Outputs:
    """One pass over all clips of the batch, and whatever else the method's losses ask for."""
    clips, k = batch["clips"], len(batch["labels"])
    out: methods.Outputs = {"labels": batch["labels"]}
    if "rotations" not in method.needs:
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


def train(
    p: "Params",
    progress=quiet,
    on_log: Callable[[dict], None] | None = None,
    on_eval: Callable[[pd.DataFrame, pd.DataFrame], None] | None = None,
) -> runs.Run:
    """Train one method on one label split and evaluate it; goes on where an earlier start stopped.

    Args:
        progress: wraps the long loops, see ``pool.quiet``.
        on_log: called with each row of log.csv (losses, learning rate, pseudo-labels, clips/s).
        on_eval: called with log.csv and metrics.csv so far after each evaluation.

    Raises:
        runs.RunError: the folder holds another run, or its split or classes are not those of the data.
        FloatingPointError: a loss, gradient or weight is not finite; the last good checkpoint stays.
    """
    run = runs.Run(p.run_dir)
    if runs.is_done(run, p):
        return run
    with runs.alone(run), reproducible(p.deterministic):
        return _train(run, p, progress, on_log, on_eval)


def _train(run: runs.Run, p: "Params", progress, on_log, on_eval) -> runs.Run:
    saved_split = runs.begin(run, p)
    data = prepare(p, split=saved_split, progress=progress)
    if saved_split is not None:
        runs.check_split(run, saved_split, draw(p, data.index, data.rejected.video))
    where = device(p)
    method = methods.METHODS[p.method]
    network = build_network(p, len(data.classes)).to(where)
    chosen = precision.choose(p, network, where)
    chosen.apply(network)
    ema = averaged(network, p.ema_decay) if "ema" in method.needs else None
    optimizer = torch.optim.SGD(
        network.parameters(), p.lr, p.momentum, dampening=p.dampening, weight_decay=p.weight_decay
    )
    scaler = torch.amp.GradScaler(where.split(":")[0], enabled=chosen.dtype == "fp16")
    parts_of_state = {"model": network, "ema": ema, "optimizer": optimizer, "scaler": scaler}
    facts = data.facts() | {"method": p.method}
    state = {"step": 0, "seconds": 0.0, "metrics": [], "log": [], "window": None}
    checkpoint = run.read_checkpoint() if saved_split is not None else None
    if checkpoint is None:
        runs.describe(run, p, data, where, str(chosen))
    else:
        runs.check_facts(run, checkpoint, facts | {"precision": asdict(chosen)}, [*state, *parts_of_state])
        for name, part in parts_of_state.items():
            if part is not None:
                part.load_state_dict(checkpoint[name])
        state = {k: checkpoint[k] for k in state}
        run.write_tables(state)
        runs.note_resume(run, state["step"], where)
    judge = network if ema is None or p.eval_model == "student" else ema
    window, clock = Window(state["window"]), time.perf_counter()
    saved = clock

    def save() -> None:
        nonlocal saved
        monitor.check_weights(state["step"], network)
        state["window"] = window.state
        weights = {name: part.state_dict() if part else None for name, part in parts_of_state.items()}
        run.write_checkpoint(state | facts | weights | {"precision": asdict(chosen)})
        saved = time.perf_counter()

    def evaluate_if_due() -> None:
        """The checkpoint before it spares a run that is killed while it evaluates the way up to here."""
        nonlocal clock
        step = state["step"]
        reached = step and (step % p.eval_every == 0 or step == p.steps)
        if not reached or any(row["step"] == step for row in state["metrics"]):
            return
        save()
        _evaluate(judge, p, data, where, state, run, step == p.steps)
        clock = _tick(state, clock)
        save()
        if on_eval:
            on_eval(pd.DataFrame(state["log"]), pd.DataFrame(state["metrics"]))

    evaluate_if_due()
    steps = range(state["step"], p.steps)
    feed = loader(Batches(p, method, data.split, data.store, data.targets), p, where, sampler=steps)
    for batch in progress(feed, len(steps), f"training {method.title}"):
        step = batch.pop("step")
        batch = {name: value.to(where, non_blocking=True) for name, value in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, p)
        out = forward(network, ema, batch, method, p)
        loss, parts = methods.total_loss(method, out, step, p)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if not scaler.is_enabled() or scaler.get_scale() <= 1 or not math.isfinite(loss.item()):
            monitor.check_step(step, loss.item(), parts, network)  # fp16 skips a step that overflows
        scaler.step(optimizer)
        scaler.update()
        if ema is not None:
            ema.update_parameters(network)
        before, clock = clock, _tick(state, clock)
        window.add(loss.item(), parts, out, batch, clock - before, p)
        state["step"] = done = step + 1
        if done % p.log_every == 0 or done == p.steps:
            row = {"step": done, "lr": learning_rate(step, p), "seconds": round(state["seconds"], 3)}
            state["log"].append(row | window.close())
            if on_log:
                on_log(state["log"][-1])
        evaluate_if_due()
        if clock - saved >= 60 * p.checkpoint_minutes:
            save()
    runs.finish(run, train_seconds=round(state["seconds"], 1), rejected=len(data.rejected))
    return run


def _tick(state: dict, since: float) -> float:
    """Add the time since then to the run's; what an interrupted start spent after its checkpoint is lost."""
    now = time.perf_counter()
    state["seconds"] += now - since
    return now


def _evaluate(
    judge: nn.Module, p: "Params", data: Data, where: str, state: dict, run: runs.Run, last: bool
) -> None:
    """Figure 4: accuracy on the test split and on the unlabelled training videos, whose labels the loss
    never sees. All test videos at the end, evenly spread ``eval_videos`` of them on the way."""
    for subset in ("test", "unlabelled"):
        rows = data.rows(subset)
        if not (last and subset == "test"):
            rows = evaluation.at_most(rows, p.eval_videos)
        if rows.empty:
            continue
        said = evaluation.predict(judge, p, rows, data.classes, data.store, where)
        state["metrics"].append(
            {"step": state["step"], "subset": subset} | said.top1() | {"videos": len(rows)}
        )
        if last and subset == "test":
            write_predictions(run, said)


def write_predictions(run: runs.Run, said: evaluation.Predictions) -> None:
    files.write_text(run.predictions_test, said.table.to_csv(index=False))
    files.write_text(run.per_class, said.per_class().to_csv(index=False))


def load_network(run: runs.Run, p: "Params") -> tuple[nn.Module, list[str]]:
    """The network of a run as it is judged (averaged where the method averages), and its classes."""
    checkpoint = run.read_checkpoint()
    if checkpoint is None:
        raise runs.RunError(f"no checkpoint in {run.folder}: train it first")
    network = build_network(p, len(checkpoint["classes"]))
    precision.Precision(**checkpoint["precision"]).apply(network)
    network.load_state_dict(checkpoint["model"])
    if checkpoint["ema"] is not None and p.eval_model != "student":
        ema = averaged(network, p.ema_decay)
        ema.load_state_dict(checkpoint["ema"])
        network = ema.module
    return network.to(device(p)).eval(), checkpoint["classes"]
