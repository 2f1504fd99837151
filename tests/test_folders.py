"""Folders as people have them: any suffix, any layout, any spelling; nothing passed over without a word."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from videossl_core.data import codec, datasets


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_video(path: Path, container: str, codec_name: str, pix_fmt: str, count: int = 12) -> None:
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec_name, 25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, pix_fmt  # the size of DV
        for level in np.linspace(20, 230, count).astype(np.uint8):
            picture = np.full((576, 720, 3), level)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


@pytest.mark.parametrize(
    ("suffix", "container", "codec_name", "pix_fmt"),
    [
        ("gif", "gif", "gif", "rgb8"),
        ("vob", "mpeg", "mpeg2video", "yuv420p"),
        ("MOD", "mpeg", "mpeg2video", "yuv420p"),
        ("tod", "mpegts", "mpeg2video", "yuv420p"),
        ("asf", "asf", "wmv2", "yuv420p"),
        ("ogg", "ogg", "libvpx", "yuv420p"),
        ("ogm", "ogg", "libvpx", "yuv420p"),
        ("h264", "h264", "libx264", "yuv420p"),
        ("y4m", "yuv4mpegpipe", "rawvideo", "yuv420p"),
        ("LRV", "mp4", "libx264", "yuv420p"),
        ("insv", "mp4", "libx264", "yuv420p"),
        ("qt", "mov", "mpeg4", "yuv420p"),
        ("f4v", "f4v", "libx264", "yuv420p"),
        ("divx", "avi", "mpeg4", "yuv420p"),
        ("mxf", "mxf", "mpeg2video", "yuv420p"),
        ("gxf", "gxf", "mpeg2video", "yuv420p"),
        ("dv", "dv", "dvvideo", "yuv420p"),
        ("mjpeg", "mjpeg", "mjpeg", "yuvj420p"),
        ("wtv", "wtv", "mpeg2video", "yuv420p"),
        ("rm", "rm", "rv20", "yuv420p"),
        ("m2v", "mpeg2video", "mpeg2video", "yuv420p"),
    ],
)
def test_suffix_found_and_decoded(tmp_path, suffix, container, codec_name, pix_fmt):
    name = f"v.{suffix}"
    write_video(tmp_path / name, container, codec_name, pix_fmt)
    assert datasets.videos_below(tmp_path) == [name]
    assert len(list(codec.decode(tmp_path / name))) == 12


def test_passed_over_is_counted(tmp_path):
    root = touch(tmp_path, "a/1.mp4", "a/2.avi", "a/1.JPG", "b/2.jpg", "b/notes.txt", "README", "b/.DS_Store")
    assert datasets.passed_over(root, datasets.videos_below(root)) == (
        "passed over: 2 .jpg, 1 without a suffix, 1 .txt"
    )
    assert datasets.passed_over(root / "a", ["1.mp4", "1.JPG"]) == "passed over: 1 .avi"
    assert datasets.passed_over(root / "a", ["1.mp4", "1.JPG", "2.avi"]) == "passed over: nothing"


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    root, scandir = touch(tmp_path, "a/1.mp4", "b/2.mp4"), os.scandir

    def denied(path):  # root may read everything, so that a mode would not do
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.warns(UserWarning, match=r"/b: passed over \(Permission denied\)"):
        assert datasets.videos_below(root) == ["a/1.mp4"]
