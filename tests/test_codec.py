"""Videos as people have them: turned, odd, grey, 10-bit, of varying rate, broken, with any name."""

import os
import struct

import numpy as np
import pytest
from support.helpers import small_videos
from support.videos import audio_only, encode

from videossl_core import batches, params, prepare, sampling
from videossl_core.data import codec, datasets
from videossl_core.data.codec import VideoError
from videossl_core.data.datasets import DatasetError
from videossl_core.data.frames import FrameStore, StoreSettings


def corner(height=64, width=96, count=12) -> list[np.ndarray]:
    """Dark pictures whose upper left quarter is bright."""
    picture = np.full((height, width, 3), 20, np.uint8)
    picture[: height // 2, : width // 2] = 230
    return [picture] * count


def stored(tmp_path, path) -> tuple[FrameStore, np.ndarray]:
    store = FrameStore(tmp_path / "store", StoreSettings(64, 95, 8))
    store.add([path.name], path.parent)
    assert store.table.reason[path.name] == ""
    numbers = np.arange(store.table.frames[path.name])
    return store, sampling.read_clip(store, path.name, numbers).numpy()


def bright(picture: np.ndarray) -> list[list[int]]:
    """Row and column of the bright quarters of a picture (3, S, S)."""
    half = picture.shape[1] // 2
    return np.argwhere(picture.mean(0).reshape(2, half, 2, half).mean((1, 3)) > 128).tolist()


@pytest.mark.parametrize(
    ("degrees", "matrix", "quarter"),
    [
        (0, (1, 0, 0, 1), [0, 0]),
        (90, (0, 1, -1, 0), [0, 1]),
        (180, (-1, 0, 0, -1), [1, 1]),
        (270, (0, -1, 1, 0), [1, 0]),
    ],
)
def test_rotation_mark(tmp_path, degrees, matrix, quarter):
    """A phone held upright stores the picture on its side and a mark; a player turns it clockwise."""
    path = encode(tmp_path / "v.mp4", corner())
    data = bytearray(path.read_bytes())
    a, b, c, d = (v * 65536 for v in matrix)  # the display matrix of MP4, in 16.16 fixed point
    start = data.index(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    store, clip = stored(tmp_path, path)
    assert bright(clip[:, 0]) == [quarter]
    row = store.table.loc["v.mp4"]
    assert (row.height, row.width) == ((96, 64) if degrees % 180 else (64, 96))
    teacher_frame = store.images("v.mp4", np.array([0]), teacher=True)[0]
    assert bright(teacher_frame.transpose(2, 0, 1)) == [quarter]


@pytest.mark.parametrize(
    ("name", "codec_name", "pix_fmt", "size"),
    [
        ("ten_bit.mkv", "libx264", "yuv420p10le", (64, 96)),
        ("grey.mp4", "libx264", "gray", (64, 96)),
        ("full_colour.mp4", "libx264", "yuv444p", (64, 96)),
        ("odd.mkv", "ffv1", "bgr0", (63, 97)),
        ("old.AVI", "mpeg4", "yuv420p", (64, 96)),
        ("small.MP4", "libx264", "yuv420p", (16, 16)),
        ("wide.webm", "libvpx-vp9", "yuv420p", (32, 320)),
    ],
)
def test_pixel_formats_sizes_and_suffixes(tmp_path, name, codec_name, pix_fmt, size):
    path = encode(tmp_path / name, corner(*size), codec_name, pix_fmt)
    store, clip = stored(tmp_path, path)
    assert clip.shape == (3, 12, 64, 64)
    assert bright(clip[:, 0]) == [[0, 0]]
    assert (store.table.height[name], store.table.width[name]) == size
    assert datasets.videos_below(tmp_path) == [name]


def test_variable_frame_rate(tmp_path):
    """The frames come in order, and the table holds their mean rate."""
    levels = np.linspace(0, 250, 20).astype(np.uint8)
    times = [0, 10, 500, 520, 530, *range(600, 2100, 100)]
    path = encode(tmp_path / "v.mkv", [np.full((64, 64, 3), v, np.uint8) for v in levels], times=times)
    store, clip = stored(tmp_path, path)
    assert abs(clip.mean((0, 2, 3)) - levels).max() < 6
    assert store.table.fps["v.mkv"] == pytest.approx(19 / 2.0, rel=0.01)


def make_broken(folder):
    """One video for each reason to reject it."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 96, 3), dtype=np.uint8)
    encode(folder / "fine.mp4", noise[:20])
    cut = {"cut.avi": ("mpeg4", 0.5), "cut.mkv": ("libx264", 0.3), "cut_end.mp4": ("libx264", 0.5)}
    for name, (codec_name, share) in cut.items():
        path = encode(folder / name, noise, codec_name)
        os.truncate(path, int(path.stat().st_size * share))
    encode(folder / "moov_first.mp4", noise, movflags="faststart")
    encode(folder / "one.mp4", noise[:1])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video at all")
    (folder / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{folder / 'fine.mp4'}\n")
    (folder / "concat.avi").write_text(f"ffconcat version 1.0\nfile '{folder / 'fine.mp4'}'\n")
    audio_only(folder / "sound.mp4")
    encode(folder / "thin.mkv", [np.zeros((2, 600, 3), np.uint8)] * 20, "ffv1", "bgr0")
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    os.mkfifo(folder / "pipe.mp4")


UNREADABLE = ("cut_end.mp4", "empty.mp4", "text.mp4", "list.mp4", "concat.avi")
REASONS = dict.fromkeys(UNREADABLE, "unreadable") | {
    "cut.avi": "damaged: ",
    "cut.mkv": "damaged: ",
    "one.mp4": "shorter than a clip: 1 of 16 frames",
    "sound.mp4": "no video stream",
    "thin.mkv": "implausible: 600 x 2 pixels",
    "folder.mp4": "unreadable: not a regular file",
    "loop.mp4": "unreadable (Too many levels of symbolic links)",
    "pipe.mp4": "unreadable: not a regular file",
    "gone.mp4": "missing",
}


@pytest.mark.slow
def test_rejected_videos_listed(tmp_path, recwarn):
    """Each with its reason; the others are prepared."""
    root = tmp_path / "videos"
    for name in ("a", "b"):
        make_broken(root / name)
    lists = tmp_path / "videos.csv"
    rows = [f"{c}/{name},{c},train" for c in "ab" for name in ("fine.mp4", *REASONS)]
    test = ["a/moov_first.mp4,a,test", "b/moov_first.mp4,b,test"]
    lists.write_text("\n".join(["video,label,split", *rows, *test]))
    given = {"dataset": "bad", "source": "csv", "root": root, "lists": lists, "outputs": tmp_path / "out"}
    given |= {"method": "supervised", "frame_size": 32, "crop_size": 24}
    with pytest.raises(DatasetError, match=r"28 of 32 videos below .* are unusable: over max_reject_pct"):
        prepare.prepare(params.load(**given))
    data = prepare.prepare(params.load(**given, max_reject_pct=95))
    reasons = data.rejected.set_index("video").reason
    assert len(reasons) == 2 * len(REASONS)
    for video, reason in reasons.items():
        assert reason.startswith(REASONS[video[2:]]), (video, reason)
        assert data.store.path(video).exists() == reason.startswith(("shorter", "damaged"))
    assert sorted(data.split.video) == ["a/fine.mp4", "a/moov_first.mp4", "b/fine.mp4", "b/moov_first.mp4"]
    nothing = tmp_path / "nothing.csv"
    nothing.write_text("video,label,split\na/cut.avi,a,train\nb/fine.mp4,b,test\n")
    with pytest.raises(DatasetError, match=r"no labelled video is usable, see .*rejected.csv"):
        prepare.prepare(params.load(**given | {"lists": nothing, "dataset": "none"}, max_reject_pct=100))
    looped = prepare.prepare(params.load(**given, max_reject_pct=95, short_videos="loop"))
    assert set(looped.split.video) - set(data.split.video) == {"a/one.mp4", "b/one.mp4"}
    assert len(batches.EvalClips(params.load(**given), ["a/one.mp4"], data.store)[0][0][0][0]) == 16


def test_implausible_size():
    for width, height in ((8193, 100), (100, 8193), (3, 90), (4, 129)):
        with pytest.raises(VideoError, match=f"implausible: {width} x {height} pixels"):
            codec._check_size(width, height)
    for width, height in ((8192, 4320), (4, 128), (320, 240)):
        codec._check_size(width, height)


def test_too_many_frames(tmp_path, monkeypatch):
    encode(tmp_path / "v.ts", corner(count=12))  # its header states no length
    monkeypatch.setattr(codec, "MAX_FRAMES", 10)
    with pytest.raises(VideoError, match="implausible: more than 10 frames; cut it"):
        list(codec.Video(tmp_path / "v.ts"))


def test_unusual_names(tmp_path):
    """Class folders and files with such names are indexed, decoded, drawn, listed, and read back."""
    names = ["-dash,semi;", 'it\'s "two"', "日本 é ñ 🎬", "star*name", "a%03d", "x=1 & y|z"]
    root = tmp_path / "videos"
    small_videos(root, [f"{name}/{name} {i}.MP4" for name in names for i in range(3)], 10)
    given = {"dataset": "names", "source": "folder", "root": root, "outputs": tmp_path / "out"}
    given |= {"method": "supervised", "frame_size": 32, "crop_size": 24, "clip_frames": 8, "label_pct": 50}
    data = prepare.prepare(params.load(**given))
    assert sorted(data.classes) == sorted(names)
    assert len(data.split) == 3 * len(names)
    assert data.rejected.empty
    listed = tmp_path / "list.lst"
    train = data.split[data.split.role != "test"]
    listed.write_text("".join(f"any/where/{r.video}*{r.label}\n" for r in train[::2].itertuples()))
    again = prepare.prepare(params.load(**given, label_draw="list", label_list=listed))
    assert sorted(again.rows("labelled").video) == sorted(train[::2].video)
    for video in data.split.video:
        assert len(again.store.read(video, np.arange(10))) == 10
