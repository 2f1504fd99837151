"""What is stored is what a player shows: marks, colours, streams, times, and what is left of damaged files.

The right pictures are drawn with NumPy before they are encoded.
"""

import os
import tracemalloc
import warnings
from fractions import Fraction

import av
import numpy as np
import pandas as pd
import pytest
from support.helpers import slow_after
from support.videos import (
    INTRA,
    TO_BT2020,
    copy_packets,
    encode,
    hybrid_log_gamma,
    marked,
    noise,
    numbered,
    perceptual_quantizer,
    trimmed,
    with_sound,
    with_thumbnail,
)

from videossl_core import params, prepare
from videossl_core.data import codec, datasets, frames
from videossl_core.data.frames import FrameStore, StoreSettings
from videossl_core.data.pictures import Scaler, _converter
from videossl_lab import films

SETTINGS = StoreSettings(frame_size=64, jpeg_quality=95, teacher_stride=8)


def shown(path, **given) -> tuple[codec.Video, list[np.ndarray]]:
    """All frames of a video, at the size of its pictures."""
    video, scaled = codec.Video(path, **given), Scaler()
    return video, [scaled(frame, *video.shown_size(frame)) for frame in video]


def numbers(pictures) -> list[int]:
    halves = [np.array(picture).mean((0, 2)).reshape(2, -1).mean(1) for picture in pictures]
    return [10 * round(tens / 25) + round(units / 25) for tens, units in halves]


def row_of(tmp_path, path, settings=SETTINGS) -> pd.Series:
    store = FrameStore(tmp_path / "store", settings)
    store.add([path.name], path.parent, workers=1)
    return store.table.loc[path.name]


# ---- Which frames


def test_edit_list(tmp_path):
    """A phone's trim keeps all samples from the key frame on, and marks from where they are shown."""
    path = trimmed(tmp_path / "v.mp4", numbered(93), 2.7)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 93  # so says the header
    video, pictures = shown(path)
    assert numbers(pictures) == list(range(68, 93))  # 2.7 s at 25 frames a second is 67.5
    assert (video.damaged, video.missing) == (0, 0)


def test_damaged_packet_costs_one_frame(tmp_path):
    path = encode(tmp_path / "v.mp4", noise(), **INTRA)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    video, pictures = shown(path)
    assert 59 <= len(pictures) <= 60
    assert (video.damaged, video.missing) == (1, 0)
    right = abs(np.array(pictures).astype(int)[:20] - noise()[:20]).mean()
    assert right < 5
    row = row_of(tmp_path, path)
    assert (row.reason, row.frames, row.damaged) == ("", len(pictures), 1)


@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "v.mkv", "v.flv"])
def test_missing_end(tmp_path, name):
    """Of a file copied in part the store keeps what is there; the limit decides whether it is used."""
    codec_name = {"v.avi": "mpeg4", "v.flv": "flv"}.get(name, "libx264")
    path = encode(tmp_path / "videos" / name, noise(), codec_name, movflags="faststart")
    os.truncate(path, int(path.stat().st_size * 0.7))
    row = row_of(tmp_path, path)
    assert row.reason == ""
    assert 30 <= row.frames <= 45
    assert row.missing == pytest.approx(60 - row.frames, abs=1)
    given = {"dataset": "cut", "source": "folder", "root": path.parent, "outputs": tmp_path / "out"}
    for limit, start in ((10, "damaged: "), (60, "")):
        p = params.load(**given, max_damaged_pct=limit, frame_size=32, crop_size=32)
        _, reasons = prepare.decode(p, tmp_path / "out", path.parent, [name])
        assert reasons[name].startswith(start)
        assert bool(reasons[name]) == bool(start)
        assert "raise max_damaged_pct" in reasons[name] or not start


def test_capture_that_begins_between_key_frames(tmp_path):
    path = encode(tmp_path / "v.ts", noise(100), g="50", bf="0", sc_threshold="0")
    data = path.read_bytes()
    path.write_bytes(data[int(len(data) * 0.4) // 188 * 188 :])
    row = row_of(tmp_path, path)
    assert (row.reason, row.frames, row.missing) == ("", 50, 0)


def test_sound_that_outlasts_the_picture(tmp_path):
    path = with_sound(tmp_path / "v.webm", numbered(30), 20)
    row = row_of(tmp_path, path)
    assert (row.reason, row.frames, row.missing) == ("", 30, 0)


def test_avi_with_empty_frames(tmp_path):
    """A capture card that drops frames writes empty ones, and the header counts them."""
    path = encode(tmp_path / "v.avi", numbered(20), "mpeg4", times=range(0, 80, 4), ticks=25)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 77
    row = row_of(tmp_path, path)
    assert (row.reason, row.frames, row.missing) == ("", 20, 0)
    assert row.fps == pytest.approx(25 / 4, rel=0.01)


@pytest.mark.parametrize("name", ["thumbnail.mkv", "cover.mp4"])
def test_main_stream(tmp_path, name):
    """A single picture that comes first hides no film."""
    path = with_thumbnail(tmp_path / name, numbered(40))
    _, pictures = shown(path)
    assert numbers(pictures) == list(range(40))


def test_title_in_another_encoding(tmp_path):
    path = encode(tmp_path / "v.avi", numbered(3), "mpeg4", title="caf_")
    data = path.read_bytes()
    assert data.count(b"caf_") == 1
    path.write_bytes(data.replace(b"caf_", "café".encode("latin-1")))
    row = row_of(tmp_path, path)
    assert (row.reason, row.frames) == ("", 3)


def test_size_that_changes(tmp_path):
    """The table tells the size of most frames."""
    film = encode(tmp_path / "film.h264", numbered(12)).read_bytes()
    advert = encode(tmp_path / "advert.h264", noise(4), pix_fmt="yuv444p").read_bytes()
    path = tmp_path / "v.h264"
    for parts in ((film, advert), (advert, film)):
        path.write_bytes(b"".join(parts))
        row = row_of(tmp_path, path, StoreSettings(64, 95, 1))
        assert (row.reason, row.frames, row.height, row.width) == ("", 16, 48, 64)


# ---- How a frame looks


@pytest.mark.parametrize(
    ("matrix", "quarter"),
    [
        ((1, 0, 0, 1), [0, 0]),
        ((0, 1, -1, 0), [0, 1]),
        ((-1, 0, 0, -1), [1, 1]),
        ((0, -1, 1, 0), [1, 0]),
        ((-1, 0, 0, 1), [0, 1]),  # mirrored, as by a phone's front camera
        ((1, 0, 0, -1), [1, 0]),
        ((0, 1, 1, 0), [0, 0]),
        ((0, -1, -1, 0), [1, 1]),
    ],
)
def test_display_matrix(tmp_path, matrix, quarter):
    """The stored point (x, y) is shown at (ax + cy, bx + dy)."""
    picture = np.full((64, 96, 3), 20, np.uint8)
    picture[:32, :48] = 230
    picture[:8, :24] = 120  # tells a mirrored picture from a turned one
    path = marked(tmp_path / "v.mp4", [picture] * 3, matrix)
    y, x = np.mgrid[:64, :96]
    to_x, to_y = matrix[0] * x + matrix[2] * y, matrix[1] * x + matrix[3] * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    right = np.empty((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    right[to_y, to_x] = picture
    _, (first, *_) = shown(path)
    assert first.shape == right.shape
    assert abs(first.astype(int) - right).mean() < 4
    half_y, half_x = (n // 2 for n in right.shape[:2])
    bright = first.mean(2).reshape(2, half_y, 2, half_x).mean((1, 3)) > 128
    assert np.argwhere(bright).tolist() == [quarter]


def test_pixels_that_are_not_square(tmp_path):
    """A circle stays a circle for the teacher, and where a person looks at it."""
    y, x = np.mgrid[:96, :96]
    circle = np.where(((y - 47.5) ** 2 + ((x - 47.5) * 2) ** 2 < 40**2)[..., None], 230, 20)  # squeezed
    pictures = [circle.astype(np.uint8).repeat(3, 2)] * 16
    tags = {"sample_aspect_ratio": Fraction(2, 1)}
    path = encode(tmp_path / "v.mkv", pictures, tags=tags, qp="10")
    row = row_of(tmp_path, path)
    assert (row.height, row.width) == (96, 192)
    store = FrameStore(tmp_path / "store", SETTINGS)
    teacher = store.images("v.mkv", np.array([0]), teacher=True)[0]
    (tmp_path / "page.mp4").write_bytes(films.for_browser(path))
    _, (seen, *_) = shown(tmp_path / "page.mp4")
    for picture in (teacher, seen):
        bright = picture.mean(2) > 128
        assert bright.any(0).sum() == pytest.approx(bright.any(1).sum(), rel=0.05)


COLOURS = np.array(
    [
        [255, 255, 255], [200, 200, 200], [128, 128, 128], [64, 64, 64], [20, 20, 20], [0, 0, 0],
        [200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 180, 40], [180, 120, 90], [90, 140, 180],
    ]
)  # fmt: skip
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Weights of red and blue in the luma of BT.709, BT.601 (both codes) and BT.2020, by their codes of H.273."""


def chart(path, signal, matrix, tags, full=False, bits=8, tile=16):
    """Twelve tiles of these RGB signals (12, 3) in [0, 1], as planes of Y'CbCr with these colour tags."""
    red, blue = WEIGHTS[matrix]
    r, g, b = signal.T
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    scale = 2 ** (bits - 8)
    planes = [255 * luma if full else 219 * luma + 16, *((255 if full else 224) * c + 128 for c in chroma)]
    kind, name = (np.uint16, "yuv444p10le") if bits > 8 else (np.uint8, "yuv444p")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 4 * tile, 3 * tile, name
        context = stream.codec_context
        context.color_primaries, context.color_trc = tags
        context.colorspace, context.color_range = matrix, 2 if full else 1
        for n in range(3):
            frame = av.VideoFrame(4 * tile, 3 * tile, name)
            for plane, values in zip(frame.planes, planes, strict=True):
                tiles = np.kron((values * scale).round().reshape(3, 4), np.ones((tile, tile)))
                line = np.zeros((3 * tile, plane.line_size // kind().itemsize), kind)
                line[:, : 4 * tile] = tiles.clip(0, 256 * scale - 1)
                plane.update(line.tobytes())
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            frame.color_primaries, frame.color_trc = tags
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def tiles(picture) -> np.ndarray:
    """(12, 3) mean colours, without the tiles' edges."""
    height, width = picture.shape[0] // 3, picture.shape[1] // 4
    parts = picture.reshape(3, height, 4, width, 3)[
        :, height // 4 : -height // 4, :, width // 4 : -width // 4
    ]
    return parts.mean((1, 3)).reshape(12, 3)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_matrices_and_ranges(tmp_path, matrix, full):
    path = chart(tmp_path / "v.mkv", COLOURS / 255, matrix, (1, 1), full)
    _, (picture, *_) = shown(path)
    assert abs(tiles(picture) - COLOURS).max() < 2


@pytest.mark.parametrize(("tile", "matrix"), [(32, 6), (256, 1)])
def test_matrix_that_is_not_stated(tmp_path, tile, matrix):
    """Players take small pictures for BT.601 and large ones for BT.709."""
    path = chart(tmp_path / "v.mkv", COLOURS / 255, matrix, (2, 2), tile=tile)
    data = path.read_bytes()
    stated, unstated = (bytes([0x55, 0xB1, 0x81, code]) for code in (matrix, 2))  # MatrixCoefficients
    assert data.count(stated) == 1
    path.write_bytes(data.replace(stated, unstated))
    _, (picture, *_) = shown(path)
    assert abs(tiles(picture) - COLOURS).max() < 2


@pytest.mark.parametrize(
    ("transfer", "curve", "primaries"),
    slow_after(
        0, [(t, c, p) for t, c in ((16, perceptual_quantizer), (18, hybrid_log_gamma)) for p in (9, 2)]
    ),
)
def test_hdr_looks_as_its_sdr_twin(tmp_path, transfer, curve, primaries):
    """White of 203 nits is SDR white (ITU-R BT.2408), dark is as a screen of BT.1886 shows it."""
    light = (COLOURS / 255) ** 2.4
    signal = curve(203 * light @ TO_BT2020.T)
    path = chart(tmp_path / "v.mkv", signal, 9, (primaries, transfer), bits=10)
    _, (picture, *_) = shown(path)
    assert abs(tiles(picture) - COLOURS).max() < 10
    assert abs(tiles(picture) - COLOURS).mean() < 1


@pytest.mark.slow
def test_second_hdr_video_needs_no_new_table(tmp_path):
    """FFmpeg takes seconds for one; another kind of video in between changes nothing."""
    light = 203 * (COLOURS / 255) ** 2.4 @ TO_BT2020.T
    curves = {16: perceptual_quantizer, 18: hybrid_log_gamma}
    paths = [chart(tmp_path / f"{t}.mkv", curve(light), 9, (9, t), bits=10) for t, curve in curves.items()]
    _converter.cache_clear()
    first, second = ([shown(path)[1] for path in paths] for _ in range(2))
    assert np.array_equal(first, second)
    assert _converter.cache_info().misses == 2


def test_interlaced(tmp_path):
    """Two fields of different times become one picture without combs; times stay."""

    def bar(field):
        picture = np.full((96, 128, 3), 30, np.uint8)
        picture[:, 8 + 8 * field : 24 + 8 * field] = 220
        return picture

    woven = [bar(2 * n) for n in range(6)]
    for n, picture in enumerate(woven):
        picture[1::2] = bar(2 * n + 1)[1::2]
    path = encode(tmp_path / "v.mpg", woven, "mpeg2video", flags="+ildct+ilme", qmax="2")
    with av.open(str(path)) as container:
        combs = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert abs(np.diff(combs[..., 0], axis=0)).mean() > 20
    _, pictures = shown(path)
    assert len(pictures) == 6
    assert abs(np.diff(np.array(pictures)[2:4, ..., 0].astype(int), axis=1)).mean() < 2
    times = np.array([frame.time for frame in codec.Video(path)])
    assert np.diff(times) == pytest.approx([0.04] * 5, abs=0.001)


def test_transparency_over_black(tmp_path):
    picture = np.full((48, 64, 4), (200, 100, 50, 255), np.uint8)
    picture[:, 32:, 3] = 128
    picture[24:, 32:, 3] = 0
    path = encode(tmp_path / "v.mov", [picture] * 3, "png", "rgba")
    _, (first, *_) = shown(path)
    right = picture[..., :3] * (picture[..., 3:] / 255)
    assert abs(first - right).max() < 2.5


# ---- How long, and how fast


def test_frame_rate_and_stride(tmp_path):
    """Every frame twice at twice the rate is the same video, once ``fps`` is set."""
    slow = encode(tmp_path / "slow.mkv", numbered(50), **INTRA, times=range(0, 2000, 40))
    twice, times = np.repeat(numbered(50), 2, 0), range(0, 2000, 20)
    fast = encode(tmp_path / "fast.mkv", twice, times=times, rate=50, **INTRA)
    assert numbers(shown(fast)[1]) == list(np.repeat(range(50), 2))
    assert numbers(shown(slow, fps=25)[1]) == numbers(shown(fast, fps=25)[1]) == list(range(50))
    assert numbers(shown(slow, fps=50)[1]) == list(np.repeat(range(50), 2))
    assert numbers(shown(slow, fps=12.5)[1]) == list(range(0, 50, 2))
    for settings, count, rate in (((None, 1), 50, 25), ((None, 3), 17, 25 / 3), ((12.5, 1), 25, 12.5)):
        row = row_of(tmp_path, slow, StoreSettings(64, 95, 8, *settings))
        assert row.frames == count
        assert row.fps == pytest.approx(rate, rel=0.01)
    names = {path.name for path in (tmp_path / "store").iterdir()}
    expected = {"frames-64px-q95-every8", "frames-64px-q95-every8-stride3", "frames-64px-q95-every8-12.5fps"}
    assert names == expected


@pytest.mark.parametrize(("count", "fps", "kept"), [(1, 1, 1), (10, 0.1, 1), (26, 1, 2), (25, 10, 10)])
def test_few_frames(tmp_path, count, fps, kept):
    """A video shorter than 1/fps keeps a frame; without any, preparing the data ended there."""
    path = encode(tmp_path / "v.mp4", numbered(count), **INTRA)
    row = row_of(tmp_path, path, StoreSettings(64, 95, 8, fps=fps))
    assert (row.reason, row.frames) == ("", kept)


def test_one_late_frame(tmp_path):
    path = encode(tmp_path / "v.mkv", numbered(1), times=[440], **INTRA)
    assert row_of(tmp_path, path, StoreSettings(64, 95, 8, fps=12.5)).frames == 1


def test_one_interlaced_frame(tmp_path):
    path = encode(tmp_path / "v.mpg", numbered(1), "mpeg2video", flags="+ildct+ilme")
    assert len(shown(path)[1]) == 1


def joined(tmp_path):
    """Two recordings of 25 frames in one file: the clock begins again."""
    whole = encode(tmp_path / "part.ts", numbered(25), **INTRA).read_bytes()
    path = tmp_path / "v.ts"
    path.write_bytes(whole + whole)
    return path


def with_pause(tmp_path, seconds):
    """Half of the frames come so much later."""
    times = [40 * n + 1000 * seconds * (n >= 25) for n in range(50)]
    return encode(tmp_path / "v.mkv", numbered(50), times=times, **INTRA)


JUMPS = {
    "joined": (joined, 50),
    "an hour": (lambda folder: with_pause(folder, 3600), 50),
    "a still of 20 seconds": (lambda folder: with_pause(folder, 20), 550),
}


@pytest.mark.parametrize("kind", JUMPS)
def test_times_that_jump(tmp_path, kind):
    """``fps`` neither loses what comes after the jump nor fills an hour."""
    make, count = JUMPS[kind]
    path = make(tmp_path)
    times = np.array([frame.time for frame in codec.Video(path)])
    assert len(times) == 50
    assert (np.diff(times) > 0).all()
    assert times[-1] - times[0] == pytest.approx((count - 1) / 25, abs=0.1)
    row = row_of(tmp_path, path, StoreSettings(64, 95, 8, fps=25))
    assert row.frames == pytest.approx(count, abs=1)


@pytest.mark.parametrize("way", [{}, {"stride": 4}, {"fps": 12.5}, {"fps": 50}])
def test_damaged_share_with_fps_and_stride(tmp_path, way):
    """Ten of 60 frames are damaged and 20 are missing, whatever part of the rest is stored."""
    path = tmp_path / "v.mp4"
    encode(path, noise(80), **INTRA, movflags="faststart")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes()[: packets[60][0]])
    for start, size in packets[10:20]:
        data[start + size // 2 : start + size // 2 + 50] = bytes(50)
    path.write_bytes(data)
    row = row_of(tmp_path, path, StoreSettings(64, 95, 8, **way))
    assert row.reason == ""
    assert row.damaged / row.frames == pytest.approx(10 / 60, abs=0.05)
    assert row.missing / row.frames == pytest.approx(20 / 60, abs=0.05)


def test_missing_frames_of_a_slow_film(tmp_path):
    """Frames are missing at the rate of those that are there, whatever rate the header states."""
    path = encode(tmp_path / "v.mkv", noise(40), times=range(0, 40_000, 1000), **INTRA)
    os.truncate(path, path.stat().st_size // 2)
    row = row_of(tmp_path, path)
    assert row.missing == pytest.approx(40 - row.frames, abs=1)


def test_last_frame_of_an_hour(tmp_path):
    def longer(packet):
        packet.duration *= 1 if packet.pts < 49 * 512 else 25 * 3600

    encode(tmp_path / "whole.mp4", numbered(50), **INTRA)
    copy_packets(tmp_path / "whole.mp4", tmp_path / "v.mp4", longer)
    row = row_of(tmp_path, tmp_path / "v.mp4", StoreSettings(64, 95, 8, fps=25))
    assert 50 <= row.frames <= 75  # a second at most


def test_long_video_is_written_as_it_is_decoded(tmp_path, monkeypatch):
    """Whatever waits for the end of the video waits on disk."""
    monkeypatch.setattr(frames, "SPOOL", 0)
    path = encode(tmp_path / "v.mp4", numbered(40), **INTRA)
    store = FrameStore(tmp_path / "here", SETTINGS)
    row = frames._try_video(("v.mp4", path, store.path("v.mp4"), SETTINGS))
    assert row.reason == ""
    again = FrameStore(tmp_path / "there", SETTINGS)
    monkeypatch.undo()
    frames._try_video(("v.mp4", path, again.path("v.mp4"), SETTINGS))
    assert store.path("v.mp4").read_bytes() == again.path("v.mp4").read_bytes()
    assert [path.name for path in store.folder.iterdir()] == ["v.mp4.frames"]


@pytest.mark.slow
def test_constant_memory(tmp_path, monkeypatch):
    """Of 200 frames of a hundred kilobytes only a few are in memory at a time."""
    monkeypatch.setattr(frames, "SPOOL", 10**6)
    path = encode(tmp_path / "v.mp4", noise(200), **INTRA)
    settings = StoreSettings(frame_size=256, jpeg_quality=100, teacher_stride=8)
    tracemalloc.start()
    row = frames._try_video(("v.mp4", path, tmp_path / "store/v.frames", settings))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row.stored_bytes > 10e6
    assert peak < 5e6


def test_implausible_length_is_refused_before_decoding(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.mp4", numbered(40), **INTRA)
    monkeypatch.setattr(codec, "MAX_FRAMES", 30)
    monkeypatch.setattr(av.Packet, "decode", None, raising=False)
    with pytest.raises(codec.VideoError, match=r"implausible: 40 frames; cut it into parts"):
        list(codec.Video(path))


def test_mixed_frame_rates_are_said(tmp_path):
    """Sixteen frames of a 60 Hz camera last a quarter of those of a 15 Hz one."""
    for name, milliseconds in (("slow", 66), ("usual", 40), ("usual too", 40), ("fast", 16)):
        times = [n * milliseconds for n in range(50)]
        for k in range(2):
            encode(tmp_path / f"videos/{name}/{k}.mkv", numbered(50), times=times)
    given = {"dataset": "rates", "source": "folder", "root": tmp_path / "videos", "outputs": tmp_path / "out"}
    p = params.load(**given, frame_size=32, crop_size=32)
    index = datasets.read_index(p)
    with pytest.warns(UserWarning, match=r"15\.2 to 62\.5 frames per second \(50% are .* fps = 25 shows"):
        prepare.decode_index(p, index)
    with warnings.catch_warnings(action="error"):
        prepare.decode_index(p.but(fps=25), index)
