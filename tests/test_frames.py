"""The frame store: it holds what the video shows, is filled once, and names bad videos."""

import io
import os

import av
import numpy as np
import pytest
from PIL import Image

from videossl_core import params, prepare, sampling
from videossl_core.data import codec, demo, files, splits
from videossl_core.data.datasets import DatasetError
from videossl_core.data.frames import FrameStore, StoreSettings

SETTINGS = StoreSettings(frame_size=64, jpeg_quality=95, teacher_stride=8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "a" / "clip.mp4"
    codec.write(path, demo.frames("daisy", "falls", 1))
    return path


@pytest.fixture
def store(video, tmp_path):
    store = FrameStore(tmp_path, SETTINGS)
    store.add(["a/clip.mp4"], video.parents[1])
    return store


def as_pixels(store, numbers) -> np.ndarray:
    clip = sampling.read_clip(store, "a/clip.mp4", np.asarray(numbers))
    return clip.permute(1, 2, 3, 0).numpy().astype(int)


def test_store_holds_the_video(store, video):
    """Each frame in its place, read in any order."""
    with av.open(str(video)) as container:  # an independent decode and resize
        images = [frame.to_image().resize((64, 64), 4) for frame in container.decode(video=0)]
    truth = np.stack([np.asarray(image) for image in images]).astype(int)
    assert store.table.loc["a/clip.mp4", "frames"] == len(truth) == demo.FRAMES
    pixels = as_pixels(store, range(len(truth)))
    assert abs(pixels - truth).mean() < 5  # JPEG and another resize filter
    # every frame is nearest to its own truth, not to a neighbour's (falls: every frame differs)
    errors = abs(pixels[:, None] - truth[None]).mean((2, 3, 4))
    assert (errors.argmin(1) == np.arange(len(truth))).all()
    assert np.array_equal(as_pixels(store, [30, 2, 2, 9]), pixels[[30, 2, 2, 9]])


def test_teacher_frames(store):
    """Every eighth frame at 224 x 224."""
    jpegs = store.read("a/clip.mp4", np.arange(4), teacher=True)
    assert {Image.open(io.BytesIO(jpeg)).size for jpeg in jpegs} == {(224, 224)}
    with pytest.raises(IndexError):
        store.read("a/clip.mp4", np.arange(5), teacher=True)


def test_decoded_again_if_changed(store, video):
    """A touched source is not decoded again; another one of the same size and time is."""
    root, path = video.parents[1], store.path("a/clip.mp4")
    before = path.stat().st_mtime_ns
    for _ in range(2):
        FrameStore(store.folder.parent, SETTINGS).add(["a/clip.mp4"], root)
        assert path.stat().st_mtime_ns == before
        os.utime(video, ns=(1, 1))  # touched or copied, but the same video
    times, size = video.stat(), video.stat().st_size
    codec.write(video, demo.frames("clock", "falls", 1))
    with open(video, "ab") as f:  # another video of the same size and the same time of change
        f.write(bytes(max(0, size - video.stat().st_size)))
    os.truncate(video, size)
    os.utime(video, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = FrameStore(store.folder.parent, SETTINGS)
    again.add(["a/clip.mp4"], root)
    assert path.stat().st_mtime_ns > before or again.table.reason["a/clip.mp4"]
    assert again.table.source_sha256["a/clip.mp4"] == files.sha256_of(video)
    assert FrameStore(store.folder.parent, StoreSettings(32, 95, 8)).folder != store.folder


def test_no_half_written_file(tmp_path):
    def broken():
        yield demo.frames("clock", "rises", 0)[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        codec.write(tmp_path / "v.mp4", broken())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no frames"):
        codec.write(tmp_path / "v.mp4", [])


@pytest.fixture
def own_videos(tmp_path):
    """A folder of two classes of four videos."""
    for name, noun in (("time", "clock"), ("sport", "soccer_ball")):
        for k in range(4):
            codec.write(tmp_path / "root" / name / f"{k}.mp4", demo.frames(noun, "rises", k)[:10])
    given = {"dataset": "own", "source": "folder", "root": tmp_path / "root", "outputs": tmp_path / "outputs"}
    given |= {"frame_size": 32, "crop_size": 24, "clip_frames": 8, "label_pct": 50, "method": "supervised"}
    return params.load(**given)


def test_broken_video_left_out(own_videos, tmp_path):
    """Preparing continues without it and warns, up to max_reject_pct."""
    (tmp_path / "root/time/0.mp4").write_text("broken")
    p = own_videos.but(max_reject_pct=20)
    with pytest.warns(UserWarning, match="1 of 8 videos are left out"):
        data = prepare.prepare(p)
    assert list(data.rejected.video) == ["time/0.mp4"]
    assert "time/0.mp4" not in set(data.split.video)
    assert "unreadable" in (p.data_dir / "rejected.csv").read_text()
    with pytest.raises(DatasetError, match=r"(?s)1 of 8 videos .* max_reject_pct .*time/0.mp4: unreadable"):
        prepare.prepare(p.but(max_reject_pct=5))


def test_same_with_more_processes(own_videos, tmp_path):
    one = prepare.prepare(own_videos.but(prep_workers=1))
    two = prepare.prepare(own_videos.but(prep_workers=2, outputs=tmp_path / "other"))
    for video in one.split.video:
        assert one.store.path(video).read_bytes() == two.store.path(video).read_bytes()
    assert splits.split_hash(one.split) == splits.split_hash(two.split)


def test_demo_rendered_alike(tmp_path):
    first = demo.frames("crossword", "falls", 3)
    assert np.array_equal(first, demo.frames("crossword", "falls", 3))
    assert first.shape == (demo.FRAMES, demo.SIDE, demo.SIDE, 3)
    (tmp_path / "demo.txt").write_text("12 videos a class\n")
    with pytest.raises(ValueError, match="holds another demo"):
        demo.render(tmp_path, per_class=3)


def test_same_frames_same_file(tmp_path):
    """The demo must be the same on every machine; with the encoder's usual settings this fails."""
    for noun, verb, seed in (("clock", "falls", 2), ("soccer_ball", "rises", 3)):
        pictures = demo.frames(noun, verb, seed)
        for i in range(20):
            codec.write(tmp_path / f"{i}.mp4", pictures)
        assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_demo_frame_hides_verb():
    """Falling and rising show the same pictures in opposite order."""
    times = np.arange(demo.FRAMES) / (demo.FRAMES - 1)
    falls, rises = ([demo.VERBS[verb](t) for t in times] for verb in ("falls", "rises"))
    assert falls[::-1] == pytest.approx(rises)
    assert falls != rises
