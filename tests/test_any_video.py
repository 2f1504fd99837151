"""A folder with one of each kind that people have goes through the notebooks' steps, and no file is lost: it
is used, rejected with the reason and what to do, or counted as passed over."""

import os
import re
import struct
import unicodedata
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.helpers import TINY
from support.videos import (
    INTRA,
    TO_BT2020,
    audio_only,
    copy_packets,
    encode,
    hybrid_log_gamma,
)

from videossl_core import params, predict, prepare, training
from videossl_core.data import codec, folders
from videossl_core.data.pictures import Scaler
from videossl_lab.annotate.widget import Annotator, Desk

COUNT = 40


def scene(n: int, kind: str) -> np.ndarray:
    """A red bar on grey or a blue one on green that moves in the upper half; below, marks that stand still
    and tell a picture that is turned, mirrored, squeezed or wrongly coloured."""
    picture = np.full((120, 160, 3), (110, 110, 110) if kind == "bar" else (60, 90, 60), np.uint8)
    picture[10:50, 2 * n : 2 * n + 40] = (210, 40, 40) if kind == "bar" else (40, 60, 210)
    picture[70:110, 116:124] = picture[70:78, 116:148] = picture[86:94, 116:140] = 250  # the letter F
    picture[100:116, 4:20] = (40, 200, 40)
    return picture


def film(kind: str, count: int = COUNT) -> list[np.ndarray]:
    return [scene(n % COUNT, kind) for n in range(count)]


def mux(path: Path, *streams, container: str | None = None) -> None:
    """Each stream: a codec, its pixel format, rate, pictures, and what else is set."""
    with av.open(str(path), "w", format=container) as out:
        made = []
        for name, pixels, rate, pictures, *given in streams:
            stream = out.add_stream(name, rate=rate)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = pixels
            for key, value in dict(*given).items():
                setattr(stream.codec_context, key, value)
            made.append((stream, pictures))
        for stream, pictures in made:
            for picture in pictures:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())


def trimmed(path: Path, kind: str) -> None:
    whole = encode(
        path.with_suffix(".whole.mp4"), film(kind, 90), g="1000", bf="0", sc_threshold="0", qp="10"
    )

    def earlier(packet):
        packet.pts -= round(2 / packet.time_base)
        packet.dts = packet.pts

    copy_packets(whole, path, earlier)
    whole.unlink()


def zeroed(path: Path, kind: str) -> None:
    data = bytearray(encode(path, film(kind, 60), **INTRA).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[int(len(data) * share) // 188 * 188 :])


def mirrored(path: Path, kind: str) -> None:
    """Stored from right to left, with a mark that turns it round."""
    data = bytearray(encode(path, [picture[:, ::-1].copy() for picture in film(kind)], qp="10").read_bytes())
    start = data.index(struct.pack(">5i", 65536, 0, 0, 0, 65536), data.index(b"tkhd"))
    data[start : start + 4] = struct.pack(">i", -65536)
    path.write_bytes(data)


def with_sound(path: Path, kind: str) -> None:
    with av.open(str(path), "w") as out:
        stream, sound = out.add_stream("libvpx-vp9", rate=15), out.add_stream("libopus", rate=48000)
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p"
        for picture in film(kind):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), "fltp", "mono")
            frame.sample_rate = 48000
            out.mux(sound.encode(frame))
        out.mux(sound.encode())


def hdr(path: Path, kind: str, transfer: int, curve) -> None:
    """BT.2020 in ten bits, with white of 203 nits."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx265", rate=25, options={"x265-params": "log-level=none:qp=10"})
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, transfer, 9
        for picture in film(kind):
            light = 203 * (picture.reshape(-1, 3) / 255) ** 2.4 @ TO_BT2020.T
            signal = (curve(light) * 65535).round().astype(np.uint16).reshape(picture.shape)
            frame = av.VideoFrame.from_ndarray(signal, format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=9)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def interlaced(path: Path, kind: str) -> None:
    woven = [scene(n, kind) for n in range(COUNT)]
    for n, picture in enumerate(woven):
        picture[1::2] = scene(n + 2, kind)[1::2]
    encode(path, woven, flags="+ildct+ilme", qp="10", **{"x264-params": "interlaced=1:tff=1"})


def narrow(path: Path, kind: str) -> None:
    pictures = [picture.reshape(120, 80, 2, 3).mean(2).astype(np.uint8) for picture in film(kind)]
    mux(path, ("libx264", "yuv420p", 25, pictures, {"sample_aspect_ratio": Fraction(2, 1)}))


def thumbnail_first(path: Path, kind: str) -> None:
    white = [np.full((32, 32, 3), 255, np.uint8)]
    mux(path, ("mjpeg", "yuvj420p", 25, white), ("libx264", "yuv420p", 25, film(kind)))


def plain(codec_name="libx264", pixels="yuv420p", rate=25, container=None, count=COUNT):
    return lambda path, kind: mux(path, (codec_name, pixels, rate, film(kind, count)), container=container)


def one_of_each(kind: str) -> dict:
    """What makes a file, by the file's name; the row of shared/REPORTS.md."""
    return {
        unicodedata.normalize("NFD", "Übung, café (2).mp4"): trimmed,  # 1, 17
        "it's damaged.mp4": zeroed,  # 2
        "capture.ts": lambda path, kind: cut(
            encode(path, film(kind, 100), g="50", sc_threshold="0"), 0.4
        ),  # 3
        "screen recording.webm": with_sound,  # 4
        "HLG.MOV": lambda path, kind: hdr(path, kind, 18, hybrid_log_gamma),  # 5
        "selfie.MP4": mirrored,  # 6
        "thumbnail first.mkv": thumbnail_first,  # 7
        "dropped.avi": lambda path, kind: encode(
            path, film(kind), "mpeg4", times=range(0, 160, 4), ticks=25
        ),  # 8
        'wide "pixels".mkv': narrow,  # 9
        "00001.mts": interlaced,  # 10
        "twenty minutes.mp4": lambda path, kind: encode(
            path, [scene(5, kind)] * 300, times=range(0, 1200000, 4000)
        ),
        "dance.gif": plain("gif", "rgb8"),  # 12
        "raw.h264": plain(container="h264"),
        "studio.y4m": plain("rawvideo", container="yuv4mpegpipe"),
        "VTS_01_1.VOB": plain("mpeg2video", container="vob"),
        "sixty.mp4": plain(rate=60, count=90),  # 13
        "ten.mp4": plain(rate=10),
    }


def truncated(path: Path) -> None:
    encode(path, film("bar"), **INTRA, movflags="faststart")
    os.truncate(path, path.stat().st_size // 2)


BROKEN = {
    "half copied.mp4": (truncated, "damaged: 2. of .. frames"),
    "no index.mp4": (lambda path: path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(5000)), "unreadable"),
    "empty.mp4": (Path.touch, "unreadable: an empty file"),
    "not found.mp4": (lambda path: path.write_text("<html>404 not found</html>" * 9), "unreadable"),
    "photo.mp4": (lambda path: Image.fromarray(scene(0, "bar")).save(path, "JPEG"), "unreadable"),
    "sound.mp4": (audio_only, "no video stream"),
    "three frames.mp4": (lambda path: plain(count=3)(path, "bar"), "shorter than a clip: 3 of 8 frames"),
    "picture.gif": (lambda path: Image.fromarray(scene(0, "bar")).save(path), "shorter than a clip: 1 of 8"),
    "gone.mp4": (lambda path: path.symlink_to("nowhere.mp4"), "missing"),
}
"""What makes it, and how the reason begins."""

OTHERS = "photo.jpg paper.pdf notes.txt Thumbs.db README ._selfie.MP4 .DS_Store __MACOSX/._selfie.MP4"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("Anna's videos")
    for name in ("train/a bar", "train/a block", "valid/a bar", "valid/a block", "annotations", "__MACOSX"):
        (root / name).mkdir(parents=True)
    for i, (name, make) in enumerate(one_of_each("").items()):
        kind = ("bar", "block")[i % 2]
        make(root / "train" / f"a {kind}" / name, kind)
    for kind in ("bar", "block"):
        for i, rate in enumerate((24, 25, 30)):
            plain(rate=rate)(root / "valid" / f"a {kind}" / f"{i}.mp4", kind)
    for name, (make, _) in BROKEN.items():
        make(root / "train/a bar" / name)
    for name in OTHERS.split():
        (root / name).write_bytes(b"x")
    return root


def accounted(root: Path, used, reasons: pd.Series) -> None:
    """Every file of the folder is in one of three places, and the right one."""
    assert {Path(video).name for video in reasons.index} == {*BROKEN}
    for video, reason in reasons.items():
        begins = BROKEN[Path(video).name][1]
        assert re.fullmatch(rf"{begins}.*\. [A-Z].{{20,}}", reason), f"{video}: {reason}"
    every = [path for path in root.rglob("*") if not path.is_dir()]
    assert len({*used, *reasons.index}) == len(used) + len(reasons) == len(every) - len(OTHERS.split())
    assert folders.passed_over(root, [*used, *reasons.index]) == (
        "passed over: 3 hidden, 1 without a suffix, 1 .db, 1 .txt, 1 .pdf, 1 .jpg"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the first time all are looked at
def test_nothing_silent_nothing_lost(root, tmp_path):
    outputs = {"outputs": tmp_path / "outputs", "max_reject_pct": 50, "root": root, "label_pct": 100}
    given = TINY | outputs | {"dataset": "any", "source": "folder", "method": "probe"}

    # data_prep and train
    p = params.load(**given)
    with (
        pytest.warns(UserWarning, match="no video in __MACOSX, annotations: passed over"),
        pytest.warns(UserWarning, match=r"9 of 32 videos are left out, see .*rejected\.csv"),
        pytest.warns(UserWarning, match=r"the videos have 0\.25 to 60 frames per second"),
    ):
        data = prepare.prepare(p)
    accounted(root, data.split.video, data.rejected.set_index("video").reason)
    written = pd.read_csv(p.data_dir / "rejected.csv").set_index("video").reason
    pd.testing.assert_series_equal(written, data.rejected.set_index("video").reason, check_dtype=False)
    assert data.split.role.value_counts().to_dict() == {"labelled": 17, "test": 6}
    table = data.store.table.loc[data.split.video]
    assert table.damaged.sum() >= 1  # it's damaged.mp4
    assert table.missing.sum() == 0
    training.train(p)

    # the same by a spreadsheet's CSV
    lists = tmp_path / "list.csv"
    table = data.index.table[["video", "class_name", "split"]].set_axis(["video", "label", "split"], axis=1)
    table.to_csv(lists, sep=";", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    listed = prepare.prepare(params.load(**given | {"source": "csv", "lists": lists}))
    pd.testing.assert_frame_equal(listed.split, data.split)
    pd.testing.assert_frame_equal(listed.rejected, data.rejected)

    # predict: the folder, one file, one that is broken
    predictions = predict.predict_files(p, root)
    table = predictions.table.set_index("video")
    accounted(root, table.index[table.reason == ""], table.reason[table.reason != ""])
    good = table[table.reason == ""]
    assert (good.predicted == [Path(video).parent.name for video in good.index]).mean() > 0.9
    spans = predictions.spans()
    assert {*spans.video} == {*good.index}
    assert spans.end[spans.video.str.endswith("twenty minutes.mp4")].max() == pytest.approx(1200, rel=0.02)
    one = predict.predict_files(p, next(root.rglob("wide*.mkv")))
    assert list(one.table.reason) == [""]
    broken = predict.predict_files(p, root / "train/a bar/sound.mp4")
    assert list(broken.table.reason) == [table.reason["train/a bar/sound.mp4"]]

    # annotate
    mine = given | {"dataset": "mine", "source": "annotated", "lists": tmp_path / "labels.csv"}
    (p.outputs / "mine").mkdir()
    (p.outputs / "mine/data").symlink_to(p.data_dir)  # decoded and seen by the teacher already
    desk = Desk(params.load(**mine, classes=data.classes))
    accounted(root, desk.videos, desk.rejected)
    widget = Annotator(desk)
    for _ in desk.videos:
        video, why = widget.state["video"], widget.state["why"]
        assert widget.state["problem"] == ""
        assert ("the first 10 of its 1200 seconds are shown" in why) == video.endswith("minutes.mp4")
        looks_right(widget.clip, Path(video).parent.name.removeprefix("a "), tmp_path / "clip.mp4")
        widget.press("label", video, Path(video).parent.name)
    assert {*desk.labels.rows} == {*desk.videos}


def looks_right(clip: bytes, kind: str, path: Path) -> None:
    """What stands still is where it was drawn, in its colours and proportions, in every frame."""
    path.write_bytes(clip)
    for frame in codec.Video(path):
        assert frame.width / frame.height == pytest.approx(4 / 3, rel=0.01)
        shown = Scaler()(frame, 160, 120).astype(int)
        assert abs(shown - scene(0, kind))[60:].mean() < 12  # a GIF has 256 colours; mirrored it is 24
