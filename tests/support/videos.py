"""Making videos of all kinds with PyAV directly, not with the code under test."""

import struct
from fractions import Fraction

import av
import numpy as np

INTRA = {"g": "1", "qp": "1"}
"""x264: every frame is a key frame, and nearly as it was."""
UPRIGHT = (1, 0, 0, 1)


def encode(
    path,
    pictures,
    codec_name="libx264",
    pix_fmt="yuv420p",
    times=None,
    ticks=1000,
    rate=25,
    tags=None,
    title=None,
    **options,
):
    """Write (H, W, 3) uint8 pictures (4 with alpha), at the times given in milliseconds, or in other ticks a
    second.

    ``tags`` are attributes of the codec's context, ``options`` are the codec's, but for movflags.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    moving = {"movflags": options.pop("movflags", "")}
    with av.open(str(path), "w", options=moving if moving["movflags"] else {}) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec_name, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options = pix_fmt, options
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, ticks)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def audio_only(path):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


# ---- Kinds of videos


def numbered(count, height=48, width=64) -> list[np.ndarray]:
    """Grey pictures that tell their number: the left half the tens, the right half the units."""
    pictures = np.zeros((count, height, width, 3), np.uint8)
    for n, picture in enumerate(pictures):
        picture[:, : width // 2], picture[:, width // 2 :] = 25 * (n // 10), 25 * (n % 10)
    return list(pictures)


def noise(count=60, height=64, width=96) -> np.ndarray:
    """Grey, for colours are stored at half the size."""
    grey = np.random.default_rng(0).integers(0, 255, (count, height, width, 1), dtype=np.uint8)
    return grey.repeat(3, axis=3)


def copy_packets(source, target, change) -> None:
    """A file of another's packets, changed by ``change``, as a trimmer makes it that does not encode."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copied = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                change(packet)
                packet.stream = copied
                new.mux(packet)


def trimmed(path, pictures, seconds):
    """With an edit list: all samples from the key frame on, shown from this time on."""
    whole = path.with_suffix(".whole.mp4")
    encode(whole, pictures, g="1000", bf="0", sc_threshold="0", qp="1")

    def earlier(packet):
        packet.pts -= round(seconds / packet.time_base)
        packet.dts = packet.pts

    copy_packets(whole, path, earlier)
    whole.unlink()
    return path


def marked(path, pictures, matrix):
    """MP4 with a display matrix (a, b, c, d): the stored point (x, y) is shown at (ax + cy, bx + dy)."""
    encode(path, pictures, **INTRA)
    data = path.read_bytes()
    old, new = (
        struct.pack(">9i", *(n << 16 for n in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
        for a, b, c, d in (UPRIGHT, matrix)
    )
    start = data.index(old, data.index(b"tkhd"))
    path.write_bytes(data[:start] + new + data[start + 36 :])
    return path


def with_sound(path, pictures, seconds, codec_name="libvpx-vp9", sound_name="libopus", rate=15):
    """A film, then silence of so many seconds."""
    with av.open(str(path), "w") as container:
        stream, sound = (
            container.add_stream(codec_name, rate=rate),
            container.add_stream(sound_name, rate=48000),
        )
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        for _ in range(seconds):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), "fltp", "mono")
            silence.sample_rate = 48000
            container.mux(sound.encode(silence))
        container.mux(sound.encode())
    return path


def with_thumbnail(path, pictures):
    """A stream of one picture, then a film."""
    with av.open(str(path), "w") as container:
        first = container.add_stream("mjpeg", rate=25)
        film = container.add_stream("libx264", rate=25, options={"qp": "1"})
        first.width, first.height, first.pix_fmt = 32, 32, "yuvj420p"
        film.height, film.width = pictures[0].shape[:2]
        film.pix_fmt = "yuv420p"
        cover = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 255, np.uint8), format="rgb24")
        container.mux(first.encode(cover))
        for picture in pictures:
            container.mux(film.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(first.encode())
        container.mux(film.encode())
    return path


def perceptual_quantizer(nits):
    """SMPTE ST 2084."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    y = (nits / 10_000) ** m1
    return ((c1 + c2 * y) / (1 + c3 * y)) ** m2


def hybrid_log_gamma(nits, peak=1000.0, gamma=1.2):
    """ITU-R BT.2100: the inverse of the display's gamma, then the camera's curve."""
    display = nits / peak
    luminance = display @ np.array([0.2627, 0.678, 0.0593])
    scene = display * np.where(luminance > 0, luminance, 1)[:, None] ** ((1 - gamma) / gamma)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""Linear light of BT.709's primaries to BT.2020's (ITU-R BT.2087)."""
