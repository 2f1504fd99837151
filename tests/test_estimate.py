"""What a data set will cost: proportional to what it is made of, from measured rates."""

import itertools
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from support.helpers import NETWORKS
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baseline, bench
from videossl_core import methods, models, paths
from videossl_core.data import datasets
from videossl_core.params import Params
from videossl_lab import estimate, execute, make_demo


def test_macs_by_hand():
    """Forward 8.30 G; backward twice that, but for the gradient of the input, which nobody needs."""
    stem = 64 * 3 * 7**3 * 16 * 56 * 56
    assert estimate.macs(Params(source="demo")) == pytest.approx(3 * 8.30e9 - stem, rel=0.005)
    half = estimate.macs(Params(source="demo", width=0.5))
    assert half < 0.4 * estimate.macs(Params(source="demo"))


def test_memory_by_hand():
    """What each layer of the 3D ResNet-18 leaves for the backward pass, in numbers of four bytes: its input,
    and what its batch norm leaves; of the pooling the places too, of eight bytes each. Measured, a training
    at batch 128 took 8.3 GB (docs/speed.md)."""
    clip, stem, pooled = 3 * 16 * 112**2, 64 * 16 * 56**2, 64 * 8 * 28**2
    stages = 8 * (pooled + 128 * 4 * 14**2 + 256 * 2 * 7**2 + 512 * 4**2)
    of_clip = 4 * (clip + 2 * stem + 3 * pooled + stages)
    weights = 4 * sum(w.numel() for w in models.VideoNet("resnet18", {"classes": 101}).parameters())
    for method, passes in (("supervised", 1), ("videossl_plus", 1.5), ("s4l", 4)):
        p = Params(source="demo", method=method)
        by_hand = (128 * passes * of_clip + 3 * weights) / 1e9
        assert estimate.memory(p) - estimate.LIBRARIES == pytest.approx(by_hand, rel=0.01)
    assert estimate.memory(Params(source="demo", method="probe")) == estimate.LIBRARIES
    assert estimate.memory(Params(source="demo")) == pytest.approx(8.3, rel=0.2)


@pytest.mark.parametrize(
    "given",
    [
        *[{"method": name} for name in NETWORKS],
        {"method": "s4l", "s4l_rotations": "one"},
        {"method": "s4l", "s4l_rotate_on": "unlabelled"},
        {"method": "mean_teacher", "mt_view": "same"},
    ],
    ids=lambda given: "-".join(given.values()),
)
def test_macs_of_real_step(given):
    """PyTorch counts those of a real forward and backward pass over four clips. A forward pass alone is a
    little more than the third that it is taken for, so 4 % more or less are right."""
    p = Params(source="demo", **given)
    method = methods.METHODS[p.method]
    k = method.labelled_clips(4)
    with torch.device("meta"):
        network = models.VideoNet(p.backbone, method.heads(101, p))
        clips = torch.zeros(4, 3, p.clip_frames, p.crop_size, p.crop_size, dtype=torch.uint8)
        batch = {"clips": clips, "labels": torch.zeros(k, dtype=torch.long), "teacher": torch.zeros(4, 1000)}
    batch |= {"strong": clips[k:], "other": clips, "turn": torch.tensor([0, 1, 2, 3])}
    with FlopCounterMode(display=False) as counter:
        out = methods.forward(network, network if "other" in method.needs else None, batch, method, p)
        sum(value.sum() for value in out.values() if value.requires_grad).backward()
    assert estimate.macs(p) == pytest.approx(counter.get_total_flops() / 2 / 4, rel=0.04)


def test_cost_is_proportional(monkeypatch):
    """To videos, frames, pixels and steps."""
    rates = {"bytes_per_frame": 5000, "prep_frames_per_s": 1000, "teacher_frames_per_s": 50}
    gmacs = estimate.macs(Params(source="demo")) / 1e9
    rates |= {"loop_clips_per_s": 10, "gmacs_per_clip_step": gmacs}
    monkeypatch.setattr(estimate, "rates", lambda: rates)
    cost = estimate.cost(Params(source="demo", steps=900, batch_size=40), 100, 200)
    seen = 2 * (1000 + 4 * 2048) / 8  # every eighth frame in float16, by resnet50
    assert cost.gigabytes == pytest.approx(100 * 200 * (5000 + seen) / 1e9)
    assert cost.decoding == pytest.approx(20 / 3600)
    look = 5.8 / 50  # seconds that resnet50 takes for a frame
    assert cost.teacher == pytest.approx(20_000 / 8 * look / 3600)
    few = estimate.cost(Params(source="demo"), 100, 200, seen=72)  # the teacher sees no test videos
    assert few.teacher == pytest.approx(0.72 * cost.teacher)
    assert cost.gigabytes - few.gigabytes == pytest.approx(28 * 200 * seen / 1e9)
    assert cost.training == pytest.approx(1.0)
    for method, hours in (
        ("supervised", 0),
        ("videossl", 900 * 40 * look / 3600),
    ):  # the teacher, at every step
        once, asked = (
            estimate.cost(
                Params(source="demo", steps=900, batch_size=40, method=method, teacher_view=v), 1, 1
            )
            for v in ("stored", "same")
        )
        assert asked.training - once.training == pytest.approx(hours)
    small = estimate.cost(Params(source="demo", frame_size=68, crop_size=56), 100, 200)
    assert small.gigabytes - cost.gigabytes == pytest.approx(-100 * 200 * 5000 * 0.8 * 0.75 / 1e9)
    assert "100 videos: about 0.146 GB, " in str(cost)
    assert estimate.cost(Params(source="demo", method="probe"), 100, 200).training == 0


@pytest.fixture
def published() -> dict:
    return json.loads((paths.ROOT / "outputs/reference/bench/bench.json").read_text())


def test_published_costs(monkeypatch, published):
    """The first documented row, from the published rates: UCF101's 13,320 videos of 186 frames."""
    monkeypatch.setattr(estimate, "rates", lambda: published)
    p = Params(source="ucf101", root="videos", teacher="efficientnet_lite0", method="supervised")
    cost = str(estimate.cost(p, 13_320, 186))
    assert "about 19.1 GB, 53 min of decoding, 42 min" in cost
    assert cost.endswith("one training run takes about 380 h and 7.8 GB of memory")


def test_sentence_before_preparing(tiny, monkeypatch, tmp_path):
    p = tiny()
    index = datasets.read_index(p)
    assert estimate.frames_per_video(p, index) == 32  # what the demo's videos have
    assert estimate.of_index(p, index).startswith("42 videos: about ")
    monkeypatch.setattr(estimate, "ROOT", tmp_path)
    assert estimate.of_index(p, index) == "no estimate: no outputs/bench/bench.json: run make bench"


def test_published_bench_is_complete(published):
    rows = {"limit_share", "loop_vs_bare", "loop_vs_plain", "frame_store_vs_source", "bytes_per_frame"}
    assert rows | {"eval_vs_bare"} <= set(bench.table(published).index)
    for name in bench.table(published).index:
        low, high = published[f"{name}_spread"]
        assert low <= published[name] <= high
    assert len(bench.draw(published).axes[0].patches) == len(bench.AIMS)


def test_side_by_side_takes_turns():
    order = []
    one, two = (lambda: order.append("one") or 4), (lambda: order.append("two") or 2)
    rates = bench.side_by_side([one, two], 3)
    assert order == ["one", "two"] * 3
    assert set(rates) == {one, two}


@pytest.mark.slow
def test_baseline_reads_consecutive_frames(tmp_path):
    """What the engine is compared with must read what it reads."""
    baseline.make_videos(tmp_path / "videos", 4)
    assert len(list((tmp_path / "videos/train").rglob("*.mp4"))) == 3
    rng = np.random.default_rng(0)
    path = next((tmp_path / "videos/train").rglob("*.mp4"))
    for _ in range(5):
        times = [frame.time for frame in baseline.source_clip(path, rng, 16)]
        assert len(times) == 16
        assert np.allclose(np.diff(times), 1 / 25)


def test_demo_scales_with_the_machine(tmp_path, monkeypatch):
    """Half the matrix rate, twice the wait; a data set without published times has no estimate."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    published = tmp_path / "outputs/reference/demo/waits.csv"
    published.parent.mkdir(parents=True)
    published.write_text("step,seconds,gflops\n1_data_prep,30,100\n2_train,40,200\n")
    assert make_demo.expected("demo", 200).to_dict() == {"1_data_prep": 15, "2_train": 40}
    assert make_demo.expected("demo", 50).sum() == 4 * make_demo.expected("demo", 200).sum()
    assert make_demo.expected("other", 200).empty


def test_matrix_rate_by_hand(monkeypatch):
    """The quickest of ten products counts: here the third, with a quarter of a second."""
    clock = itertools.accumulate([0, 1, 0, 1, 0, 0.25] + [0, 1] * 7)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))
    assert estimate.matrix_rate(100) == pytest.approx(2 * 100**3 / 0.25 / 1e9)
    assert next(clock, None) is None


def test_indented(capsys):
    """Lines that come in parts, and one too long for the terminal."""
    out = execute.Indented(sys.stdout)
    for part in ("training: 1", " of 4\ntraining: 2 of 4\n", "x" * 500 + "\n", "rest"):
        out.write(part)
    first, second, third = capsys.readouterr().out.splitlines()
    assert (first, second) == ("    training: 1 of 4", "    training: 2 of 4")
    assert third == "    " + "x" * (len(third) - 5) + "…"
    assert len(third) == shutil.get_terminal_size((110, 24)).columns - 1
