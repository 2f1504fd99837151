"""The tiny data set, comparisons of runs, and what tests run in processes of their own to kill them."""

import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from support import workers
from videossl_core import batches, methods, params, paths, prepare, runs, teacher, training
from videossl_core.data import codec, frames

TINY = {
    "dataset": "tiny",
    "source": "demo",
    "demo_per_class": 3,
    "frame_size": 32,
    "crop_size": 24,
    "clip_frames": 8,
    "teacher": "efficientnet_lite0",
    "backbone": "resnet10",
    "width": 0.125,
    "batch_size": 4,
    "steps": 4,
    "label_pct": 50.0,
    "eval_every": 2,
    "eval_videos": 4,
    "log_every": 1,
    "precision": "fp32",
}

TIMES = ("seconds", "clips_per_s")
NETWORKS = [name for name, method in methods.METHODS.items() if method.terms]
"""Methods that train one."""


def slow_after(count: int, values) -> list:
    """Parameters, or tuples of them, of which the fast lane takes the first few only."""
    import pytest  # here, for processes that tests start load this module too

    values = [value if isinstance(value, tuple) else (value,) for value in values]
    kept = [pytest.param(*value) for value in values[:count]]
    return kept + [pytest.param(*value, marks=pytest.mark.slow) for value in values[count:]]


def same(a, b) -> bool:
    """Bit for bit, however deep."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def without_times(value):
    """A checkpoint without what no two runs share: how long they took."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def record(run: runs.Run) -> dict:
    """All that a finished run leaves, but for times: its checkpoint in full, and its tables."""
    log = pd.read_csv(run.log).drop(columns=list(TIMES))
    tables = (run.split, run.metrics, run.predictions_test, run.per_class)
    kept = {path.name: path.read_bytes() for path in tables}
    return kept | {"checkpoint": without_times(run.read_checkpoint()), "log": log.to_csv()}


def stop_at(p: params.Params, step: int, error: type[BaseException] = KeyboardInterrupt) -> runs.Run:
    """Train until the row of this step, then leave the loop by an error."""
    with suppress(error), runs.open(p) as run:
        for row in run.record(training.Trainer(p, prepare.prepare(p))):
            if row["step"] == step:
                raise error
    run = runs.Run(p.run_dir)
    assert not run.finished
    return run


def tree(folder: Path) -> dict[str, bytes]:
    """Content of all files below, but for locks."""
    files = (f for f in Path(folder).rglob("*") if f.is_file() and f.name != ".lock")
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def small_videos(root: Path, names: list[str], count: int = 12) -> list[str]:
    """Write short grey videos, each with its own levels."""
    for i, name in enumerate(names):
        levels = np.linspace(20 + i, 200, count).astype(np.uint8)
        codec.write(root / name, np.broadcast_to(levels[:, None, None, None], (count, 48, 64, 3)))
    return names


def project_copy(root: Path, prepared: Path) -> Path:
    """A copy of the project whose params/ knows the tiny data set, and whose demo is that too."""
    names = "notebooks params videossl_core videossl_lab pyproject.toml Snakefile Makefile"
    names += " outputs/reference/bench outputs/reference/demo"
    for source in (paths.ROOT / name for name in names.split()):
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, root / source.relative_to(paths.ROOT))
    values = {name: value for name, value in TINY.items() if name != "dataset"}
    for name in ("tiny", "demo"):  # demo is what a bare command uses
        (root / f"params/{name}.yaml").write_text(yaml.safe_dump(values))
        shutil.copytree(prepared / "tiny/data", root / "outputs" / name / "data")
    return root


# ---- In another process: start(function, ...) begins one that has torch imported already.


def start(function, *args) -> multiprocessing.Process:
    process = multiprocessing.get_context("forkserver").Process(target=function, args=args)
    process.start()
    return process


def kill_at(count: int, folder: Path, function, *args) -> bool:
    """Start it, and kill it once the folder holds so many files; False if it has been quicker."""
    process = start(function, *args)
    while sum(path.is_file() for path in folder.rglob("*")) < count and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def finish(function, *args) -> None:
    process = start(function, *args)
    process.join()
    assert process.exitcode == 0


# Where a run can be hit: the function and whether its file is left half written before.
MOMENTS = {
    "reading a batch": (batches.Batches, "__getitem__"),
    "changing the weights": (torch.optim.SGD, "step"),
    "reading a test clip": (batches.EvalClips, "__getitem__"),
    "writing a checkpoint": (torch, "save"),
    "bringing a file to the disk": (os, "fsync"),
    "giving a file its name": (os, "replace"),
}


def train(
    given: dict, hit: tuple[str, int] | None = None, by=signal.SIGKILL, count_into: Path | None = None
) -> None:
    """Train; be hit by a signal at the n-th call of one of MOMENTS, or count the calls of all."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    calls: Counter[str] = Counter()
    for moment, (owner, name) in MOMENTS.items():
        setattr(owner, name, _struck(moment, getattr(owner, name), calls, hit, by))
    training.train(params.load(**given))
    if count_into:
        count_into.write_text("\n".join(f"{n} {moment}" for moment, n in calls.items()))


def _struck(moment, original, calls, hit, by):
    def call(*args, **kwargs):
        calls[moment] += 1
        if hit == (moment, calls[moment]):
            if moment == "writing a checkpoint":
                original(*args, **kwargs)
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            os.kill(os.getpid(), by)
        return original(*args, **kwargs)

    return call


def decode_all(folder: Path, root: Path, names: list[str], log: Path | None = None) -> None:
    """Put videos into a frame store; note every decoded one in a log."""
    if log:
        os.environ["DECODED_LOG"] = str(log)  # read by the worker processes
        frames._try_video = workers.logged
    else:
        frames._try_video = workers.slow
    frames.FrameStore(folder, frames.StoreSettings(32, 90, 4)).add(names, root, workers=2)


def prepare_all(given: dict, log: Path) -> None:
    """Prepare everything, noting each video that the teacher sees."""
    original = teacher.Classifier.look

    def look(self, *frames):
        with open(log, "a") as f:
            f.write("seen\n")
        return original(self, *frames)

    teacher.Classifier.look = look
    prepare.prepare(params.load(**given), with_teacher=True)


def train_with_small_files(given: dict, most: int) -> None:
    """Train where no file may grow beyond this many bytes, as on a disk that is nearly full."""
    import resource  # Windows has none

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    training.train(params.load(**given))
