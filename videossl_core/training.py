"""The loop: one forward pass over labelled and unlabelled clips, the method's losses, evaluation."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from videossl_core import distributed, evaluation, logs, methods, models, precision, probe, runs, teacher
from videossl_core.batches import Batches, loader, prefetch
from videossl_core.data.frames import FrameStore
from videossl_core.devices import device, enough_memory, interrupts_wait, reproducible
from videossl_core.distributed import Ranks
from videossl_core.models import VideoNet
from videossl_core.needs import NEEDS, Batch
from videossl_core.networks import build_network
from videossl_core.params import Params
from videossl_core.prepare import Data, prepare
from videossl_core.sampling import seed_dropout


def learning_rate(step: int, p: Params, backbone: bool = False) -> float:
    """4.1: divided by ten every ``lr_drop_every`` iterations; that of the heads, or of the backbone."""
    first = p.backbone_lr if backbone and p.backbone_lr is not None else p.lr
    return first * 0.1 ** (step // p.lr_drop_every)


class Trainer:
    """Trains one network by one method: ``for row in Trainer(p, data): ...``

    The rows are those of log.csv and, with a ``subset``, of metrics.csv. A trainer reads clips and writes
    nothing; ``runs.OpenRun.record`` saves what it makes.

    Args:
        data: what ``prepare`` made: split, frame store, teacher targets.
        ranks: this process among those that train together.
        network: instead of the one that ``build_network`` makes.
    """

    def __init__(self, p: Params, data: Data, ranks: Ranks | None = None, network: VideoNet | None = None):
        self.p, self.data, self.ranks, self.device = p, data, ranks or Ranks(), device(p)
        self.method = methods.METHODS[p.method]
        if not self.method.terms:
            raise ValueError(
                f"method = {p.method!r} has no network to train; take training.make_trainer(p, data)"
            )
        self.batches = Batches(p, self.method, data.split, data.store, data.targets, self.ranks)
        self.network = (network or build_network(p, len(data.classes))).to(self.device)
        self.precision = self.ranks.broadcast(
            precision.choose(p, self.network, self.device) if self.ranks.first else precision.Precision()
        )
        self.precision.apply(self.network)
        self.model = self.ranks.wrap(self.network, p.sync_batch_norm, self.device)
        asks = p.teacher_view == "same" and "teacher" in self.method.needs
        self.teacher = teacher.Classifier(p.teacher, p.teacher_weights).to(self.device) if asks else None
        averages = any(NEEDS[name].averaged for name in self.method.needs)
        self.ema = models.averaged(self.network, p.ema_decay) if averages else None
        apart = [self.network] if p.backbone_lr is None else [self.network.heads, self.network.backbone]
        groups = [{"params": part.parameters()} for part in apart]
        on_gpu, half = self.device.startswith("cuda"), self.precision.dtype == "fp16"
        # not with fp16's scaler: a fused step that it skips leaves the momentum as it lay in memory
        fused = (on_gpu and not half) or None
        self.optimizer = torch.optim.SGD(groups, p.lr, p.momentum, p.dampening, p.weight_decay, fused=fused)
        # a GPU has work queued while it waits for nothing; the scaler of fp16 waits at each step anyway
        self.look_every = p.log_every if on_gpu and not half else 1
        self.scaler = torch.amp.GradScaler(torch.device(self.device).type, enabled=half)
        self.step_number, self.seconds = 0, 0.0
        self.unseen: list[dict[str, Tensor]] = []  # what steps have left on the device
        self.window: list[dict[str, float]] = []  # what the next row of the log is the mean of
        self.spent: list[dict[str, float]] = []  # the clips and seconds of these steps
        self.log: list[dict] = []
        self.metrics: list[dict] = []
        self.best: dict | None = None  # with keep = best: its step, top1 and weights
        self.test_predictions: evaluation.Predictions | None = None

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration: forward, equation 5, backward, checks, update.

        Returns:
            The loss, its parts, and what is known of the pseudo-labels, for the log.

        Raises:
            FloatingPointError: as ``look`` does.
        """
        p, step = self.p, self.step_number
        seed_dropout(p.seed, step, self.ranks.rank)
        for group, backbone in zip(self.optimizer.param_groups, (False, True), strict=False):
            group["lr"] = learning_rate(step, p, backbone)
        if self.teacher is not None:  # cloned, for autograd refuses tensors of inference mode
            batch = batch | {"teacher": self.teacher(batch["teacher"])[0].clone()}
        out = methods.forward(self.model, self.ema, batch, self.method, p)
        loss, parts = methods.total_loss(self.method, out, batch, step, p)

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)

        values = logs.measure(loss, parts, out, batch, p)
        norm = nn.utils.get_total_norm([w.grad for w in self.network.parameters() if w.grad is not None])
        self.unseen.append(values | {"norm": norm})
        if (step + 1) % self.look_every == 0 or step + 1 == p.steps:
            self.look(step)

        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        self.step_number += 1
        return values

    def look(self, last: int) -> None:
        """Fetch and check what the steps up to this one have left on the device: on a CPU after each backward
        pass, so that the weights stay as they are; on a GPU for each row of the log, so that it never waits.

        Raises:
            FloatingPointError: a loss or gradient is not finite.
        """
        rows = logs.fetch(self.unseen, self.ranks) if self.unseen else []
        self.unseen = []
        for step, row in enumerate(rows, last + 1 - len(rows)):
            norm = row.pop("norm")
            overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1 and math.isfinite(row["loss"])
            if not overflow:  # fp16 skips a step whose gradients overflow, and lowers its scale
                logs.check_loss(step, row)
                if not math.isfinite(norm):
                    gradients = {n: w.grad for n, w in self.network.named_parameters() if w.grad is not None}
                    logs.check_finite(gradients, f"step {step}: the gradient of")
                    raise FloatingPointError(f"step {step}: a gradient is not finite; log_every = 1 names it")
            self.window.append(row)

    def __iter__(self) -> Iterator[dict]:
        for rows in self.steps():
            yield from rows

    def steps(self) -> Iterator[list[dict]]:
        """Train from ``step_number`` to the end; yields after each step and each evaluation the rows it gave.

        Whenever it yields, or is interrupted, the state is that of a whole step.
        """
        p, clock = self.p, time.perf_counter()
        if self.evaluation_due:  # stopped while it evaluated
            yield self.evaluate()
        steps = range(self.step_number, p.steps)
        with enough_memory(p):
            for batch in prefetch(loader(self.batches, p, self.device, sampler=steps), self.device):
                assert batch.pop("step") == self.step_number
                with interrupts_wait(), reproducible(p.deterministic, one_shape=True):
                    self.step(batch)
                    spent, clock = time.perf_counter() - clock, time.perf_counter()
                    self.seconds += spent
                    clips = len(batch["clips"]) * self.ranks.count
                    self.spent.append({"clips": clips, "seconds": spent})
                    rows = self._log_rows()
                yield rows
                if self.evaluation_due:
                    rows = self.evaluate()
                    self.seconds += time.perf_counter() - clock
                    clock = time.perf_counter()
                    yield rows

    def _log_rows(self) -> list[dict]:
        step, p = self.step_number, self.p
        if step % p.log_every and step < p.steps:
            return []
        facts = {"step": step, "lr": learning_rate(step - 1, p), "seconds": round(self.seconds, 3)}
        self.log.append(facts | logs.mean_values(self._window()))
        self.window, self.spent = [], []
        return self.log[-1:]

    def _window(self) -> list[dict[str, float]]:
        # steps that were made one by one, not in ``steps``, have no time
        return [values | spent for values, spent in zip(self.window, self.spent, strict=False)]

    @property
    def evaluation_due(self) -> bool:
        step = self.step_number
        reached = step > 0 and (step % self.p.eval_every == 0 or step == self.p.steps)
        return reached and all(row["step"] != step for row in self.metrics)

    def evaluate(self) -> list[dict]:
        """Figure 4: accuracy on the test split and on the unlabelled training videos, whose labels the loss
        never sees. All test videos at the end, evenly spread ``eval_videos`` of them on the way."""
        p, rows = self.p, []
        averages = self.ema is not None and p.eval_model != "student"
        network: Any = self.ema if averages else self.network
        self.ranks.share_statistics(network)
        for subset in ("val", "test", "unlabelled"):
            final = subset == "test" and self.step_number == p.steps
            videos = self.data.rows(subset)
            videos = videos[videos.label >= 0]  # nobody knows the class of a user's unlabelled videos
            videos = videos if final else evaluation.evenly_spaced(videos, p.eval_videos)
            if videos.empty:
                continue
            with reproducible(p.deterministic):
                predictions = evaluation.predict(
                    network, p, videos, self.data.classes, self.data.store, self.device, self.ranks
                )
            facts, top1 = {"step": self.step_number, "subset": subset}, predictions.top1()
            rows.append(facts | top1 | {"videos": len(videos)})
            if subset == "val" and p.keep == "best":
                network = self._keep_best(network, top1["video_top1"])
            if final:
                self.test_predictions = predictions
        self.metrics += rows
        return rows

    def _keep_best(self, network: nn.Module, top1: float) -> nn.Module:
        """Remember the best weights, of equal ones the longest trained. At the end, a network with these."""
        if self.best is None or top1 >= self.best["top1"]:
            weights = copy.deepcopy(network.state_dict())
            self.best = {"step": self.step_number, "top1": top1, "weights": weights}
        if self.step_number == self.p.steps:
            network = copy.deepcopy(network)
            network.load_state_dict(self.best["weights"])
        return network

    def facts(self) -> dict:
        """What must be the same when training resumes."""
        precision = {"dtype": self.precision.dtype, "fp32_layers": self.precision.fp32_layers}
        init = {"init": self.network.init} if self.network.init else {}
        return self.data.facts() | {"method": self.p.method, "precision": precision} | init

    def state_dict(self) -> dict:
        """All that resuming needs, as tensors and plain containers."""
        self.look(self.step_number - 1)
        parts = {n: None if part is None else part.state_dict() for n, part in self._parts().items()}
        rows = {"metrics": self.metrics, "log": self.log, "window": self._window()}
        best = {"best": self.best} if self.p.keep == "best" else {}
        return {"step": self.step_number, "seconds": self.seconds} | rows | parts | best | self.facts()

    def load_state_dict(self, state: dict) -> None:
        for name, part in self._parts().items():
            if part is not None:
                part.load_state_dict(state[name])
        self.step_number, self.seconds, self.best = state["step"], state["seconds"], state.get("best")
        self.log[:], self.metrics[:] = state["log"], state["metrics"]  # in place: they may be on show
        self.spent = [{name: row[name] for name in ("clips", "seconds")} for row in state["window"]]
        self.window = [{n: v for n, v in row.items() if n not in self.spent[0]} for row in state["window"]]

    def _parts(self) -> dict:
        return {"model": self.network, "optimizer": self.optimizer, "scaler": self.scaler, "ema": self.ema}

    def check_weights(self) -> None:
        """Before a checkpoint: a step can make infinite weights of finite gradients."""
        self.look(self.step_number - 1)
        values = {n: v for n, v in self.network.state_dict().items() if v.is_floating_point()}
        logs.check_finite(values, f"after step {self.step_number}: the weight")


def train(p: Params, show: Callable[[dict], object] = lambda row: None) -> runs.Run:
    """Train one run and evaluate it, or resume it where an earlier start stopped; ``show`` gets each row.

    Raises:
        runs.RunError: the folder holds another run, or its split or classes are not those of the data.
        FloatingPointError: a loss, gradient or weight is not finite; the last good checkpoint stays.
        MemoryError: the device's memory is too small for ``batch_size``; the last checkpoint stays.
    """
    with distributed.joined(device(p)) as ranks, runs.open(p, ranks) as run:
        if not run.finished:
            for row in run.record(make_trainer(p, prepare(p), ranks)):
                if ranks.first:
                    show(row)
    return run


def make_trainer(p: Params, data: Data, ranks: Ranks | None = None) -> Trainer | probe.ProbeTrainer:
    """What carries out the run's method: the training of a network, or one fit on the teacher's features."""
    trainer = probe.ProbeTrainer if methods.METHODS[p.method].features else Trainer
    with enough_memory(p):
        return trainer(p, data, ranks)


def load_predictor(run: runs.Run, p: Params) -> tuple[Callable[..., evaluation.Predictions], list[str]]:
    """How a run of any method predicts videos, and its classes: ``predict(rows, store, every_clip=False)`` as
    in ``evaluation.predict``, with videos of any store made with the run's settings."""
    if methods.METHODS[p.method].features:
        fitted = probe.Probe.load(p, run.read_checkpoint())
        return fitted.predict, fitted.classes
    network, classes = load_network(run, p)

    def predict(rows: pd.DataFrame, store: FrameStore, every_clip: bool = False) -> evaluation.Predictions:
        return evaluation.predict(network, p, rows, classes, store, device(p), every_clip=every_clip)

    return predict, classes


def load_network(run: runs.Run, p: Params, exact: bool = False) -> tuple[nn.Module, list[str]]:
    """The network of a run as it is evaluated (averaged where the method averages), and its classes;
    ``exact``: in fp32, whatever the run's number format."""
    checkpoint = run.read_checkpoint()
    network = build_network(p.but(init="scratch"), len(checkpoint["classes"]))
    if normalisation := checkpoint.get("init", {}).get("normalisation"):
        network.normalise(*normalisation)
    if not exact:
        precision.Precision(**checkpoint["precision"]).apply(network)
    averages = checkpoint["ema"] is not None and p.eval_model != "student"
    evaluated: Any = models.averaged(network, p.ema_decay) if averages else network
    best = checkpoint.get("best")
    evaluated.load_state_dict(best["weights"] if best else checkpoint["ema" if averages else "model"])
    evaluated = evaluated.module if averages else evaluated
    return evaluated.to(device(p)).eval(), checkpoint["classes"]
