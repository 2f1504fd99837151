"""Damage with a structure: packets lost, swapped or mixed up, headers that lie, times that jump.

Bytes that are flipped at random seldom reach the fields by which a reader is misled.
"""

import random
import re
import struct
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import av

# ---- Packets


@dataclass(frozen=True)
class Piece:
    """A packet of the picture: what it holds and when. ``whole`` unless its data were damaged."""

    data: bytes
    pts: int | None
    dts: int
    duration: int
    key: bool
    whole: bool = True


def read_pieces(path: Path) -> list[Piece]:
    with av.open(str(path)) as container:
        stream = max(container.streams.video, key=lambda s: s.width)
        packets = [p for p in container.demux(stream) if p.size]
        times = [p.dts if p.dts is not None else n for n, p in enumerate(packets)]
        return [
            Piece(bytes(p), p.pts, dts, p.duration or 0, p.is_keyframe)
            for p, dts in zip(packets, times, strict=True)
        ]


def dropped(rng, pieces, _):
    gone = set(rng.sample(range(len(pieces)), rng.randrange(1, len(pieces))))
    return [p for n, p in enumerate(pieces) if n not in gone]


def doubled(rng, pieces, _):
    n = rng.randrange(len(pieces))
    return pieces[: n + 1] + pieces[n : n + rng.choice([1, 5])] + pieces[n + 1 :]


def reordered(rng, pieces, _):
    """The times stay in order, the contents do not."""
    mixed = rng.sample(pieces, len(pieces))
    return [replace(new, pts=old.pts, dts=old.dts) for new, old in zip(mixed, pieces, strict=True)]


def _damaged(change):
    def some(rng, pieces, _):
        hit = set(rng.sample(range(len(pieces)), rng.choice([1, 3, len(pieces)])))
        return [
            replace(p, data=change(rng, p.data), whole=False) if n in hit else p for n, p in enumerate(pieces)
        ]

    return some


def _zeroed(rng, data):
    start = rng.randrange(len(data))
    return data[:start] + bytes(len(data[start : start + 200])) + data[start + 200 :]


def mixed_up(rng, pieces, others):
    """Some packets are those of another video: of another size, format or codec."""
    hit = set(rng.sample(range(len(pieces)), rng.choice([1, 3, 8])))
    return [
        replace(p, data=rng.choice(others).data, whole=False) if n in hit else p for n, p in enumerate(pieces)
    ]


def later(rng, pieces, _):
    """From one packet on, all times are later."""
    ticks = max(1, pieces[1].dts - pieces[0].dts)
    start, by = rng.randrange(len(pieces)), ticks * rng.choice([2, 100, 25 * 3600, 25 * 3600 * 50])
    return pieces[:start] + [_moved(p, by) for p in pieces[start:]]


def once_later(rng, pieces, _):
    """One picture is shown at another time."""
    n, by = rng.randrange(len(pieces)), rng.choice([-(10**6), -100, 100, 10**6, 10**9])
    return [replace(p, pts=(p.pts or p.dts) + by) if i == n else p for i, p in enumerate(pieces)]


def timeless(rng, pieces, _):
    return [replace(p, pts=None) for p in pieces]


def stretched(rng, pieces, _):
    by = rng.choice([2, 50, 100_000])
    return [replace(p, dts=by * p.dts, pts=p.pts and by * p.pts, duration=by * p.duration) for p in pieces]


def keyless(rng, pieces, _):
    return [replace(p, key=False) for p in pieces]


def _moved(piece: Piece, by: int) -> Piece:
    return replace(piece, dts=piece.dts + by, pts=None if piece.pts is None else piece.pts + by)


PACKETS = {
    "dropped": dropped,
    "doubled": doubled,
    "reordered": reordered,
    "truncated": _damaged(lambda rng, data: data[: rng.randrange(1, len(data) + 1)]),
    "emptied": _damaged(lambda rng, data: b""),
    "zeroed": _damaged(_zeroed),
    "grown": _damaged(lambda rng, data: data + rng.randbytes(rng.choice([1, 5000]))),
    "mixed": mixed_up,
    "later": later,
    "once_later": once_later,
    "timeless": timeless,
    "stretched": stretched,
    "keyless": keyless,
}


def remux(source: Path, target: Path, pieces: list[Piece]) -> list[Piece]:
    """Write these packets with the header of ``source``; the ones that the container took."""
    taken = []
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = max(old.streams.video, key=lambda s: s.width)
        copied = new.add_stream_from_template(stream)
        new.start_encoding()
        for piece in pieces:
            if not piece.data and target.suffix == ".mpg":
                continue  # FFmpeg would write for ever
            packet = av.Packet(piece.data)
            packet.pts, packet.dts, packet.duration = piece.pts, piece.dts, piece.duration
            packet.is_keyframe = piece.key
            packet.time_base, packet.stream = stream.time_base, copied
            with suppress(av.FFmpegError, ValueError):
                new.mux(packet)
                taken.append(piece)
    return taken


# ---- Headers

FIELDS = {
    # by suffix: what, and where it stands: after a mark, so many bytes on, as this kind of number
    ".mp4 .mov": {
        "mp4 movie": (b"mvhd", [(12, ">I"), (16, ">I")]),  # units a second, duration
        "mp4 media": (b"mdhd", [(12, ">I"), (16, ">I")]),
        "mp4 track": (b"tkhd", [(20, ">I"), (40, ">i"), (44, ">i"), (52, ">i"), (76, ">I"), (80, ">I")]),
        "mp4 edit list": (b"elst", [(4, ">I"), (8, ">I"), (12, ">i"), (16, ">I")]),
        "mp4 times": (b"stts", [(4, ">I"), (8, ">I"), (12, ">I"), (20, ">I")]),
        "mp4 order": (b"ctts", [(4, ">I"), (8, ">I"), (12, ">i"), (20, ">i")]),
        "mp4 sizes": (b"stsz", [(4, ">I"), (8, ">I"), (12, ">I")]),
        "mp4 places": (b"stco", [(4, ">I"), (8, ">I")]),
        "mp4 chunks": (b"stsc", [(4, ">I"), (8, ">I"), (12, ">I"), (16, ">I")]),
        "mp4 key frames": (b"stss", [(4, ">I"), (8, ">I")]),
        "mp4 picture": (b"avc1", [(24, ">H"), (26, ">H"), (40, ">H")]),
        "mov picture": (b"png ", [(24, ">H"), (26, ">H"), (40, ">H"), (74, ">H")]),
        "mp4 pixel": (b"pasp", [(0, ">I"), (4, ">I")]),
        "mp4 fragment": (b"tfhd", [(0, ">I"), (4, ">I"), (8, ">I"), (16, ">I")]),
        "mp4 fragment's time": (b"tfdt", [(4, ">I"), (8, ">I")]),
        "mp4 fragment's run": (b"trun", [(0, ">I"), (4, ">I"), (8, ">i"), (12, ">I"), (16, ">I")]),
        "png": (b"IHDR", [(0, ">I"), (4, ">I"), (8, ">B"), (9, ">B")]),
    },
    ".avi": {
        "avi": (b"avih", [(4, "<I"), (20, "<I"), (36, "<I"), (40, "<I")]),  # time, frames, size
        "avi stream": (b"strh", [(20, "<I"), (24, "<I"), (28, "<I"), (32, "<I"), (36, "<I"), (48, "<I")]),
        "avi format": (b"strf", [(4, "<I"), (8, "<i"), (12, "<i"), (18, "<H"), (20, "<I")]),
    },
    ".mkv .webm": {
        "mkv duration": (b"\x44\x89\x88", [(0, ">d")]),
        "mkv unit": (b"\x2a\xd7\xb1\x83", [(0, ">B"), (1, ">H")]),
        "mkv rate": (b"\x23\xe3\x83\x84", [(0, ">I")]),
        "mkv width": (b"\xb0\x81", [(0, ">B")]),
        "mkv height": (b"\xba\x81", [(0, ">B")]),
        "mkv shown size": (b"\x54\xb0\x81", [(0, ">B"), (4, ">B")]),
        "mkv cluster's time": (b"\xe7\x82", [(0, ">H")]),
        "mkv tag": (b"DURATION", [(3, "8s"), (4, "8s"), (6, "8s")]),
    },
    ".flv": {
        "flv duration": (b"duration\x00", [(0, ">d")]),
        "flv rate": (b"framerate\x00", [(0, ">d")]),
        "flv tag": (b"\x09", [(0, ">H"), (3, ">H"), (6, ">B")]),
    },
    ".wmv": {
        "asf file": (b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11", [(40, "<Q"), (48, "<Q"), (64, "<Q"), (76, "<I")]),
    },
    ".gif": {
        "gif": (b"GIF89a", [(0, "<H"), (2, "<H")]),
        "gif frame": (b"\x21\xf9\x04", [(1, "<H")]),
    },
    ".mpg .ts": {
        "mpeg sequence": (b"\x00\x00\x01\xb3", [(0, ">H"), (1, ">H"), (3, ">B")]),  # size, aspect and rate
        "mpeg time": (b"\x00\x00\x01\xe0", [(5, ">I"), (6, ">I")]),
    },
    ".ivf": {
        "ivf": (b"DKIF", [(8, "<H"), (10, "<H"), (12, "<I"), (16, "<I"), (20, "<I")]),
    },
}  # fmt: skip
TIMES = [b"00:00:00", b"00:00:09", b"09:00:00", b"99999999", b"00:99:99", b"-1:00:00", b"1e9:0:00"]


def lie(rng: random.Random, data: bytes, suffix: str) -> tuple[str, bytes]:
    """One field of a header, or of a packet's, says something else; its name."""
    fields = chain.from_iterable(f.items() for suffixes, f in FIELDS.items() if suffix in suffixes)
    known = [(name, *field) for name, field in fields if field[0] in data]
    if not known:
        return "none", data
    name, mark, places = rng.choice(known)
    b = bytearray(data)
    starts = [m.end() for m in re.finditer(re.escape(mark), data)]
    offset, form = rng.choice(places)
    for start in starts if rng.random() < 0.3 else [rng.choice(starts)]:
        at = start + offset
        if at + struct.calcsize(form) <= len(b):
            (old,) = struct.unpack_from(form, b, at)
            struct.pack_into(form, b, at, _another(rng, form, old))
    return name, bytes(b)


def _another(rng: random.Random, form: str, old):
    if form == "8s":
        return rng.choice(TIMES)
    if form == ">d":
        return rng.choice([0.0, -1.0, old * 10, old / 10, 1e9, 1e300, float("nan"), float("inf")])
    low, high = (0, 256 ** struct.calcsize(form) - 1)
    if form[-1] == "i":
        low, high = -(2**31), 2**31 - 1
    values = [0, 1, 2, -1, low, high, old + 1, old - 1, 2 * old, old // 2, 10 * old, 1000 * old]
    return min(high, max(low, rng.choice(values)))


# ---- Streams


def joined(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Two streams in one: size, format, codec and times change where the second begins."""
    return rng.choice([data + other, data + data, data + other + data])
