"""The folder of one run, outputs/<dataset>/<method>/<label_pct>/seed<seed>/, from its start to its end."""

import json
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pandas as pd
import torch

from videossl_core import networks, provenance
from videossl_core.data import files, splits
from videossl_core.distributed import Ranks
from videossl_core.evaluation import Predictions
from videossl_core.methods import METHODS
from videossl_core.params import Params

METRICS = ["step", "subset", "clip_top1", "video_top1", "videos"]
NAMES = dict.fromkeys(("video", "class_name", "clip_pred", "video_pred", "predicted"), str)

# A new run replaces just these, in this order: without its parameters nothing here counts as a run.
FILES = (
    "params.json",
    "provenance.json",
    "split.csv",
    "metrics.csv",
    "log.csv",
    "predictions_test.csv",
    "per_class.csv",
    "checkpoint.pt",
)


class RunError(RuntimeError):
    """A run cannot start or resume; the message names what is in the way."""


def read_table(path: Path, dtype=NAMES) -> pd.DataFrame:
    """A CSV in which names of videos and classes are text, "1" and "None" too; an empty cell has no value."""
    return pd.read_csv(path, dtype=dtype, keep_default_na=False, na_values=[""])


class Run:
    """A run's folder: the paths of its files, and reading and writing them."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        paths = [self.folder / name for name in FILES]
        self.params, self.provenance, self.split, self.metrics, self.log = paths[:5]
        self.predictions_test, self.per_class, self.checkpoint = paths[5:]

    @property
    def finished(self) -> bool:
        return self.provenance.exists() and "finished" in self.read_provenance()

    def read_params(self) -> dict:
        return json.loads(files.read_text(self.params))

    def read_split(self) -> pd.DataFrame:
        return splits.from_csv(files.read_text(self.split))

    def read_provenance(self) -> dict:
        return json.loads(files.read_text(self.provenance))

    def read_checkpoint(self) -> dict:
        """The last checkpoint; a RunError if there is none. Only tensors and plain containers are loaded,
        never code."""
        if not self.checkpoint.exists():
            raise RunError(f"no checkpoint in {self.folder}: train it first")
        try:
            return torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a different type for every kind of damage
            raise RunError(
                f"{self.checkpoint}: not a readable checkpoint ({error}); delete it or use resume = never"
            ) from error

    def write_provenance(self, facts: dict) -> None:
        files.write_text(self.provenance, json.dumps(facts, indent=1) + "\n")

    def write_checkpoint(self, state: dict) -> None:
        """Checkpoint first, then the tables made from it: a crash between them loses nothing."""
        try:
            with files.atomic(self.checkpoint) as temporary:
                torch.save(state, temporary)
            self.write_tables(state)
        except (OSError, RuntimeError) as error:  # torch reports a full disk by either
            last = "the one before stays" if self.checkpoint.exists() else "there is none before"
            raise RunError(
                f"{self.checkpoint}: could not be written ({error}); {last}. Is the disk full? Make room and "
                "start the same command again"
            ) from error

    def write_tables(self, state: dict) -> None:
        files.write_text(self.metrics, pd.DataFrame(state["metrics"], columns=METRICS).to_csv(index=False))
        files.write_text(self.log, pd.DataFrame(state["log"]).to_csv(index=False))

    def write_predictions(self, predictions: Predictions) -> None:
        files.write_text(self.predictions_test, predictions.table.to_csv(index=False))
        files.write_text(self.per_class, predictions.per_class().to_csv(index=False))


class OpenRun(Run):
    """A run that ``open`` gives: new, resumed or finished.

    Nothing is removed before there is a trainer: only a run that can start replaces what was there.
    """

    def __init__(self, p: Params, ranks: Ranks):
        super().__init__(p.run_dir)
        self.p, self.ranks = p, ranks
        self.rows = self._record(None)
        self.look()

    def look(self) -> None:
        """Which of the three is it? Every process gets the first one's answer."""
        self.status = self.ranks.broadcast(self._status() if self.ranks.first else "new")

    @property
    def finished(self) -> bool:
        """Is there nothing to do?"""
        return self.status == "finished"

    def _status(self) -> str:
        """``overwrite`` replaces a finished run or one with other parameters; one that it has started and
        that was interrupted is resumed, so that the same command can be given again."""
        p = self.p
        started = self.params.exists() and self.split.exists() and self.provenance.exists()
        if p.resume == "must" and not started:
            raise RunError(f"resume = must, but there is no run in {self.folder}")
        if not started or p.resume == "never":
            return "new"
        pairs = p.differing(self.read_params()).items()
        different = ", ".join(f"{name} was {was!r} and is now {now!r}" for name, (was, now) in pairs)
        if p.overwrite and (different or super().finished):
            return "new"
        if different:
            raise RunError(
                f"{self.folder} holds a run with other parameters: {different}. Use overwrite = True to "
                "replace it, or another dataset name or outputs folder to keep it"
            )
        return "finished" if super().finished else "resumed"

    def record(self, trainer) -> Generator[dict]:
        """Train, save, and yield the rows of a ``training.Trainer``; the run is finished after the last.

        What was trained is saved when the loop over the rows is left early or interrupted, too.

        Raises:
            RunError: the split, classes, videos or teacher are not those that the run started with.
            FloatingPointError: a loss, gradient or weight is not finite; the last good checkpoint stays.
        """
        self.rows = self._record(trainer)
        return self.rows

    def _record(self, trainer) -> Generator[dict]:
        if self.finished:
            return
        self._load_or_start(trainer)
        saved = time.perf_counter()
        try:
            for rows in trainer.steps():
                evaluated = any("subset" in row for row in rows)
                due = time.perf_counter() - saved >= 60 * self.p.checkpoint_minutes
                # processes agree at rows of the log alone, for that takes a moment
                due = due if self.ranks.count == 1 else bool(rows) and self.ranks.broadcast(due)
                # before an evaluation too: a kill on the way must not lose the steps before it
                if evaluated or trainer.evaluation_due or due:
                    self._save(trainer)
                    saved = time.perf_counter()
                yield from rows
        except (KeyboardInterrupt, GeneratorExit):
            if self.ranks.count == 1:  # others may be elsewhere and cannot agree
                self._save(trainer)
            raise
        if self.ranks.first:
            counts = {"processes": self.ranks.count, "rejected": len(trainer.data.rejected)}
            times = {"train_seconds": round(trainer.seconds, 1), "finished": provenance.now()}
            if trainer.best:
                counts["kept_step"] = trainer.best["step"]
            self.write_provenance(self.read_provenance() | counts | times)
        self.status = "finished"

    def _load_or_start(self, trainer) -> None:
        first, resumed = self.ranks.first, self.status == "resumed"
        if resumed and first and (what := splits.difference(self.read_split(), trainer.data.split)):
            raise RunError(
                f"{self.folder} was started with another split than the data and parameters now give: "
                f"{what}. Put them back to resume, or use resume = never to start again"
            )
        if not resumed or not self.checkpoint.exists():
            if first:
                self._describe(trainer)
            return
        checkpoint = self.read_checkpoint()
        self._check_facts(checkpoint, trainer)
        trainer.load_state_dict(checkpoint)
        if first:
            self.write_tables(checkpoint)
            facts, now = self.read_provenance(), provenance.surroundings(trainer.device)
            changed = {k: v for k, v in now.items() if facts.get(k) != v}
            start = {"step": checkpoint["step"], "at": provenance.now()} | changed
            self.write_provenance(facts | {"resumed": [*facts.get("resumed", []), start]})

    def _check_facts(self, checkpoint: dict, trainer) -> None:
        """Refuse a checkpoint of other videos, classes or teacher; warn if the number format changed."""
        if missing := [name for name in trainer.state_dict() if name not in checkpoint]:
            raise RunError(f"{self.checkpoint} has no {', '.join(missing)}; start again with resume = never")
        for name, now in trainer.facts().items():
            if (was := checkpoint[name]) == now:
                continue
            if name == "classes" and len(was) == len(now):
                i = next(i for i in range(len(now)) if was[i] != now[i])
                name, was, now = f"class {i}", was[i], now[i]
            what = f"{self.checkpoint} was trained with {name} = {was}, the data and machine now give {now}"
            if name != "precision":
                raise RunError(what)
            warnings.warn(what, stacklevel=2)

    def _describe(self, trainer) -> None:
        """Write what the run is before its first step, in place of whatever run was there."""
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)
        split = trainer.data.split
        files.write_text(self.split, splits.to_csv(split))
        facts = {"started": provenance.now(), "split_sha256": splits.split_hash(split), "seed": self.p.seed}
        surroundings = {"precision": str(trainer.precision), "init": trainer.facts().get("init")}
        surroundings |= provenance.surroundings(trainer.device)
        self.write_provenance(facts | surroundings)
        files.write_text(self.params, json.dumps(self.p.model_dump(mode="json"), indent=1) + "\n")

    def _save(self, trainer) -> None:
        trainer.check_weights()
        if self.ranks.first:
            if trainer.test_predictions:  # before the checkpoint, from which there is no evaluation again
                self.write_predictions(trainer.test_predictions)
            self.write_checkpoint(trainer.state_dict())


@contextmanager
def open(p: Params, ranks: Ranks | None = None) -> Iterator[OpenRun]:
    """The run that ``p`` names: new, resumed or finished. Nobody else can train it inside the block.

    Raises:
        RunError: the folder holds a run with other parameters, or there is none although ``resume = must``.
        files.Busy: another process trains it.
    """
    run = OpenRun(p, ranks or Ranks())
    if run.finished:  # without the lock: its folder may be read-only
        yield run
        return
    with files.locked(run.folder, wait=False) if run.ranks.first else nullcontext():
        run.look()  # another process may have trained it meanwhile
        if p.init != "scratch" and METHODS[p.method].terms and not run.finished:
            networks.build_network(p, 1)  # what is wrong with it is said now, not after hours of decoding
        try:
            yield run
        finally:
            run.rows.close()  # saves what was trained if the loop over ``record`` was left early
