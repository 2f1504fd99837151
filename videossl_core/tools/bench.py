"""How near the code is to what the machine can do, as ratios measured side by side: ``make bench``.

Every round runs each contender for a moment, in turns, so that a busy machine slows all alike; what is
reported is the median over the rounds and their range.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from videossl_core import evaluation, precision, prepare, runs, training
from videossl_core.data import codec, files
from videossl_core.data.frames import FrameStore, StoreSettings
from videossl_core.distributed import Ranks
from videossl_core.params import ROOT, Params
from videossl_core.sampling import Batches, ahead, loader, read_clip
from videossl_core.teacher import Classifier
from videossl_core.tools import estimate, rival
from videossl_core.views import figures

WHAT = {
    "limit_share": "training loop's multiply-adds, of the machine's matrix product in the same format",
    "loop_vs_bare": "training loop, of the bare forward, backward and step on a constant tensor",
    "loop_vs_plain": "training loop, against a plain one: decodes, asks the teacher, fp32",
    "frame_store_vs_source": "reading random clips, frame store against the source video, one core",
    "bytes_per_frame": "of the frame store, the teacher's frames included",
    "eval_vs_bare": "evaluation, of the bare forward pass",
    "prep_growth": "decoding with one process a core, against one process",
}
AIMS = {"loop_vs_bare": 0.97, "loop_vs_plain": 2.5, "frame_store_vs_source": 12.0, "eval_vs_bare": 0.95}


def parameters(root: Path, outputs: Path, batch_size: int) -> Params:
    """The paper's network and clips."""
    return Params(
        dataset="bench", source="folder", root=root, outputs=outputs, teacher="efficientnet_lite0",
        label_pct=50, batch_size=batch_size, steps=100_000, num_workers=0, checkpoint_minutes=1000,
    )  # fmt: skip


def clips_per_second(work: Callable[[], int], at_least: float = 0.0, clock=time.perf_counter) -> float:
    """``clock`` may be ``time.process_time``: then a second is one of a core, whoever else is at work."""
    start, clips = clock(), work()
    while clock() - start < at_least:
        clips += work()
    return clips / (clock() - start)


def side_by_side(works: list[Callable[[], int]], times: int) -> dict[Callable[[], int], float]:
    """Clips a second of each, taken in turns."""
    seconds, clips = dict.fromkeys(works, 0.0), dict.fromkeys(works, 0)
    for _ in range(times):
        for work in works:
            start = time.perf_counter()
            clips[work] += work()
            seconds[work] += time.perf_counter() - start
    return {work: clips[work] / seconds[work] for work in works}


def matmul_rate(dtype: torch.dtype, device: str, n: int = 2048) -> float:
    """Multiply-adds a second of one large matrix product."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def work() -> int:
        out = a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        return out.shape[0]

    work()
    return clips_per_second(work, 0.7) * n * n


def measure(root: Path, outputs: Path, batch_size: int, rounds: int) -> dict:
    """All ratios, and the absolute figures of this machine that they are made of."""
    p = parameters(root, outputs, batch_size)
    device = prepare.device(p)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> float:
        found.setdefault(name, []).append(value)
        return value

    videos = [v.relative_to(root).as_posix() for v in sorted(root.rglob("*")) if v.is_file()]
    for i in range(3):  # decoding, with one process and with one a core, into empty stores
        rates = []
        for workers in (1, os.cpu_count() or 1):
            store = FrameStore(outputs / f"prep{i}-{workers}", StoreSettings(136, 90, 8))
            rates.append(clips_per_second(lambda s=store, w=workers: s.add(videos, root, w) or len(videos)))
        note("prep_videos_per_s_1_process", rates[0])
        note("prep_growth", rates[1] / rates[0])
        note("prep_frames_per_s", rates[1] * store.table.frames.mean())
    data = prepare.prepare(p, with_teacher=True)
    store = data.store
    note("bytes_per_frame", float(store.table.stored_bytes.sum() / store.table.frames.sum()))
    classifier = Classifier(p.teacher).to(device)
    pictures = torch.randint(0, 256, (64, 3, 224, 224), dtype=torch.uint8, device=device)

    run = training._Training(runs.Run(p.run_dir), p, device, Ranks())
    flops = estimate.macs(p, len(data.classes))
    constant = torch.randint(0, 256, (batch_size, 3, 16, 112, 112), dtype=torch.uint8, device=device)
    constant = constant.contiguous(memory_format=torch.channels_last_3d)  # as clips come
    batches = Batches(p, run.method, data.split, store, data.targets)
    feed = ahead(loader(batches, p, device, sampler=range(10**6)))
    plain, rng = rival.Plain(p, data, device), np.random.default_rng(1)
    dtype = precision.DTYPES[run.precision.dtype] or torch.float32

    def bare() -> int:
        run.optimizer.zero_grad(set_to_none=True)
        out = run.network(constant)
        (-sum(o.log_softmax(-1)[:, 0].mean() for o in out.values())).backward()
        run.optimizer.step()
        return len(constant)

    def loop() -> int:
        batch = next(feed)
        run.step(batch.pop("step"), {name: v.to(device) for name, v in batch.items()})
        return batch_size

    def from_store() -> int:
        video = videos[rng.integers(len(videos))]
        start = int(rng.integers(0, store.table.frames[video] - 16))
        read_clip(store, video, np.arange(start, start + 16))
        return 1

    def from_source() -> int:
        clip = rival.source_clip(root / videos[rng.integers(len(videos))], rng, 16)
        np.stack([codec.pixels(f, 136, 136) for f in clip])
        return 1

    rows = data.split[data.split.role == "test"].reset_index(drop=True)
    test_clips = len(rows) + int((store.table.frames[rows.video] // 16).sum())

    def evaluate() -> int:
        evaluation.predict(run.network, p, rows, data.classes, store, device)
        return test_clips

    def bare_forward() -> int:
        run.network.eval()
        with torch.inference_mode():
            run.network(constant)
        run.network.train()
        return len(constant)

    for work in (bare, loop, plain.step, bare_forward):
        work()  # the first time is not like the others
    for _ in range(rounds):
        rate = side_by_side([bare, loop], 4) | side_by_side([plain.step], 2)
        note("loop_clips_per_s", rate[loop])
        note("loop_vs_bare", rate[loop] / rate[bare])
        note("loop_vs_plain", rate[loop] / rate[plain.step])
        note("matmul_gmacs_per_s_fp32", matmul_rate(torch.float32, device) / 1e9)
        limit = matmul_rate(dtype, device)
        note(f"matmul_gmacs_per_s_{run.precision.dtype}", limit / 1e9)
        note("limit_share", rate[loop] * flops / limit)
        looked = side_by_side(
            [evaluate, lambda: sum(bare_forward() for _ in range(test_clips // batch_size))], 2
        )
        note("eval_vs_bare", np.divide(*looked.values()))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        read, decoded = (clips_per_second(w, 3, time.process_time) for w in (from_store, from_source))
        note("frame_store_vs_source", read / decoded)
        torch.set_num_threads(threads)
        note("teacher_frames_per_s", clips_per_second(lambda: len(classifier(pictures)), 2))
    profile = profile_of(loop)
    result: dict = {"format": str(run.precision), "gmacs_per_clip_step": round(flops / 1e9, 2)}
    result |= {"batch_size": batch_size, "rounds": rounds, "videos": len(videos)}
    result |= {"frames_per_video": float(store.table.frames.mean()), "machine": precision.machine(device)}
    for name, values in found.items():
        result[name] = round(float(np.median(values)), 4)
        result[f"{name}_spread"] = [round(min(values), 4), round(max(values), 4)]
    return {"result": result, "profile": profile}


def profile_of(work: Callable[[], int]) -> str:
    """Where the time of three steps goes, by PyTorch's own profiler."""
    with torch.profiler.profile() as prof:
        for _ in range(3):
            work()
    return prof.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=60)


def table(result: dict) -> pd.DataFrame:
    rows = [
        (name, result[name], "{} to {}".format(*result[f"{name}_spread"]), AIMS.get(name, ""), what)
        for name, what in WHAT.items()
    ]
    return pd.DataFrame(rows, columns=["ratio", "median", "range", "aim", "of what"]).set_index("ratio")


def draw(result: dict):
    """The ratios that have an aim, against it."""
    figure, axis = plt.subplots(figsize=(7, 2.6))
    names = list(AIMS)
    share = [result[n] / AIMS[n] for n in names]
    low, high = (np.array([result[f"{n}_spread"][i] / AIMS[n] for n in names]) for i in (0, 1))
    ends = [np.subtract(share, low), np.subtract(high, share)]
    axis.barh(names, share, xerr=ends, color="#0072b2")
    axis.axvline(1, color="#d55e00")
    axis.set(xlabel="median, as a share of the aim (line); whiskers: range")
    axis.invert_yaxis()
    for y, n in enumerate(names):
        axis.text(0.02, y, f"{result[n]:.3g}", va="center", color="white")
    return figure


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m videossl_core.tools.bench", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--root", type=Path, help="folder of class folders below train/ and test/, real videos"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--into", type=Path, default=ROOT / "outputs" / "bench")
    asked = parser.parse_args(words)
    figures.style()
    with tempfile.TemporaryDirectory() as folder:
        root = asked.root or Path(folder) / "videos"
        if not asked.root:
            rival.make_videos(root, 24)
        found = measure(root.resolve(), Path(folder).resolve() / "outputs", asked.batch_size, asked.rounds)
    files.write_text(asked.into / "bench.json", json.dumps(found["result"], indent=1) + "\n")
    files.write_text(asked.into / "profile.txt", found["profile"] + "\n")
    figures.save(draw(found["result"]), asked.into / "bench")
    print(table(found["result"]).to_string())
    result, path = found["result"], asked.into / "bench.json"
    print(f"\n{result['machine']}, {result['format']}, batch {result['batch_size']}; all figures: {path}")


if __name__ == "__main__":
    main()
