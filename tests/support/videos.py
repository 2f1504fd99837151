"""Making videos of all kinds with PyAV directly, not with the code under test."""

from fractions import Fraction

import av
import numpy as np

INTRA = {"g": "1", "qp": "1"}
"""x264: every frame is a key frame, and nearly as it was."""


def encode(
    path, pictures, codec_name="libx264", pix_fmt="yuv420p", times=None, ticks=1000, rate=25, **options
):
    """Write (H, W, 3) uint8 pictures, at the times given in milliseconds, or in other ticks a second.

    ``options`` are the codec's, but for movflags.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    moving = {"movflags": options.pop("movflags", "")}
    with av.open(str(path), "w", options=moving if moving["movflags"] else {}) as container:
        stream = container.add_stream(codec_name, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options = pix_fmt, options
        if times is not None:
            stream.codec_context.time_base = Fraction(1, ticks)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
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
