"""The batch of a step is a pure function of (seed, step)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videossl_core import methods, prepare, sampling


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(1, 30), st.integers(1, 20))
def test_every_video_is_seen_once_before_any_twice(seed, n, k):
    seen = np.concatenate([sampling.videos_of_step(seed, step, 0, n, k) for step in range(2 * n)])
    for epoch in range(len(seen) // n):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_steps_streams_and_seeds_differ():
    def order(seed, stream):
        return sampling.videos_of_step(seed, 0, stream, 50, 50).tolist()

    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)
    draws = [sampling.draws_of_step(seed, step, 4).start.tolist() for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(d) for d in draws}) == 4


@given(st.integers(1, 60), st.integers(2, 20), st.data())
def test_a_clip_stays_in_its_video(count, length, data):
    start = data.draw(st.integers(0, max(0, count - length)))
    numbers = sampling.clip_frames(count, start, length)
    assert len(numbers) == length
    assert 0 <= numbers.min() <= numbers.max() < count
    if count >= length:
        assert numbers.tolist() == list(range(start, start + length))


@pytest.mark.parametrize(
    ("count", "drop", "pad"), [(5, [0], [0]), (16, [0], [0]), (31, [0], [0, 16]), (32, [0, 16], [0, 16])]
)
def test_clips_of_a_video(count, drop, pad):
    assert sampling.test_starts(count, 16, "drop") == drop
    assert sampling.test_starts(count, 16, "pad") == pad


def test_centre_and_loop():
    assert sampling.centre_start(40, 16) == 12
    assert sampling.centre_start(10, 16) == 0
    assert sampling.clip_frames(3, 0, 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert sampling.clip_frames(20, 16, 8).tolist() == [16, 17, 18, 19, 16, 17, 18, 19]


def test_crop_reaches_every_place_and_flips_all_frames():
    clip = torch.arange(36).view(1, 1, 6, 6).expand(3, 4, 6, 6)
    assert torch.equal(sampling.crop(clip, 4, 0, 0), clip[..., :4, :4])
    assert torch.equal(sampling.crop(clip, 4, 0.999, 0.999), clip[..., 2:, 2:])
    assert torch.equal(sampling.crop(clip, 4, 0.5, 0.5), clip[..., 1:5, 1:5])
    assert torch.equal(sampling.crop(clip, 6, 0.3, 0.3, flip=True), clip.flip(-1))


def batches_of(p):
    data = prepare.prepare(p)
    return sampling.Batches(p, methods.METHODS[p.method], data.split, data.store, data.targets), data


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_batch_has_what_its_method_needs(tiny, method):
    batches, _ = batches_of(tiny(method=method))
    batch, again = batches[3], batches[3]
    assert all(torch.equal(batch[k], again[k]) for k in batch if k != "step")
    needs = methods.METHODS[method].needs
    assert ("teacher" in batch) == ("teacher" in needs)
    assert ("other" in batch) == ("ema" in needs)
    assert ("turn" in batch) == ("rotations" in needs)
    assert ("strong" in batch) == ("strong" in needs)
    k = 4 if method == "supervised" else 2
    assert batch["clips"].shape == (4, 3, 8, 24, 24)
    assert (len(batch["labels"]), len(batch["hidden"])) == (k, 4 - k)
    if "teacher" in batch:
        assert torch.allclose(batch["teacher"].sum(1), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("which", range(len(sampling.DISTORTIONS)))
def test_a_strong_view_distorts_all_frames_alike(which):
    frame = torch.randint(0, 256, (3, 1, 24, 24), dtype=torch.uint8)
    clip = frame.expand(3, 5, 24, 24)
    for by in (0.0, 0.3, 0.999):
        draws = sampling.draws_of_step(0, 0, 1)
        draws.first[:], draws.first_by[:] = (which + 0.5) / len(sampling.DISTORTIONS), by
        draws.hole_y[:], draws.hole_x[:] = by, 1 - by
        view = sampling.strong_view(clip, draws, 0)
        assert view.shape == clip.shape
        assert view.dtype == torch.uint8
        assert torch.equal(view, view[:, :1].expand_as(view))
        assert not torch.equal(view, clip)
        hole = (view == 127).all(0).all(0)
        y, x = int(by * 24), int((1 - by) * 24)
        assert hole[max(0, y - 6) : y + 6, max(0, x - 6) : x + 6].all()
    assert torch.equal(clip, frame.expand(3, 5, 24, 24))  # what came in is as it was


def test_labels_belong_to_their_clips(tiny):
    """Look the clips of a batch up among all crops of the videos that should be in it."""
    p = tiny(method="videossl", crop_size=32)
    batches, data = batches_of(p)
    batch = batches[0]
    truth = torch.cat([batch["labels"], batch["hidden"]])
    roles = ["labelled", "labelled", "unlabelled", "unlabelled"]
    for clip, label, role in zip(batch["clips"], truth, roles, strict=True):
        rows = data.rows(role)
        rows = rows[rows.label == label.item()]
        whole = [sampling.read_clip(data.store, v, np.arange(32)) for v in rows.video]
        assert any(torch.equal(clip, w[:, s : s + 8]) for w in whole for s in range(25))


def test_no_unlabelled_video_is_an_error_that_says_so(tiny):
    with pytest.raises(ValueError, match="label_pct = 100 leaves none"):
        batches_of(tiny(method="videossl", label_pct=100))
    assert batches_of(tiny(method="supervised", label_pct=100))[0][0]["clips"].shape[0] == 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("method", ["mt_sd", "s4l", "fixmatch"])
def test_processes_ranks_and_restarts_change_nothing(tiny, workers, ranks, method):
    """All that a batch holds, put together from every rank, whether the run began at step 0 or at 3."""
    p = tiny(method=method, num_workers=workers, hflip=True, batch_size=6)
    whole, data = batches_of(p)
    truth = [whole[step] for step in range(6)]
    parts = [
        sampling.Batches(p, whole.method, data.split, data.store, data.targets, rank, ranks)
        for rank in range(ranks)
    ]
    for first in (0, 3):
        feeds = [sampling.loader(part, p, "cpu", sampler=range(first, 6)) for part in parts]
        steps = 0
        for step, shares in enumerate(zip(*feeds, strict=True), first):
            for rank, share in enumerate(shares):
                assert share.pop("step") == step
                for name, value in share.items():
                    half = truth[step][name]
                    if len(half) == 6:  # labelled clips and unlabelled ones are shared out each
                        half = torch.cat([half[:3][rank::ranks], half[3:][rank::ranks]])
                    else:
                        half = half[rank::ranks]
                    assert torch.equal(value, half), name
            steps += 1
        assert steps == 6 - first


def test_the_batch_of_a_step_is_the_same_on_every_machine(tiny):
    """The draws of one step, written down: another order of random calls would be another data set."""
    assert sampling.videos_of_step(7, 5, 0, 10, 4).tolist() == [3, 8, 6, 1]
    assert sampling.draws_of_step(7, 5, 2).start.tolist() == pytest.approx(
        [0.45355534309985657, 0.12282601899136136], rel=1e-12
    )
