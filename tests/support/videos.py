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
