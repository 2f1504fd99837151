"""The folder of one run: what it was told, on which split, with which versions, and what came out.

outputs/<dataset>/<method>/<label_pct>/seed<seed>/ holds params.json, split.csv, provenance.json,
metrics.csv, log.csv, predictions_test.csv, per_class.csv and checkpoint.pt.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from videossl_core import provenance
from videossl_core.data import files, splits
from videossl_core.fields import SHARED

if TYPE_CHECKING:
    from videossl_core.params import FigureParams, Params
    from videossl_core.prepare import Data

METRICS = ["step", "subset", "clip_top1", "video_top1", "videos"]
CELL = ["dataset", "method", "variant", "label_pct", "label_draw", "split", "seed"]
RESULTS = [*CELL, "clip_top1", "video_top1", "steps", "minutes", "settings", "cpu", "split_sha256", "commit"]
RESULTS += ["folder"]


NAMES = dict.fromkeys(("video", "class_name", "clip_pred", "video_pred", "predicted"), str)


def read_table(path: Path, dtype=NAMES) -> pd.DataFrame:
    """A CSV in which videos and classes are named: a name is text, "1" and "None" too, and only an empty cell
    has no value."""
    return pd.read_csv(path, dtype=dtype, keep_default_na=False, na_values=[""])


class RunError(RuntimeError):
    """A run cannot start or go on as asked; the message names what is in the way."""


class Run:
    """A run's folder and the names of its files."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.params = self.folder / "params.json"
        self.provenance = self.folder / "provenance.json"
        self.split = self.folder / "split.csv"
        self.metrics = self.folder / "metrics.csv"
        self.log = self.folder / "log.csv"
        self.predictions_test = self.folder / "predictions_test.csv"
        self.per_class = self.folder / "per_class.csv"
        self.checkpoint = self.folder / "checkpoint.pt"
        self.files = [path for path in vars(self).values() if path != self.folder]

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    def read_params(self) -> dict:
        return json.loads(files.read_text(self.params))

    def read_split(self) -> pd.DataFrame:
        return splits.from_csv(files.read_text(self.split))

    def read_provenance(self) -> dict:
        return json.loads(files.read_text(self.provenance))

    def write_provenance(self, facts: dict) -> None:
        files.write_text(self.provenance, json.dumps(facts, indent=1) + "\n")

    def read_checkpoint(self) -> dict | None:
        """The last checkpoint, or None. Only tensors and plain containers are loaded, never code."""
        if not self.checkpoint.exists():
            return None
        try:
            return torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a different type for every kind of damage
            raise RunError(
                f"{self.checkpoint}: not a readable checkpoint ({error}); delete it or use resume = never"
            ) from error

    def write_checkpoint(self, state: dict) -> None:
        """Checkpoint first, then the tables made from it: a crash between them loses nothing."""
        try:
            with files.atomic(self.checkpoint) as temporary:
                torch.save(state, temporary)
            self.write_tables(state)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by either
            last = "the one before stays" if self.checkpoint.exists() else "there is none before"
            raise RunError(
                f"{self.checkpoint}: could not be written ({error}); {last}. Is the disk full? Make room and "
                "start the same command again"
            ) from error

    def write_tables(self, state: dict) -> None:
        files.write_text(self.metrics, pd.DataFrame(state["metrics"], columns=METRICS).to_csv(index=False))
        files.write_text(self.log, pd.DataFrame(state["log"]).to_csv(index=False))

    @property
    def finished(self) -> bool:
        return self.provenance.exists() and "finished" in self.read_provenance()


def is_done(run: Run, p: "Params") -> bool:
    """Is there a finished run with these parameters, which nobody asked to train again?"""
    return run.finished and p.resume != "never" and not p.overwrite and not _differs(run, p)


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Be the only process that trains this run.

    Raises:
        RunError: another process does.
    """
    try:
        with files.locked(run.folder, wait=False):
            yield
    except files.Busy:
        raise RunError(
            f"{run.folder}: another process trains this run now. Wait for it, or give another seed or outputs"
        ) from None


def begin(run: Run, p: "Params") -> pd.DataFrame | None:
    """The saved split of an earlier start that goes on now; None for a new run.

    Nothing is removed here: ``describe`` makes room once all that the new run needs is there. ``overwrite``
    replaces a finished run or one with other parameters; one that it has begun and that was interrupted goes
    on, so that the same command can be given again.

    Raises:
        RunError: the folder holds a run with other parameters, or ``resume = must`` finds none.
    """
    started = run.params.exists() and run.split.exists() and run.provenance.exists()
    if p.resume == "must" and not started:
        raise RunError(f"resume = must, but there is no run in {run.folder}")
    different = _differs(run, p) if started else ""
    if started and p.resume != "never" and not (p.overwrite and (different or run.finished)):
        if different:
            raise RunError(
                f"{run.folder} holds a run with other parameters: {different}. Use overwrite = True to "
                "replace it, or another dataset name or outputs folder to keep it"
            )
        return run.read_split()
    return None


def _differs(run: Run, p: "Params") -> str:
    different = p.differing(run.read_params())
    return ", ".join(f"{k} was {was!r} and is now {now!r}" for k, (was, now) in different.items())


def check_split(run: Run, saved: pd.DataFrame, drawn: pd.DataFrame) -> None:
    """Refuse to go on when the split of the data as they are now is not the run's.

    Raises:
        RunError: names the first video that differs.
    """
    if what := splits.difference(saved, drawn):
        raise RunError(
            f"{run.folder} was begun with another split than the data and parameters now give: {what}. "
            "Put them back to go on, or use overwrite = True with resume = never to start anew"
        )


def check_facts(run: Run, checkpoint: dict, facts: dict, needed: list[str]) -> None:
    """Refuse a checkpoint of other videos, classes or another teacher; say so if the number format changed.

    Raises:
        RunError: names what differs, or what the checkpoint of another version of this code lacks.
    """
    if missing := [name for name in needed if name not in checkpoint]:
        raise RunError(f"{run.checkpoint} has no {', '.join(missing)}; start anew with resume = never")
    for name, now in facts.items():
        was = checkpoint.get(name)
        if was == now:
            continue
        if name == "precision":
            warnings.warn(f"{run.folder}: went with precision {was}, goes on with {now}", stacklevel=2)
            continue
        if name == "classes" and was:
            at = next((i for i, pair in enumerate(zip_longest(was, now)) if pair[0] != pair[1]), 0)
            was, now = ([*names, *[None] * len(was + now)][at] for names in (was, now))
            name = f"class {at}"
        raise RunError(f"{run.checkpoint} was trained with {name} = {was}, the data now give {now}")


def describe(run: Run, p: "Params", data: "Data", device: str, precision: str) -> None:
    """Write what the run is before its first step, in place of whatever run was there."""
    for path in run.files:  # the parameters first: without them nothing here counts as a run
        path.unlink(missing_ok=True)
    shutil.rmtree(run.tensorboard, ignore_errors=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    files.write_text(run.split, splits.to_csv(data.split))
    facts = {"started": provenance.now(), "split_sha256": splits.split_hash(data.split), "seed": p.seed}
    run.write_provenance(facts | {"precision": precision} | provenance.surroundings(device))
    files.write_text(run.params, json.dumps(p.model_dump(mode="json"), indent=1) + "\n")


def note_resume(run: Run, step: int, device: str) -> None:
    """Add to the provenance that the run went on, and with what if that has changed."""
    facts = run.read_provenance()
    changed = {k: v for k, v in provenance.surroundings(device).items() if facts.get(k) != v}
    facts.setdefault("resumed", []).append({"step": step, "at": provenance.now()} | changed)
    run.write_provenance(facts)


def finish(run: Run, **facts) -> None:
    run.write_provenance(run.read_provenance() | facts | {"finished": provenance.now()})


def settings(p: dict) -> str:
    """A short hash of what two methods' runs must have in common to be compared, of a params.json."""
    return files.sha256(json.dumps({name: p[name] for name in SHARED}).encode())[:8]


def find(outputs: Path, dataset: str | None = None, variants: bool = False) -> pd.DataFrame:
    """All finished runs below ``outputs``, one row each with the columns of results.csv and the folder.

    Args:
        variants: those with a ``variant`` too, which differ in other parameters than the columns.
    """
    rows = []
    for path in sorted(Path(outputs).glob(f"{dataset or '*'}/*/*/seed*/provenance.json")):
        run = Run(path.parent)
        if not run.finished or not run.metrics.exists():
            continue
        p, facts = {"variant": ""} | run.read_params(), run.read_provenance()
        if p["variant"] and not variants:
            continue
        metrics = pd.read_csv(run.metrics)
        last = metrics[(metrics.subset == "test") & (metrics.step == p["steps"])]
        if last.empty:
            continue
        rows.append(
            {k: p[k] for k in CELL}
            | {k: round(float(last[k].iloc[-1]), 2) for k in ("clip_top1", "video_top1")}
            | {"steps": p["steps"], "minutes": round(facts["train_seconds"] / 60, 1)}
            | {"settings": settings(p), "cpu": facts.get("cpu", "")}
            | {"split_sha256": facts["split_sha256"], "commit": facts["commit"], "folder": str(run.folder)}
        )
    return pd.DataFrame(rows, columns=RESULTS)


def predictions(p: "FigureParams") -> dict[str, pd.DataFrame]:
    """predictions_test.csv of the finished runs among ``p.methods``, in that order.

    Raises:
        RunError: none is finished, or they were tested on different videos.
    """
    found: dict[str, pd.DataFrame] = {}
    for method in p.methods:
        run = Run(p.model_copy(update={"method": method}).run_dir)
        if run.finished and run.predictions_test.exists():
            found[method] = read_table(run.predictions_test)
            if list(found[method].video) != list(next(iter(found.values())).video):
                raise RunError(f"{run.folder} was tested on other videos than {next(iter(found))}")
    if not found:
        raise RunError(
            f"no finished run of {', '.join(p.methods)} at {p.label_pct:g} % labels, seed {p.seed}"
        )
    return found
