"""The loop: one forward pass over labelled and unlabelled clips, the method's losses, evaluation, resume."""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record

from videossl_core import distributed, evaluation, methods, models, monitor, precision, runs
from videossl_core.data import files
from videossl_core.data.pool import quiet
from videossl_core.monitor import Window
from videossl_core.prepare import device, draw, prepare
from videossl_core.sampling import Batches, ahead, loader
from videossl_core.teacher import IMAGENET_CLASSES

if TYPE_CHECKING:
    from videossl_core.params import Params


def build_network(p: "Params", classes: int) -> models.VideoNet:
    """The network with the heads its method trains; the same seed gives the same first weights."""
    torch.manual_seed(p.seed)
    heads = methods.METHODS[p.method].heads(classes, len(IMAGENET_CLASSES))
    return models.VideoNet(p.backbone, heads, p.shortcut, p.width)


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


def train(
    p: "Params",
    progress=quiet,
    on_log: Callable[[dict], None] | None = None,
    on_eval: Callable[[pd.DataFrame, pd.DataFrame], None] | None = None,
) -> runs.Run:
    """Train one method on one label split and evaluate it; goes on where an earlier start stopped.

    Args:
        progress: wraps the long loops, see ``pool.quiet`` and ``progress.progress``.
        on_log: called with each row of log.csv (losses, learning rate, pseudo-labels, clips/s).
        on_eval: called with log.csv and metrics.csv so far after each evaluation.

    Raises:
        runs.RunError: the folder holds another run, or its split or classes are not those of the data.
        FloatingPointError: a loss, gradient or weight is not finite; the last good checkpoint stays.
    """
    run = runs.Run(p.run_dir)
    if runs.is_done(run, p):
        return run
    if p.tensorboard:
        monitor.Events.check_installed()
    if p.num_processes > 1 and not distributed.inside():
        _launch(run, p, progress, on_log, on_eval)
        return run
    where = device(p)
    with ExitStack() as stack:
        ranks = stack.enter_context(distributed.joined(where))
        stack.enter_context(reproducible(p.deterministic))
        if ranks.first:
            stack.enter_context(runs.alone(run))
        _Training(run, p, where, ranks, progress).go(on_log, on_eval)
    return run


def _launch(run: runs.Run, p: "Params", progress, on_log, on_eval) -> None:
    """Train in ``num_processes`` processes, and show here how far they are."""
    steps, shown = None, 0

    def meanwhile() -> None:
        nonlocal steps, shown
        for row in map(json.loads, rows):
            if on_log:
                on_log(row)
            if steps is None:
                steps = iter(progress(range(row["step"], p.steps + 1), p.steps, _label(p), row["step"]))
            while next(steps, p.steps) < row["step"]:
                pass
        metrics = pd.read_csv(run.metrics) if run.metrics.exists() else ()
        if on_eval and len(metrics) != shown:
            shown = len(metrics)
            if shown:
                on_eval(pd.read_csv(run.log), metrics)

    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as rows:  # log.csv waits for a checkpoint
        distributed.launch(_in_one_process, p, meanwhile, rows.name)
        meanwhile()


@record  # its error reaches the process that started it
def _in_one_process(values: dict, rows: str) -> None:
    if values["device"] in ("auto", "cpu") and not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // values["num_processes"]))
    from videossl_core.params import Params

    with open(rows, "a", encoding="utf-8") as out:
        train(Params(**values), on_log=lambda row: print(json.dumps(row), file=out, flush=True))


def _label(p: "Params") -> str:
    return f"training {methods.METHODS[p.method].title}"


class _Training:
    """One run from its last checkpoint, or its beginning, to its end."""

    def __init__(self, run: runs.Run, p: "Params", where: str, ranks: distributed.Ranks, progress=quiet):
        self.run, self.p, self.where, self.ranks = run, p, where, ranks
        self.progress = progress = progress if ranks.first else quiet
        self.method = method = methods.METHODS[p.method]
        k = method.labelled_clips(p.batch_size)
        ranks.check_shares({"labelled": k, "unlabelled": p.batch_size - k})
        saved_split = ranks.told(runs.begin(run, p) if ranks.first else None)
        self.data = data = prepare(p, split=saved_split, progress=progress)
        if saved_split is not None:
            runs.check_split(run, saved_split, draw(p, data.index, data.rejected.video))
        self.batches = Batches(p, method, data.split, data.store, data.targets, ranks.rank, ranks.count)
        network = build_network(p, len(data.classes)).to(where)
        self.precision = ranks.told(precision.choose(p, network, where) if ranks.first else None)
        self.precision.apply(network)
        self.model = ranks.wrap(network, p.sync_batch_norm, where)
        self.network = network if self.model is network else self.model.module
        self.ema = models.averaged(self.network, p.ema_decay) if "ema" in method.needs else None
        self.optimizer = torch.optim.SGD(
            network.parameters(), p.lr, p.momentum, dampening=p.dampening, weight_decay=p.weight_decay
        )
        self.scaler = torch.amp.GradScaler(where.split(":")[0], enabled=self.precision.dtype == "fp16")
        self.parts = {
            "model": self.network,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "ema": self.ema,
        }
        self.facts = data.facts() | {"method": p.method}
        self.state = {"step": 0, "seconds": 0.0, "metrics": [], "log": [], "window": None}
        checkpoint = run.read_checkpoint() if saved_split is not None else None
        if checkpoint is not None:
            self.restore(checkpoint)
        elif ranks.first:
            runs.describe(run, p, data, where, str(self.precision))
        self.events = monitor.Events(run.tensorboard, self.state) if p.tensorboard and ranks.first else None
        self.window, self.clock = Window(self.state["window"]), time.perf_counter()
        self.saved = self.clock

    def restore(self, checkpoint: dict) -> None:
        chosen = {"precision": asdict(self.precision)}
        runs.check_facts(self.run, checkpoint, self.facts | chosen, [*self.state, *self.parts])
        for name, part in self.parts.items():
            if part is not None:
                part.load_state_dict(checkpoint[name])
        self.state = {k: checkpoint[k] for k in self.state}
        if self.ranks.first:
            self.run.write_tables(self.state)
            runs.note_resume(self.run, self.state["step"], self.where)

    def save(self) -> None:
        monitor.check_weights(self.state["step"], self.network)
        self.saved = time.perf_counter()
        if not self.ranks.first:
            return
        self.state["window"] = self.window.state
        parts = {name: None if part is None else part.state_dict() for name, part in self.parts.items()}
        self.run.write_checkpoint(self.state | self.facts | parts | {"precision": asdict(self.precision)})

    def go(self, on_log, on_eval) -> None:
        p, state = self.p, self.state
        self.show(on_eval)  # what earlier starts have done
        self.evaluate_if_due(on_eval)  # killed while it evaluated
        ranks = self.ranks
        steps = range(state["step"], p.steps)
        feed = loader(self.batches, p, self.where, sampler=steps)
        for batch in self.progress(ahead(feed), p.steps, _label(p), state["step"]):
            step = batch.pop("step")
            self.step(step, {name: v.to(self.where, non_blocking=True) for name, v in batch.items()})
            state["step"] = done = step + 1
            if done % p.log_every == 0 or done == p.steps:
                row = {"step": done, "lr": learning_rate(step, p), "seconds": round(state["seconds"], 3)}
                state["log"].append(row | self.window.close())
                if self.events:
                    self.events.add(state["log"][-1:])
                if on_log and ranks.first:
                    on_log(state["log"][-1])
            self.evaluate_if_due(on_eval)
            agree = ranks.count == 1 or done % p.log_every == 0  # asking the first process takes a moment
            if agree and ranks.told(self.clock - self.saved >= 60 * p.checkpoint_minutes):
                self.save()
        if self.events:
            self.events.close()
        if ranks.first:
            minutes = {"train_seconds": round(state["seconds"], 1), "processes": ranks.count}
            runs.finish(self.run, **minutes, rejected=len(self.data.rejected))

    def step(self, step: int, batch: dict) -> None:
        """Forward, backward, checks, and the change of the weights."""
        p = self.p
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, p)
        out = methods.forward(self.model, self.ema, batch, self.method, p)
        loss, parts = methods.total_loss(self.method, out, step, p)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        values = self.ranks.mean(monitor.values(loss, parts, out, batch, p))
        if not self.scaler.is_enabled() or self.scaler.get_scale() <= 1 or not math.isfinite(values["loss"]):
            monitor.check_step(step, values, self.network)  # fp16 skips a step that overflows
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        before = self.tick()
        self.window.add(values, len(batch["clips"]) * self.ranks.count, self.clock - before)

    def tick(self) -> float:
        """Add the time since the last tick to the run's; what an interrupted start spent after its checkpoint
        is lost. Returns when the last tick was."""
        before, self.clock = self.clock, time.perf_counter()
        self.state["seconds"] += self.clock - before
        return before

    def evaluate_if_due(self, on_eval) -> None:
        """Figure 4: accuracy on the test split and on the unlabelled training videos, whose labels the loss
        never sees. All test videos at the end, evenly spread ``eval_videos`` of them on the way."""
        p, state, step = self.p, self.state, self.state["step"]
        reached = step and (step % p.eval_every == 0 or step == p.steps)
        if not reached or any(row["step"] == step for row in state["metrics"]):
            return
        self.save()  # spares a run that is killed while it evaluates the way up to here
        judge = self.network if self.ema is None or p.eval_model == "student" else self.ema
        self.ranks.share_statistics(judge)
        rows = []
        for subset in ("test", "unlabelled"):
            final = subset == "test" and step == p.steps
            asked = self.data.rows(subset)
            asked = asked[asked.label >= 0]  # of one's own unlabelled videos nobody knows the class
            if not final:
                asked = evaluation.at_most(asked, p.eval_videos)
            if asked.empty:
                continue
            said = evaluation.predict(
                judge, p, asked, self.data.classes, self.data.store, self.where, ranks=self.ranks
            )
            rows.append({"step": step, "subset": subset} | said.top1() | {"videos": len(asked)})
            if final and self.ranks.first:
                write_predictions(self.run, said)
        state["metrics"] += rows
        if self.events:
            self.events.add(rows)
        self.tick()
        self.save()
        self.show(on_eval)

    def show(self, on_eval) -> None:
        if on_eval and self.ranks.first and self.state["metrics"]:
            on_eval(pd.DataFrame(self.state["log"]), pd.DataFrame(self.state["metrics"]))


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
        ema = models.averaged(network, p.ema_decay)
        ema.load_state_dict(checkpoint["ema"])
        network = ema.module
    return network.to(device(p)).eval(), checkpoint["classes"]
