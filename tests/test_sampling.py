"""The batch of a step is a pure function of (seed, step)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.helpers import NETWORKS, same, slow_after

from videossl_core import methods, params, prepare, sampling
from videossl_core.batches import Batches, loader
from videossl_core.distributed import Ranks


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(1, 30), st.integers(1, 20))
def test_every_video_once_before_any_twice(seed, n, k):
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
    # written down, as test_pins.py does for the draws: another order would be another data set
    assert sampling.videos_of_step(7, 5, 0, 10, 4).tolist() == [3, 8, 6, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 20), st.integers(0, 9))
def test_balanced_classes(labels, k, seed):
    """At any moment each class came as often as any other, or once more, and so did each of its videos."""
    labels = np.array(labels)
    seen = np.array([], dtype=int)
    for step in range(8):
        drawn = sampling.balanced_videos_of_step(seed, step, labels, k)
        assert len(drawn) == k
        seen = np.concatenate([seen, drawn])
        times = np.bincount(labels[seen], minlength=5)[np.unique(labels)]
        assert times.max() - times.min() <= 1
        for label in np.unique(labels):
            of_class = np.bincount(seen, minlength=len(labels))[labels == label]
            assert of_class.max() - of_class.min() <= 1
    again = sampling.balanced_videos_of_step(seed, 7, labels, k)
    assert drawn.tolist() == again.tolist()


def clips_of(length: int, clips: str = "consecutive", last_clip: str = "drop") -> params.Params:
    return params.Params(source="demo", clip_frames=length, clips=clips, last_clip=last_clip)


@given(st.integers(1, 60), st.integers(2, 20), st.sampled_from(["consecutive", "spread"]), st.data())
def test_clip_stays_in_its_video(count, length, clips, data):
    p = clips_of(length, clips)
    start = data.draw(st.integers(0, sampling.starts(p, count) - 1))
    numbers = sampling.clip_frames(p, count, start)
    assert len(numbers) == length
    assert 0 <= numbers.min() <= numbers.max() < count
    if count >= length and clips == "consecutive":
        assert numbers.tolist() == list(range(start, start + length))


def test_clips_of_a_video():
    starts = {
        count: [sampling.clip_starts(clips_of(16, last_clip=end), count) for end in ("drop", "pad")]
        for count in (5, 16, 31, 32)
    }
    assert starts == {5: [[0], [0]], 16: [[0], [0]], 31: [[0], [0, 16]], 32: [[0, 16], [0, 16]]}
    assert sampling.centre_start(clips_of(16), 40) == 12
    assert sampling.centre_start(clips_of(16), 10) == 0
    assert sampling.clip_frames(clips_of(8), 3, 0).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert sampling.clip_frames(clips_of(8), 20, 16).tolist() == [16, 17, 18, 19, 16, 17, 18, 19]


def test_spread_clips():
    p = clips_of(4, "spread")
    # 18 frames: segments of 4.5, and four clips that share no frame
    clips = [sampling.clip_frames(p, 18, start).tolist() for start in sampling.clip_starts(p, 18)]
    assert clips == [[0, 4, 9, 13], [1, 5, 10, 14], [2, 6, 11, 15], [3, 7, 12, 16]]
    assert sampling.centre_start(p, 18) == 1
    assert sampling.clip_starts(p, 3) == [0]
    assert sampling.clip_frames(p, 3, 0).tolist() == [0, 0, 1, 2]


@given(st.integers(1, 200), st.integers(2, 20))
def test_spread_clips_share_no_frame(count, length):
    """Each is equally spaced, one frame in each of T equal parts of the video (TSN's segments)."""
    p = clips_of(length, "spread")
    clips = [sampling.clip_frames(p, count, start) for start in sampling.clip_starts(p, count)]
    assert len(clips) == max(1, count // length)
    if count >= length:
        assert len(set(np.concatenate(clips))) == len(clips) * length
        for clip in clips:
            assert np.diff(clip).max() - np.diff(clip).min() <= 1
            assert all(k * count // length <= n < (k + 1) * count / length for k, n in enumerate(clip))


def test_crop_and_flip():
    clip = torch.arange(36).view(1, 1, 6, 6).expand(3, 4, 6, 6)
    assert torch.equal(sampling.cut_view(clip, sampling.View(2, 1, 4, 4), 4), clip[..., 2:, 1:5])
    assert torch.equal(sampling.cut_view(clip, sampling.View(0, 0, 6, 6, flip=True), 6), clip.flip(-1))
    assert torch.equal(sampling.centre_crop(clip, 4), clip[..., 1:5, 1:5])


def views(count: int = 4000, which: str = "", **given) -> list[sampling.View]:
    p = params.Params(source="demo", **given)
    draws = sampling.draws_of_step(1, 0, count)
    assert same(sampling.draw_view(p, draws, 0, which), sampling.draw_view(p, draws, 0, which))
    return [sampling.draw_view(p, draws, i, which) for i in range(count)]


@pytest.mark.parametrize("which", ["", "other_"])
def test_crop_is_the_papers(which):
    """Without ``augment`` a view is the random crop, flipped half of the time where ``hflip`` says so."""
    clip, draws = torch.arange(400).view(1, 1, 20, 20).expand(3, 2, 20, 20), sampling.draws_of_step(1, 0, 100)
    y, x, flip = (getattr(draws, which + name) for name in ("y", "x", "flip"))
    for hflip in (False, True):
        for i, view in enumerate(views(100, which, frame_size=20, crop_size=16, hflip=hflip)):
            top, left = int(y[i] * 5), int(x[i] * 5)  # 0 to 4
            cut = clip[..., top : top + 16, left : left + 16]
            cut = cut.flip(-1) if hflip and flip[i] < 0.5 else cut
            assert torch.equal(sampling.cut_view(clip, view, 16), cut)


def test_standard_augmentation_has_its_distribution():
    """Half are flipped; areas are uniform from 0.44 to 1 (up to 3/4 no side is cut short), shapes uniform on
    a logarithmic scale from 3:4 to 4:3, places uniform, factors uniform from 0.6 to 1.4."""
    made = views(frame_size=1000, crop_size=800, augment="standard")
    other = views(frame_size=1000, crop_size=800, augment="standard", which="other_")
    assert not any(a == b for a, b in zip(made, other, strict=True))
    for drawn in (made, other):
        assert np.mean([v.flip for v in drawn]) == pytest.approx(0.5, abs=0.03)
        area = np.array([v.height * v.width / 1e6 for v in drawn])
        assert area.min() == pytest.approx(0.44, abs=0.002)
        assert area.max() <= 1
        for edge in (0.5, 0.6, 0.7):
            assert np.mean(area < edge) == pytest.approx((edge - 0.44) / 0.56, abs=0.03)
        shape = np.log([v.width / v.height for v in drawn])[area < 0.7] / np.log(4 / 3)
        assert np.abs(shape).max() <= 1.01
        assert shape.std() == pytest.approx(1 / np.sqrt(3), abs=0.02)
        assert shape.mean() == pytest.approx(0, abs=0.05)
        for start, side in (("top", "height"), ("left", "width")):
            at = np.array([(getattr(v, start) + 0.5) / (1001 - getattr(v, side)) for v in drawn])
            assert at.min() > 0
            assert at.max() < 1
            assert at.mean() == pytest.approx(0.5, abs=0.02)
        colours = np.array([v.colours for v in drawn])
        assert colours.min() == pytest.approx(0.6, abs=0.002)
        assert colours.max() == pytest.approx(1.4, abs=0.002)
        assert colours.mean(0) == pytest.approx([1, 1, 1], abs=0.02)
        assert np.abs(np.corrcoef(colours.T) - np.eye(3)).max() < 0.06


def test_view_against_pillow():
    """Box and size as Pillow makes them, colours as they are defined, up to three steps that round down; each
    frame as if it were alone."""
    torch.manual_seed(0)
    rough = torch.rand(3, 5, 6, 6)
    clip = (torch.nn.functional.interpolate(rough, 48, mode="bilinear") * 255).to(torch.uint8)
    view = sampling.View(4, 10, 36, 30, True, (0.8, 1.3, 0.6))
    cut = sampling.cut_view(clip, view, 24)
    assert (cut.shape, cut.dtype) == ((3, 5, 24, 24), torch.uint8)
    grey = np.array([0.2989, 0.587, 0.114])
    for frame, now in zip(clip.unbind(1), cut.unbind(1), strict=True):
        image = Image.fromarray(frame.permute(1, 2, 0).numpy()).crop((10, 4, 40, 40))
        truth = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))[:, ::-1] * 0.8
        truth = 1.3 * truth + (1 - 1.3) * (truth @ grey).mean()
        truth = truth.clip(0, 255)
        truth = 0.6 * truth + 0.4 * (truth @ grey)[..., None]
        assert np.abs(now.permute(1, 2, 0).numpy() - truth.clip(0, 255)).max() < 4
    still = clip[:, :1].expand(3, 5, 48, 48)
    cut = sampling.cut_view(still, view, 24)
    assert torch.equal(cut, cut[:, :1].expand_as(cut))


def batches_of(p, ranks=None):
    data = prepare.prepare(p)
    return Batches(p, methods.METHODS[p.method], data.split, data.store, data.targets, ranks)


@pytest.mark.parametrize("method", slow_after(3, NETWORKS))
def test_batch_has_what_its_method_needs(tiny, method):
    batches = batches_of(tiny(method=method))
    batch = batches[3]
    assert same(batch, batches[3])
    k, clip = (4 if method == "supervised" else 2), (3, 8, 24, 24)
    shapes = {"clips": (4, *clip), "labels": (k,), "hidden": (4 - k,)}
    needed = {"teacher": (4, 1000), "other": (4, *clip), "strong": (2, *clip), "turn": (4,)}
    shapes |= {name: needed[name] for name in methods.METHODS[method].needs if name in needed}
    assert batch.pop("step") == 3
    assert {name: tuple(value.shape) for name, value in batch.items()} == shapes
    if "teacher" in batch:
        assert torch.allclose(batch["teacher"].sum(1), torch.ones(4), atol=1e-5)
    batch, plain = batches_of(tiny(method=method, augment="standard", teacher_view="same"))[3], batch
    assert batch.pop("step") == 3
    if "teacher" in batch:
        shapes["teacher"] = (4, 3, 224, 224)  # pictures to ask it about
    assert {name: tuple(value.shape) for name, value in batch.items()} == shapes
    changed = {name for name, value in batch.items() if not same(value, plain[name])}
    assert changed == {"clips", "teacher", "other"} & shapes.keys()


@pytest.mark.parametrize("which", range(len(sampling.DISTORTIONS)))
def test_strong_view_distorts_frames_alike(which):
    frame = torch.randint(0, 256, (3, 1, 24, 24), dtype=torch.uint8)
    clip = frame.expand(3, 5, 24, 24)
    for by in (0.0, 0.3, 0.999):
        draws = sampling.draws_of_step(0, 0, 1)
        draws.first[:], draws.first_by[:] = (which + 0.5) / len(sampling.DISTORTIONS), by
        draws.hole_y[:], draws.hole_x[:] = by, 1 - by
        view = sampling.strong_view(clip, draws, 0)
        assert (view.shape, view.dtype) == (clip.shape, torch.uint8)
        assert torch.equal(view, view[:, :1].expand_as(view))
        assert not torch.equal(view, clip)
        hole = (view == 127).all(0).all(0)
        y, x = int(by * 24), int((1 - by) * 24)
        assert hole[max(0, y - 6) : y + 6, max(0, x - 6) : x + 6].all()
    assert torch.equal(clip, frame.expand(3, 5, 24, 24))  # what came in is as it was


def test_labels_belong_to_their_clips(tiny):
    """Look the clips of a batch up among all crops of the videos that should be in it."""
    p = tiny(method="videossl", crop_size=32)
    data, batch = prepare.prepare(p), batches_of(p)[0]
    truth = torch.cat([batch["labels"], batch["hidden"]])
    roles = ["labelled", "labelled", "unlabelled", "unlabelled"]
    for clip, label, role in zip(batch["clips"], truth, roles, strict=True):
        rows = data.rows(role)
        rows = rows[rows.label == label.item()]
        whole = [sampling.read_clip(data.store, v, np.arange(32)) for v in rows.video]
        assert any(torch.equal(clip, w[:, s : s + 8]) for w in whole for s in range(25))


def test_no_unlabelled_video_is_an_error(tiny):
    with pytest.raises(ValueError, match="label_pct = 100 leaves none"):
        batches_of(tiny(method="videossl", label_pct=100))
    assert batches_of(tiny(method="supervised", label_pct=100))[0]["clips"].shape[0] == 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("ranks", slow_after(1, [1, 2]))
@pytest.mark.parametrize("workers", slow_after(1, [0, 1, 2, 4]))
@pytest.mark.parametrize(
    "given",
    [
        {"method": "mt_sd"},
        {"method": "s4l"},
        {"method": "fixmatch"},
        {"method": "mt_sd", "augment": "standard", "teacher_view": "same"},
    ],
    ids=lambda given: "-".join(given.values()),
)
def test_processes_and_restarts_change_no_batch(tiny, workers, ranks, given):
    """All that a batch holds, put together from every rank, whether the run began at step 0 or at 3."""
    half = 2 * ranks
    p = tiny(**given, num_workers=workers, hflip=True, batch_size=2 * half)
    whole = batches_of(p)
    parts = [batches_of(p, Ranks(rank, ranks)) for rank in range(ranks)]
    for first in (0, 3):
        feeds = [loader(part, p, "cpu", sampler=range(first, 6)) for part in parts]
        for step, shares in zip(range(first, 6), zip(*feeds, strict=True), strict=True):
            for rank, share in enumerate(shares):
                truth = {
                    # labelled clips and unlabelled ones are shared out each
                    name: torch.cat([value[:half][rank::ranks], value[half:][rank::ranks]])
                    for name, value in whole[step].items()
                    if name != "step"
                }
                assert same(share, truth | {"step": step})
