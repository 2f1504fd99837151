"""The paper's UCF101 cell on this machine: all 13,320 names, its network, crop and batch, five iterations.

``python -m benchmarks.rehearsal <folder of videos> <ucfTrainTestlist> <the authors' ucf101 lists>``

The lists are the real ones. Each of their names is a hard link to one of a few videos, which are decoded and
seen by the teacher once; their time and size are scaled to all names. ResNet-50 has random weights.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path

import pandas as pd
import psutil
import torch
from torchvision.models import resnet50

from benchmarks.bench import machine
from videossl_core import params, prepare, runs, teacher
from videossl_core.data.datasets import SOURCES
from videossl_core.params import Params
from videossl_core.paths import ROOT
from videossl_lab import estimate

STEPS = "-p steps 5 -p eval_every 2 -p eval_videos 4"
PAPERMILL = "papermill --no-progress-bar notebooks"


def link(p: Params, videos: list[str], few: list[Path]) -> dict[str, float]:
    """Let ``p``'s root and caches hold these videos: in turn links to copies of a few, which are decoded and
    seen once. Returns what one frame of these took, in seconds and bytes."""
    folder = p.data_dir / "few"
    folder.mkdir(parents=True)
    names = [f"{i}{video.suffix}" for i, video in enumerate(few)]
    for name, video in zip(names, few, strict=True):
        shutil.copyfile(video, folder / name)
    store, clock = prepare.open_store(p, folder), [time.perf_counter()]
    store.add(names, folder)
    clock.append(time.perf_counter())
    targets = teacher.build_targets(p, store, names, "cpu")
    clock.append(time.perf_counter())
    frames = p.data_dir / store.settings.name
    seen = frames / targets.folder.name
    places = (str(p.videos_dir), ""), (str(frames), ".frames"), (str(seen), ".npy")
    sources = [(folder / name, store.path(name), targets.path(name)) for name in names]
    for parent, (place, _) in product({os.path.dirname(video) for video in videos}, places):
        os.makedirs(f"{place}/{parent}", exist_ok=True)
    for i, video in enumerate(videos):
        for source, (place, ending) in zip(sources[i % len(few)], places, strict=True):
            os.link(source, f"{place}/{video}{ending}")
    store.add(names, folder)  # notes the files' times, which the links have changed
    table = store.table.loc[names].iloc[[i % len(names) for i in range(len(videos))]]
    table.set_axis(pd.Index(videos, name="video")).sort_index().to_csv(frames / "store.csv")
    count = int(store.table.frames.sum())
    kept = [targets.path(name, features) for name in names for features in (False, True)]
    return {
        "decoding": (clock[1] - clock[0]) / count,
        "teacher": (clock[2] - clock[1]) / count,
        "frames": float(store.table.stored_bytes.sum()) / count,
        "targets": sum(path.stat().st_size for path in kept) / count,
    }


def run_until(done: Callable[[], object], command: str, cwd: Path, **env: str) -> float:
    """Run it, and interrupt it as Ctrl-C does once it is ``done``; it may end before. Returns the largest
    memory of all its processes together, in GB.

    Raises:
        RuntimeError: it failed, or took more than an hour.
    """
    peak, end = 0.0, time.monotonic() + 3600
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | env
    with tempfile.TemporaryFile("w+") as log:
        was = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
        process = psutil.Popen(shlex.split(command), cwd=cwd, env=env, stdout=log, stderr=log)
        signal.signal(signal.SIGINT, was)
        while process.poll() is None and not done() and time.monotonic() < end:
            with suppress(psutil.NoSuchProcess):
                family = [process, *process.children(recursive=True)]
                peak = max(peak, sum(one.memory_info().rss for one in family) / 1e9)
            time.sleep(0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        if process.wait(300) and not done():
            log.seek(0)
            raise RuntimeError(f"{command}\n{log.read()[-3000:]}")
    return peak


def last_step(table: Path) -> int:
    """That of log.csv or metrics.csv; 0 before there is one."""
    rows = table.read_text().splitlines()[1:] if table.exists() else []
    return int(rows[-1].split(",")[0]) if rows else 0


def main(words: list[str] | None = None) -> None:
    name = "python -m benchmarks.rehearsal"
    parser = argparse.ArgumentParser(prog=name, description=__doc__.splitlines()[0])
    for place in ("videos", "lists", "label_list"):
        parser.add_argument(place, type=Path)
    parser.add_argument("--few", type=int, default=12, help="how many different videos")
    parser.add_argument("--given", default="", help="other parameters, as '-p batch_size 32'")
    args = parser.parse_args(words)
    print(f"{machine('cpu')}, {estimate.matrix_rate():.0f} GFLOP/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "resnet50.pth"
        torch.save(resnet50().state_dict(), weights)
        given = {"root": Path(folder) / "videos", "lists": args.lists, "label_list": args.label_list}
        given |= {"teacher_weights": weights, "outputs": Path(folder) / "outputs"}
        p = params.load(dataset="ucf101", **given)
        some = sorted(video for video in args.videos.resolve().rglob("*") if video.is_file())
        videos = [video for video, *_ in SOURCES["ucf101"](p).rows]
        print("one frame:", link(p, videos, some[:: len(some) // args.few]), flush=True)

        run = runs.Run(p.run_dir)
        places = " ".join(f"-p {name} {shlex.quote(str(path.absolute()))}" for name, path in given.items())
        rest = f".ipynb {folder}/out.ipynb -p dataset ucf101 {places} {args.given}"
        for what, command, done in (
            ("data_prep", f"data_prep{rest}", lambda: False),
            ("two iterations", f"train{rest} {STEPS}", lambda: last_step(run.metrics) == 2),
            ("resumed until the fifth", f"train{rest} {STEPS}", lambda: last_step(run.log) == 5),
        ):
            start = time.perf_counter()
            peak = run_until(done, f"{PAPERMILL}/{command}", ROOT)
            print(f"{what}: {time.perf_counter() - start:.0f} s, {peak:.2f} GB of memory", flush=True)
        print(run.log.read_text(), run.metrics.read_text(), run.read_provenance()["resumed"], sep="\n")
        print(f"checkpoint: {run.checkpoint.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
