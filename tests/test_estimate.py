"""What a data set will cost: proportional to what it is made of, from measured rates."""

import json

import pytest

from videossl_core import params
from videossl_core.data import datasets
from videossl_core.params import Params
from videossl_core.tools import bench, estimate, rival


def test_multiply_adds_of_a_training_step_by_hand():
    """Forward 8.30 G; backward twice that, but for the gradient of the input, which nobody needs."""
    stem = 64 * 3 * 7**3 * 16 * 56 * 56
    assert estimate.macs(Params(source="demo")) == pytest.approx(3 * 8.30e9 - stem, rel=0.005)
    half = estimate.macs(Params(source="demo", width=0.5))
    assert half < 0.4 * estimate.macs(Params(source="demo"))


def test_a_method_costs_what_its_losses_ask_for():
    def macs(method, **given):
        return estimate.macs(Params(source="demo", method=method, **given))

    one = macs("supervised")  # forward is a third of a step but for the input's gradient
    assert macs("pseudo_label") == one
    assert macs("mean_teacher") == pytest.approx(one + 8.30e9, rel=0.005)  # the averaged network goes forward
    assert macs("fixmatch") == pytest.approx(1.5 * one, rel=0.001)  # half of the clips twice
    turned = {"s4l_rotate_on": "both", "s4l_rotations": "all"}
    assert macs("s4l", **turned) == pytest.approx(4 * one, rel=0.001)
    assert macs("s4l", **turned | {"s4l_rotations": "one"}) == pytest.approx(2 * one, rel=0.001)
    assert macs("s4l", **turned | {"s4l_rotate_on": "unlabelled"}) == pytest.approx(2.5 * one, rel=0.001)


def test_cost_grows_with_videos_frames_pixels_and_steps(monkeypatch):
    rates = {"bytes_per_frame": 5000, "prep_frames_per_s": 1000, "teacher_frames_per_s": 50}
    rates |= {"loop_clips_per_s": 10, "gmacs_per_clip_step": estimate.macs(Params(source="demo")) / 1e9}
    monkeypatch.setattr(estimate, "measured", lambda: rates)
    cost = estimate.cost(Params(source="demo", steps=900, batch_size=40), 100, 200)
    assert cost.gigabytes == pytest.approx(100 * 200 * 5000 / 1e9)
    assert cost.decoding == pytest.approx(20 / 3600)
    assert cost.teacher == pytest.approx(20_000 / 8 / 50 / 3600)
    assert cost.training == pytest.approx(1.0)
    assert (
        estimate.cost(Params(source="demo", frame_size=68, crop_size=56), 100, 200).gigabytes
        < 0.5 * cost.gigabytes
    )
    assert "100 videos: about 0.1 GB of frames" in str(cost)
    assert estimate.known("ucf101", Params(source="demo")).gigabytes == pytest.approx(13_320 * 186 * 5e-6)


def test_the_sentence_before_preparing(tiny, monkeypatch, tmp_path):
    p = tiny()
    index = datasets.read_index(p)
    assert estimate.frames_per_video(index) == 32  # what the demo's videos have
    assert estimate.of_index(p, index).startswith("42 videos: about ")
    monkeypatch.setattr(estimate, "ROOT", tmp_path)
    assert estimate.of_index(p, index) == "no estimate: no outputs/bench/bench.json: run make bench"


def test_the_published_figures_have_all_that_is_promised():
    found = json.loads((params.ROOT / "outputs/reference/bench/bench.json").read_text())
    table = bench.table(found)
    assert {"limit_share", "loop_vs_bare", "loop_vs_plain", "frame_store_vs_source"} <= set(table.index)
    assert {"bytes_per_frame", "eval_vs_bare"} <= set(table.index)
    for name in bench.WHAT:
        low, high = found[f"{name}_spread"]
        assert low <= found[name] <= high
    figure = bench.draw(found)
    assert len(figure.axes[0].patches) == len(bench.AIMS)


def test_side_by_side_takes_turns():
    order = []
    one, two = (lambda: order.append("one") or 4), (lambda: order.append("two") or 2)
    rates = bench.side_by_side([one, two], 3)
    assert order == ["one", "two"] * 3
    assert set(rates) == {one, two}


def test_the_plain_loop_reads_clips_of_consecutive_frames(tmp_path):
    """What the engine is compared with must read what it reads."""
    rival.make_videos(tmp_path / "videos", 8)
    assert len(list((tmp_path / "videos/train").rglob("*.mp4"))) == 6
    rng = bench.np.random.default_rng(0)
    path = next((tmp_path / "videos/train").rglob("*.mp4"))
    for _ in range(5):
        clip = rival.source_clip(path, rng, 16)
        assert len(clip) == 16
        times = [frame.time for frame in clip]
        assert bench.np.allclose(bench.np.diff(times), 1 / 25)
