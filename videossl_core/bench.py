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

import av
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torchvision
from torch import Tensor
from torch.nn.functional import cross_entropy

from videossl_core import (
    codec,
    demo,
    estimate,
    evaluation,
    figures,
    files,
    models,
    precision,
    prepare,
    runs,
    training,
)
from videossl_core.distributed import Ranks
from videossl_core.frames import FrameStore, StoreSettings
from videossl_core.params import ROOT, Params
from videossl_core.sampling import Batches, ahead, loader, read_clip
from videossl_core.teacher import Classifier

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


def make_videos(root: Path, count: int) -> None:
    """One shot each, 192 frames of 320 x 240, as hard to read as UCF101's: about 1 KB a frame, and a random
    clip costs the decoder about 48 frames from the key frame before it (the mean of 32 UCF101 videos)."""
    rows, columns = (np.linspace(0, demo.SIDE - 1, n).astype(int) for n in (240, 320))
    grain = np.random.default_rng(0).normal(0, 4, (240, 320, 3))  # a camera's: rendered areas are too smooth
    for i in range(count):
        down = demo.frames(list(demo.NOUNS)[i % 7], "falls", i)
        split = "test" if i % 4 == 3 else "train"
        path = root / split / f"class{i % 2}" / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            stream.options = {"crf": "23", "g": "64"}  # else x264's own settings
            for k, picture in enumerate(np.concatenate([down, down[::-1]] * 3)):
                noisy = picture[rows][:, columns] + np.roll(grain, 7 * k, (0, 1))
                frame = av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


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


class Plain:
    """The loop as a careful user would write it from the paper: every step decodes its clips from the source
    videos and asks the ResNet-50; fp32 in PyTorch's default layout."""

    def __init__(self, p: Params, data: prepare.Data, device: str):
        self.p, self.device, self.videos = p, device, [data.index.root / v for v in data.split.video]
        self.rng = np.random.default_rng(0)
        heads = {"classes": len(data.classes), "embedding": 1000}
        self.net = models.VideoNet("resnet18", heads).to(device, memory_format=torch.contiguous_format)
        self.mean = torch.tensor(models.SPORTS1M_MEAN).view(1, 3, 1, 1, 1)
        self.teacher = torchvision.models.resnet50(weights=None).eval().to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), p.lr, p.momentum, weight_decay=p.weight_decay)

    def clip(self, path: Path) -> tuple[Tensor, Tensor]:
        clip = source_clip(path, self.rng, self.p.clip_frames)
        y, x = self.rng.integers(0, 136 - 112 + 1, 2)
        frame = clip[len(clip) // 2]
        small = torch.stack([torch.from_numpy(codec.pixels(f, 136, 136).copy()) for f in clip]).permute(
            3, 0, 1, 2
        )
        picture = torch.from_numpy(codec.pixels(frame, 224, 224).copy()).permute(2, 0, 1).float() / 255
        return small[:, :, y : y + 112, x : x + 112].float(), picture

    def step(self) -> int:
        chosen = self.rng.choice(len(self.videos), self.p.batch_size)
        clips, pictures = zip(*(self.clip(self.videos[i]) for i in chosen), strict=True)
        x = torch.stack(clips) - self.mean
        with torch.no_grad():
            h = self.teacher(torch.stack(pictures).to(self.device)).softmax(-1)
        features = self.net.backbone(x.to(self.device))
        logits, q = self.net.heads["classes"](features), self.net.heads["embedding"](features)
        k = len(x) // 2
        loss = cross_entropy(
            logits[:k], torch.zeros(k, dtype=torch.long, device=self.device)
        ) + cross_entropy(q, h)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return len(x)


def source_clip(path: Path, rng: np.random.Generator, length: int) -> list[av.VideoFrame]:
    """A random clip of a video file: seek to the key frame before it, and decode up to its end."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        start = int(rng.integers(0, max(1, stream.frames - length)))
        first = start / float(stream.average_rate)
        container.seek(int(first / stream.time_base), stream=stream)
        frames: list[av.VideoFrame] = []
        for frame in container.decode(stream):
            if frame.time is None or frame.time >= first - 1e-6:
                frames.append(frame)
            if len(frames) == length:
                break
    return frames


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
    plain, rng = Plain(p, data, device), np.random.default_rng(1)
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
        clip = source_clip(root / videos[rng.integers(len(videos))], rng, 16)
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
        prog="python -m videossl_core.bench", description=__doc__.splitlines()[0]
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
            make_videos(root, 24)
        found = measure(root.resolve(), Path(folder).resolve() / "outputs", asked.batch_size, asked.rounds)
    files.write_text(asked.into / "bench.json", json.dumps(found["result"], indent=1) + "\n")
    files.write_text(asked.into / "profile.txt", found["profile"] + "\n")
    figures.save(draw(found["result"]), asked.into / "bench")
    print(table(found["result"]).to_string())
    result, path = found["result"], asked.into / "bench.json"
    print(f"\n{result['machine']}, {result['format']}, batch {result['batch_size']}; all figures: {path}")


if __name__ == "__main__":
    main()
