"""The folder of one run: what it was told, on which split, with which versions, and what came out.

outputs/<dataset>/<method>/<label_pct>/seed<seed>/ holds params.json, split.csv, provenance.json,
metrics.csv, log.csv, predictions_test.csv, per_class.csv and checkpoint.pt.
"""

import json
import os
import pickle
import platform
import subprocess
import zipfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from videossl_core import files, splits

if TYPE_CHECKING:
    from videossl_core.params import FigureParams, Params

METRICS = ["step", "subset", "clip_top1", "video_top1", "videos"]


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

    def read_params(self) -> dict:
        return json.loads(files.read_text(self.params))

    def read_split(self) -> pd.DataFrame:
        return splits.from_csv(files.read_text(self.split))

    def read_provenance(self) -> dict:
        return json.loads(files.read_text(self.provenance))

    def read_checkpoint(self) -> dict | None:
        """The last checkpoint, or None. Only tensors and plain containers are loaded, never code."""
        if not self.checkpoint.exists():
            return None
        try:
            return torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, KeyError) as error:
            raise RunError(
                f"{self.checkpoint}: not a readable checkpoint ({error}); delete it or use resume = never"
            ) from error

    def write_checkpoint(self, state: dict) -> None:
        """Checkpoint first, then the tables made from it: a crash between them loses nothing."""
        with files.atomic(self.checkpoint) as temporary:
            torch.save(state, temporary)
        self.write_tables(state)

    def write_tables(self, state: dict) -> None:
        files.write_text(self.metrics, pd.DataFrame(state["metrics"], columns=METRICS).to_csv(index=False))
        files.write_text(self.log, pd.DataFrame(state["log"]).to_csv(index=False))

    @property
    def finished(self) -> bool:
        return self.provenance.exists() and "finished" in self.read_provenance()


def begin(p: "Params") -> tuple[Run, pd.DataFrame | None]:
    """Open the run's folder; returns the saved split of an earlier start, which is never drawn again.

    Raises:
        RunError: the folder holds a run with other parameters, or ``resume = must`` finds none.
    """
    run = Run(p.run_dir)
    started = run.params.exists() and run.split.exists()
    if p.resume == "must" and not started:
        raise RunError(f"resume = must, but there is no run in {run.folder}")
    if not started or p.resume == "never" or p.overwrite:
        for path in (run.provenance, run.checkpoint, run.params, run.split, run.metrics, run.log):
            path.unlink(missing_ok=True)
        return run, None
    if different := p.differing(run.read_params()):
        what = ", ".join(f"{k} was {was!r} and is now {now!r}" for k, (was, now) in different.items())
        raise RunError(
            f"{run.folder} holds a run with other parameters: {what}. Use overwrite = True to replace it, "
            "or another dataset name or outputs folder to keep it"
        )
    return run, run.read_split()


def describe(run: Run, p: "Params", split: pd.DataFrame, device: str) -> None:
    """Write what the run is before its first step."""
    run.folder.mkdir(parents=True, exist_ok=True)
    files.write_text(run.split, splits.to_csv(split))
    provenance = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "split_sha256": splits.split_hash(split),
        "seed": p.seed,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": versions(),
        "commit": commit(),
    }
    files.write_text(run.provenance, json.dumps(provenance, indent=1) + "\n")
    files.write_text(run.params, json.dumps(p.model_dump(mode="json"), indent=1) + "\n")


def finish(run: Run, **facts) -> None:
    done = run.read_provenance() | facts | {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
    files.write_text(run.provenance, json.dumps(done, indent=1) + "\n")


def versions() -> dict[str, str]:
    names = ("videossl-lab", "torch", "torchvision", "av", "numpy", "pandas", "papermill")
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in names}


def commit() -> str:
    """The project's git commit, with ``+`` when files differ from it; empty outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def find(outputs: Path, dataset: str | None = None) -> pd.DataFrame:
    """All finished runs below ``outputs``, one row each with the columns of results.csv and the folder."""
    rows = []
    for path in sorted(Path(outputs).glob(f"{dataset or '*'}/*/*/seed*/provenance.json")):
        run = Run(path.parent)
        if not run.finished or not run.metrics.exists():
            continue
        p, facts = run.read_params(), run.read_provenance()
        metrics = pd.read_csv(run.metrics)
        last = metrics[(metrics.subset == "test") & (metrics.step == p["steps"])]
        if last.empty:
            continue
        rows.append(
            {k: p[k] for k in ("dataset", "method", "label_pct", "label_draw", "seed")}
            | {k: round(float(last[k].iloc[-1]), 2) for k in ("clip_top1", "video_top1")}
            | {"steps": p["steps"], "minutes": round(facts["train_seconds"] / 60, 1)}
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
            found[method] = pd.read_csv(run.predictions_test)
            if list(found[method].video) != list(next(iter(found.values())).video):
                raise RunError(f"{run.folder} was tested on other videos than {next(iter(found))}")
    if not found:
        raise RunError(
            f"no finished run of {', '.join(p.methods)} at {p.label_pct:g} % labels, seed {p.seed}"
        )
    return found


RESULTS = [
    "dataset",
    "method",
    "label_pct",
    "label_draw",
    "seed",
    "clip_top1",
    "video_top1",
    "steps",
    "minutes",
]
RESULTS += ["split_sha256", "commit", "folder"]
