"""How near the code is to what the machine can do, as ratios measured side by side: ``make bench``.

Every round runs each contender for a moment, in turns, so that a busy machine slows all alike; what is
reported is the median over the rounds and their range.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks import baseline
from videossl_core import evaluation, params, precision, prepare, training
from videossl_core.batches import loader, prefetch
from videossl_core.data import files, frames, pictures, pool
from videossl_core.data.frames import FrameStore, StoreSettings
from videossl_core.data.labels import Rows
from videossl_core.devices import device, reproducible
from videossl_core.params import Params
from videossl_core.paths import ROOT
from videossl_core.sampling import read_clip
from videossl_core.teacher import Classifier
from videossl_lab import estimate, plots
from videossl_lab.annotate.suggest import Learner

WHAT = {
    "limit_share": "training loop's multiply-adds, of the machine's matrix product in the same format",
    "loop_vs_bare": "training loop, of the bare forward, backward and step on a constant tensor",
    "loop_vs_plain": "training loop, against a plain one that decodes, runs the teacher, computes in fp32",
    "frame_store_vs_source": "reading random clips, frame store against the source video, one core",
    "bytes_per_frame": "of the frame store, the teacher's frames included",
    "eval_vs_bare": "evaluation, of the bare forward pass",
    "prep_vs_plain": "decoding a video into the store, of PyAV and Pillow alone, one core",
    "prep_growth": "decoding with one process a core, against one process",
    "press_ms": "from a press in annotate.ipynb to the next guess, 2,000 videos and 100 labels; below 100",
    "loader_vs_loop": "clips that the loader processes read, of those that the training loop takes (GPU)",
    "memory_gb": "at most in use by the training loop (GPU)",
    "cell_hours": "one full-size run of UCF101 at the loop's speed, evaluation not counted",
}
AIMS = {
    "loop_vs_bare": 0.97,
    "loop_vs_plain": 2.5,
    "frame_store_vs_source": 12.0,
    "eval_vs_bare": 0.95,
    "prep_vs_plain": 0.95,
}
GPU_AIMS = {"loop_vs_bare": 0.97, "loop_vs_plain": 4.0, "loader_vs_loop": 1.5}


def aims_of(result: dict) -> dict[str, float]:
    """Those of the kind of machine."""
    return GPU_AIMS if "memory_gb" in result else AIMS


def machine(device: str) -> str:
    """The name of the processor that computes."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as f:
            name = next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def parameters(root: Path, outputs: Path, batch_size: int) -> Params:
    """The paper's network and clips."""
    return Params(
        dataset="bench",
        source="folder",
        root=root,
        outputs=outputs,
        teacher="efficientnet_lite0",
        label_pct=50,
        batch_size=batch_size,
        steps=100_000,
    )


def clips_per_second(work: Callable[[], int], at_least: float = 0.0, clock=time.perf_counter) -> float:
    """Clips per second of ``clock``; ``time.process_time`` counts a core's seconds, however busy it is."""
    start, clips = clock(), work()
    while clock() - start < at_least:
        clips += work()
    return clips / (clock() - start)


def finish() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def side_by_side(
    works: list[Callable[[], int]], times: int, in_a_row: int = 1
) -> dict[Callable[[], int], float]:
    """Clips per second of each, run in turns, each turn ``in_a_row`` times."""
    seconds, clips = dict.fromkeys(works, 0.0), dict.fromkeys(works, 0)
    for _ in range(times):
        for work in works:
            start = time.perf_counter()
            clips[work] += sum(work() for _ in range(in_a_row))
            finish()
            seconds[work] += time.perf_counter() - start
    return {work: clips[work] / seconds[work] for work in works}


def matmul_rate(dtype: torch.dtype, where: str) -> float:
    """Multiply-adds per second of one large matrix product."""
    n, in_a_row = (2048, 1) if where == "cpu" else (8192, 10)
    a, b = (torch.randn(n, n, device=where).to(dtype) for _ in range(2))

    def work() -> int:
        for _ in range(in_a_row):
            a @ b
        finish()
        return n * in_a_row

    work()
    return clips_per_second(work, 0.7) * n * n


def decoding(root: Path, outputs: Path, videos: list[str]) -> dict[str, float]:
    """Decoding with one process and with one a core, into empty stores."""
    rates = []
    for workers in (1, pool.cores()):
        with tempfile.TemporaryDirectory(dir=outputs) as folder:
            store = FrameStore(Path(folder), StoreSettings(136, 90, 8))
            start = time.perf_counter()
            store.add(videos, root, workers)
            rates.append(len(videos) / (time.perf_counter() - start))
    return {
        "prep_videos_per_s_1_process": rates[0],
        "prep_growth": rates[1] / rates[0],
        "prep_frames_per_s": rates[1] * store.table.frames.mean(),
    }


def storing(root: Path, outputs: Path, videos: list[str]) -> dict[str, float]:
    """Decoding a few videos into a store against doing the same plainly, in a core's seconds."""
    seconds = dict.fromkeys(("ours", "plain"), 0.0)
    with tempfile.TemporaryDirectory(dir=outputs) as folder:
        target = Path(folder) / "frames"
        for video in videos[:: max(1, len(videos) // 8)]:
            for name, work in (
                ("ours", lambda v: frames.store_video(root / v, target, StoreSettings(136, 90, 8))),
                ("plain", lambda v: baseline.store_plainly(root / v, target)),
            ):
                start = time.process_time()
                work(video)
                seconds[name] += time.process_time() - start
    return {"prep_vs_plain": seconds["plain"] / seconds["ours"]}


class Contenders:
    """The pieces of work that are compared; each method does one and returns how many clips that were."""

    def __init__(self, p: Params, data: prepare.Data):
        self.p, self.data, self.store, self.device = p, data, data.store, device(p)
        self.trainer = training.Trainer(p, data)
        self.network, self.optimizer = self.trainer.network, self.trainer.optimizer
        self.batches = loader(self.trainer.batches, p, self.device, sampler=range(p.steps))
        self.feed = prefetch(self.batches, self.device)
        shape = (p.batch_size, 3, p.clip_frames, p.crop_size, p.crop_size)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        # in the layout in which clips come
        self.constant = clips.contiguous(memory_format=torch.channels_last_3d)
        self.in_a_row = 1 if self.device == "cpu" else 10  # steps, before a GPU is waited for
        self.rng = np.random.default_rng(1)
        self.test = data.rows("test")
        whole = self.store.table.frames[self.test.video] // p.clip_frames
        self.test_clips = len(self.test) + int(whole.sum())

    def bare(self) -> int:
        """Forward, backward and step on a constant batch."""
        self.optimizer.zero_grad(set_to_none=True)
        out = self.network(self.constant)
        (-sum(o.log_softmax(-1)[:, 0].mean() for o in out.values())).backward()
        self.optimizer.step()
        return len(self.constant)

    def loop(self) -> int:
        """A step of our training."""
        batch = next(self.feed)
        batch.pop("step")
        self.trainer.step(batch)
        return self.p.batch_size

    @cached_property
    def plain(self) -> baseline.Plain:
        """A careful user's loop, with as many loader processes as ours."""
        return baseline.Plain(self.p, self.data, self.device, self.batches.num_workers)

    def read(self) -> int:
        """A batch of our loader on the device, which does nothing with it."""
        next(self.feed)
        return self.p.batch_size

    def evaluate(self) -> int:
        evaluation.predict(self.network, self.p, self.test, self.data.classes, self.store, self.device)
        return self.test_clips

    def bare_forward(self) -> int:
        """As many clips as ``evaluate`` sees, to a whole batch, through the network alone."""
        batches = -(-self.test_clips // len(self.constant))
        self.network.eval()
        with torch.inference_mode():
            for _ in range(batches):
                self.network(self.constant)
        self.network.train()
        return batches * len(self.constant)

    def from_store(self) -> int:
        """Read a random clip from the frame store."""
        video = self.rng.choice(self.data.split.video)
        length = self.p.clip_frames
        start = int(self.rng.integers(0, self.store.table.frames[video] - length))
        read_clip(self.store, video, np.arange(start, start + length))
        return 1

    def from_source(self) -> int:
        """Decode a random clip of a source video."""
        path = self.data.index.root / self.rng.choice(self.data.split.video)
        clip = baseline.source_clip(path, self.rng, self.p.clip_frames)
        scaled = pictures.Scaler()
        np.stack([scaled(frame, self.p.frame_size, self.p.frame_size) for frame in clip])
        return 1


class Presses:
    """The labelling of 2,000 made-up videos of ten classes, 100 of which have a label already."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.true = rng.integers(0, 10, 2000)
        x = 0.1 * rng.normal(size=(10, 6400))[self.true] + rng.normal(size=(2000, 6400))
        x *= np.sqrt(2) / np.linalg.norm(x, axis=1, keepdims=True)
        self.learner = Learner([*map(str, range(2000))], x.astype(np.float32), [*map(str, range(10))])
        self.rows: Rows = {}
        for _ in range(100):
            self.press()

    def press(self) -> None:
        video = self.learner.suggest(self.rows)
        self.rows[video] = (str(self.true[int(video)]), "train")
        self.learner.learn(self.rows)

    def milliseconds(self) -> float:
        start = time.perf_counter()
        self.press()
        return 1000 * (time.perf_counter() - start)


def one_round(work: Contenders, classifier: Classifier, presses: Presses) -> dict[str, float]:
    """Every contender for a moment."""
    rate = side_by_side([work.bare, work.loop], 4, work.in_a_row)
    loop = rate[work.loop]
    name = work.trainer.precision.dtype
    limit = matmul_rate(precision.DTYPES[name] or torch.float32, work.device)
    evaluated, forward = side_by_side([work.evaluate, work.bare_forward], 2).values()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    read, decoded = (clips_per_second(w, 3, time.process_time) for w in (work.from_store, work.from_source))
    pictures = torch.randint(0, 256, (64, 3, 224, 224), dtype=torch.uint8, device=work.device)
    # on a CPU each core looks at a video of its own
    cores, clock = (threads, time.process_time) if work.device == "cpu" else (1, time.perf_counter)
    looked = cores * clips_per_second(lambda: len(classifier(pictures)[0]), 2, clock)
    torch.set_num_threads(threads)
    return {
        "loop_clips_per_s": loop,
        "loop_vs_bare": loop / rate[work.bare],
        "matmul_gmacs_per_s_fp32": matmul_rate(torch.float32, work.device) / 1e9,
        f"matmul_gmacs_per_s_{name}": limit / 1e9,
        "limit_share": loop * estimate.macs(work.p, len(work.data.classes)) / limit,
        "eval_vs_bare": evaluated / forward,
        "frame_store_vs_source": read / decoded,
        "teacher_frames_per_s": looked,
        "press_ms": presses.milliseconds(),
    }


def against_plain(work: Contenders) -> dict[str, float]:
    """Our loop against the plain one, and our loader processes, if there are any, against our loop.

    What loader processes have read ahead is taken before the time starts."""
    (loop,) = side_by_side([work.loop], 2, work.in_a_row).values()
    workers = work.batches.num_workers
    rates = {}
    for step in [work.read, work.plain.step] if workers else [work.plain.step]:
        for _ in range(2 * workers):
            step()
        rates |= side_by_side([step], 1, workers or 2)
    p = params.load(dataset="ucf101", method=work.p.method)
    ratios = {
        "loop_vs_plain": loop / rates[work.plain.step],
        "cell_hours": p.steps * p.batch_size / loop / 3600,
    }
    return ratios | ({"loader_vs_loop": rates[work.read] / loop} if workers else {})


def measure(root: Path, outputs: Path, batch_size: int, rounds: int) -> tuple[dict, str]:
    """All ratios with the absolute figures that they are made of, and the profile of the training loop."""
    p = parameters(root, outputs, batch_size)
    outputs.mkdir(parents=True, exist_ok=True)
    videos = [v.relative_to(root).as_posix() for v in sorted(root.rglob("*")) if v.is_file()]
    rows = [decoding(root, outputs, videos) for _ in range(rounds)]
    rows += [storing(root, outputs, videos) for _ in range(rounds)]
    data = prepare.prepare(p, with_teacher=True)
    stored = data.store.table
    rows.append({"bytes_per_frame": float(stored.stored_bytes.sum() / stored.frames.sum())})
    with reproducible(False, one_shape=True):  # as training does
        work = Contenders(p, data)
        on_gpu = work.device != "cpu"
        for warm_up in (work.bare, work.loop, work.bare_forward):
            warm_up()
        if on_gpu:
            finish()
            torch.cuda.reset_peak_memory_stats()
            work.loop()
            rows.append({"memory_gb": torch.cuda.max_memory_allocated() / 1e9})
        classifier, presses = Classifier(p.teacher).to(work.device), Presses()
        rows += [one_round(work, classifier, presses) for _ in range(rounds)]
        # the plain loop's loader processes would disturb all that follows
        rows += [against_plain(work) for _ in range(1 if on_gpu else rounds)]
        profile = profile_of(work.loop)
    result = {
        "format": str(work.trainer.precision),
        "gmacs_per_clip_step": round(estimate.macs(p, len(data.classes)) / 1e9, 2),
        "batch_size": batch_size,
        "rounds": rounds,
        "videos": len(videos),
        "frames_per_video": float(stored.frames.mean()),
        "machine": machine(work.device),
    }
    for name, values in pd.DataFrame(rows).items():
        result[name] = round(float(values.median()), 4)
        result[f"{name}_spread"] = [round(float(values.min()), 4), round(float(values.max()), 4)]
    return result, profile


def profile_of(work: Callable[[], int]) -> str:
    """Where the time of three steps goes, by PyTorch's own profiler."""
    with torch.profiler.profile() as prof:
        for _ in range(3):
            work()
        finish()
    by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return prof.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=60)


def table(result: dict) -> pd.DataFrame:
    """A row for each ratio, with its range over the rounds and its aim."""
    aims = aims_of(result)
    rows = [
        (name, result[name], "{} to {}".format(*result[f"{name}_spread"]), aims.get(name, ""), what)
        for name, what in WHAT.items()
        if name in result
    ]
    return pd.DataFrame(rows, columns=["ratio", "median", "range", "aim", "of what"]).set_index("ratio")


def draw(result: dict) -> Figure:
    """The ratios that have an aim, against it."""
    figure, axis = plt.subplots(figsize=(7, 2.6))
    aims = aims_of(result)
    names = list(aims)
    share = [result[n] / aims[n] for n in names]
    low, high = (np.array([result[f"{n}_spread"][i] / aims[n] for n in names]) for i in (0, 1))
    ends = [np.subtract(share, low), np.subtract(high, share)]
    axis.barh(names, share, xerr=ends, color="#0072b2")
    axis.axvline(1, color="#d55e00")
    axis.set(xlabel="median, as a share of the aim (line); whiskers: range")
    axis.invert_yaxis()
    for y, n in enumerate(names):
        axis.text(0.02, y, f"{result[n]:.3g}", va="center", color="white")
    return figure


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", type=Path, help="folder of class folders below train/ and test/, real videos"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128 if torch.cuda.is_available() else 16)
    parser.add_argument("--into", type=Path, default=ROOT / "outputs" / "bench")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or Path(folder) / "videos"
        if not args.root:
            baseline.make_videos(root, 24)
        outputs = Path(folder).resolve() / "outputs"
        result, profile = measure(root.resolve(), outputs, args.batch_size, args.rounds)
    path = args.into / "bench.json"
    files.write_text(path, json.dumps(result, indent=1) + "\n")
    files.write_text(args.into / "profile.txt", profile + "\n")
    plots.style()
    plots.save(draw(result), args.into / "bench")
    print(table(result).to_string())
    print(f"\n{result['machine']}, matrix rate {estimate.matrix_rate():.0f} GFLOP/s in fp32")
    print(f"{result['format']}, batch {result['batch_size']}; all figures: {path}")


if __name__ == "__main__":
    main()
