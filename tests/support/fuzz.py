"""Broken input by the thousand: ``make fuzz``. No input may hang, crash, write outside its folder, or lead to
training on nothing without an error.

Each kind of input has a function that tries ``n`` mutants and returns what went wrong, one line each.
"""

import random
import signal
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from support import damage, helpers
from support.videos import INTRA, encode, marked, trimmed, with_sound, with_thumbnail
from videossl_core import params, paths, runs
from videossl_core.data import datasets, splits
from videossl_core.data.frames import FrameStore, StoreSettings

# ---- Videos

HEADERS = [
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"PK\x03\x04", b"%PDF-1.7\n", b"\x7fELF\x02\x01\x01",
    b"RIFF\xff\xff\xff\xffAVI LIST", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"\x1a\x45\xdf\xa3", b"OggS\x00\x02",
    b"FLV\x01\x05\x00\x00\x00\x09", b"GIF89a", b"\x00\x00\x01\xba", b"G@\x00\x10", b"\x00\x00\x00\x18ftypmp42",
    b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", b"<?xml version='1.0'?><MPD>", b"\x1f\x8b\x08", b"ID3\x04",
]  # fmt: skip


HLG = {"color_primaries": 9, "color_trc": 18, "colorspace": 9}
PLAIN = {
    "h264.mp4": ("libx264", "yuv420p", {}),
    "moov_first.mp4": ("libx264", "yuv420p", {"movflags": "faststart"}),
    "fragmented.mp4": ("libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov", "g": "4"}),
    "intra.mp4": ("libx264", "yuv420p", INTRA),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
    "empty_frames.avi": ("mpeg4", "yuv420p", {"times": range(0, 64, 4), "ticks": 25}),
    "h264.mkv": ("libx264", "yuv420p10le", {}),
    "anamorphic.mkv": ("libx264", "yuv420p", {"tags": {"sample_aspect_ratio": Fraction(2, 1)}}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {}),
    "hlg.mp4": ("libx265", "yuv420p10le", {"tags": HLG, "x265-params": "log-level=none:pools=1"}),
    "ffv1.mkv": ("ffv1", "bgr0", {"g": "1"}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {}),
    "interlaced.mpg": ("mpeg2video", "yuv420p", {"flags": "+ildct+ilme"}),
    "h264.ts": ("libx264", "yuv420p", {"g": "5", "bf": "0"}),
    "flv1.flv": ("flv", "yuv420p", {}),
    "moving.mov": ("mjpeg", "yuvj420p", {}),
    "wmv2.wmv": ("wmv2", "yuv420p", {}),
    "pictures.gif": ("gif", "rgb8", {}),
    "raw.h264": ("libx264", "yuv420p", {"g": "5"}),
    "raw.m4v": ("mpeg4", "yuv420p", {}),
    "vp8.ivf": ("libvpx", "yuv420p", {}),
}
"""Codec, pixel format and options by name."""

INTRA_ONLY = {"intra.mp4", "ffv1.mkv", "moving.mov", "alpha.mov", "png.mov", "mirrored.mp4"}
"""Each of their frames can be decoded alone."""


def base_videos(folder: Path) -> list[Path]:
    """One of each kind that people have, of 16 frames."""
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 255, (16, 48, 64, 3), dtype=np.uint8)
    alpha = np.random.default_rng(1).integers(0, 255, (16, 40, 56, 4), dtype=np.uint8)
    return [
        *(encode(folder / name, pictures, codec, fmt, **o) for name, (codec, fmt, o) in PLAIN.items()),
        encode(folder / "alpha.mov", alpha, "png", "rgba"),
        encode(folder / "png.mov", pictures, "png", "rgb24"),
        encode(folder / "small.h264", alpha, "libx264", "yuv444p", g="5"),
        encode(folder / "small.ts", alpha, "libx264", "yuv420p", g="5", bf="0"),
        trimmed(folder / "trimmed.mp4", [*pictures, *pictures], 0.64),
        marked(folder / "mirrored.mp4", pictures, (0, 1, 1, 0)),
        with_sound(folder / "sound.webm", pictures, 3),
        with_thumbnail(folder / "thumbnail.mkv", pictures),
    ]


def mutate_video(rng: random.Random, data: bytes, other: bytes) -> bytes:
    b = bytearray(data)
    kind = rng.randrange(8)
    if kind == 0:  # flip bytes anywhere
        for _ in range(rng.choice([1, 5, 50, 500])):
            b[rng.randrange(len(b))] ^= 1 << rng.randrange(8)
    elif kind == 1:  # in the header, where sizes and counts are
        for _ in range(rng.choice([1, 3, 10])):
            b[rng.randrange(min(400, len(b)))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    elif kind == 2:
        del b[rng.randrange(len(b)) :]
    elif kind == 3:  # two files in one
        whole = rng.random() < 0.5
        b = b + other if whole else b[: rng.randrange(len(b))] + other[rng.randrange(len(other)) :]
    elif kind == 4:
        header = rng.choice(HEADERS)
        b[: rng.choice([0, len(header)])] = header
    elif kind == 5:  # the head of one format, the rest of another
        b[: rng.choice([16, 64, 512])] = other[: rng.choice([16, 64, 512])]
    elif kind == 6:  # a hole, or a piece twice
        start, length = rng.randrange(len(b)), rng.choice([1, 7, 512, 4096])
        piece = bytes(b[start : start + length])
        b[start : start + length] = rng.choice([b"", bytes(len(piece)), piece * 2])
    else:  # the last bytes, where indices are
        for _ in range(rng.choice([1, 10])):
            b[-rng.randrange(1, min(600, len(b)))] = rng.randrange(256)
    return bytes(b)


REASONS = ("unreadable", "no video", "zero", "truncated", "implausible")
WAYS = (
    StoreSettings(32, 90, 4),
    StoreSettings(32, 90, 4, fps=12.5, stride=1),
    StoreSettings(32, 90, 4, stride=3),
)


def videos(n: int, folder: Path, seed: int = 0) -> list[str]:
    """Put n mutated videos into a frame store."""
    rng = random.Random(seed)
    bases = base_videos(folder / "bases")
    root, names = folder / "root", []
    root.mkdir()
    for i in range(n):
        base, other = rng.sample(bases, 2)
        names.append(f"{i:05d}{rng.choice([base, base, other]).suffix}")
        (root / names[-1]).write_bytes(mutate_video(rng, base.read_bytes(), other.read_bytes()))
    return _stored(folder, names)


def structured(n: int, folder: Path, seed: int = 0) -> list[str]:
    """Put n videos with structured damage into frame stores: as they come, with ``fps``, with ``stride``."""
    rng = random.Random(seed)
    bases = base_videos(folder / "bases")
    pieces = {base: damage.read_pieces(base) for base in bases}
    (folder / "root").mkdir()
    names, whole = [], {}
    for i in range(n):
        base, other = rng.sample(bases, 2)
        if rng.random() < 0.5:  # so that the one can be read as a part of the other
            other = rng.choice([path for path in bases if path.suffix == base.suffix])
        data, root = base.read_bytes(), folder / "root"
        lie, lied = damage.lie(rng, data, base.suffix)
        packets, change = rng.choice(list(damage.PACKETS.items()))
        kind = rng.choice([packets, lie, lie, "joined"])
        path = root / f"{i:05d}-{kind}-{base.name}"
        if kind == packets:
            taken = damage.remux(base, path, change(rng, pieces[base], pieces[other]))
            if base.name in INTRA_ONLY:
                whole[path.name] = sum(p.whole for p in taken), sum(p.data != b"" for p in taken)
        else:
            path.write_bytes(lied if kind == lie else damage.joined(rng, data, other.read_bytes()))
        names.append(path.name)
    wrong = []
    for k, way in enumerate(WAYS):
        wrong += _stored(folder, names[k :: len(WAYS)], way, whole)
    return wrong


def _stored(folder: Path, names: list[str], settings=WAYS[0], whole=None) -> list[str]:
    """What is wrong with a store of these videos; of some it is known how many of how many frames are whole."""
    root, before = folder / "root", _tree(folder)
    store = FrameStore(folder / "store", settings)
    store.add(names, root, timeout=60)  # FFmpeg takes seconds to set up HDR
    wrong = [f"{name}: not in the table" for name in set(names) - set(store.table.index)]
    for name, row in store.table.iterrows():
        try:
            _check_row(store, root / name, row, *(whole or {}).get(name, (0, None)))
        except Exception as error:
            claims = "{reason!r}, {frames} frames, {damaged} damaged, {missing} missing, {fps} fps"
            wrong.append(f"{name} {settings.name}: {claims.format(**row)}: {error!r}")
    usable = int((store.table.reason == "").sum())
    if _tree(folder) != before:
        wrong.append("something was written outside the store")
    if not len(names) // 20 < usable < len(names) + (len(names) < 100):
        wrong.append(f"{usable} of {len(names)} are usable: these mutants prove little")
    return wrong


def _tree(folder: Path) -> dict:
    return {name: data for name, data in helpers.tree(folder).items() if not name.startswith("store/")}


def _check_row(store: FrameStore, path: Path, row, whole: int, packets: int | None) -> None:
    """The row's claims fit what the store holds, and what could be decoded."""
    settings, name = store.settings, path.name
    if row.reason:
        # else a crash or a time-out: survived, but look at it
        assert row.reason.startswith(REASONS), "an unknown reason"
        assert not whole, f"{whole} of {packets} frames are whole"
        return
    assert row.frames >= 1
    for teacher, count in ((False, row.frames), (True, -(-row.frames // settings.teacher_stride))):
        assert len(store.images(name, np.arange(count), teacher)) == count
    assert min(row.height, row.width) >= 4
    assert max(row.height, row.width) <= 8 * 8192
    assert row.fps > 1 / 2000, "an implausible rate"
    assert row.frames < 60_000, "implausibly many"
    if packets is not None and settings == WAYS[0]:
        lost = max(row.damaged, packets - row.frames)
        assert whole <= row.frames <= packets, f"{whole} of {packets} frames are whole"
        assert row.damaged <= packets - whole, f"{whole} of {packets} frames are whole"
        assert row.frames + row.damaged + row.missing >= packets, f"{lost} lost without a word"


# ---- Lists and parameter files

NASTY = [
    b"\x00", b"\xff\xfe", b"\n", b"\r", b"\t", b"*", b",", b'"', b"'", b" ", b"..", b"../../etc/passwd", b"/etc/passwd",
    b"\\", b"-1", b"0", b"1", b"999999999999999999999", b"nan", b"1e999", b"\xc3\xa9", b"\xed\xa0\x80", b"%s%n", b"{}",
    b"[", b"&a [*a, *a]", b"!!python/object/apply:os.system ['touch pwned']", b"? : - |", b"base: mine", b": ", b"#",
    b"x" * 5000, b"None", b"true", b"\xe2\x80\xae", b"A.avi*1", b"null", b"~", b"<<: *a",
]  # fmt: skip

EDITS = ["insert", "replace", "delete", "flip", "double", "cut", "swap", "line"]
pieces = st.sampled_from(NASTY) | st.binary(max_size=12)
edit = st.tuples(st.sampled_from(EDITS), st.integers(0, 10_000), st.integers(0, 40), pieces)
edits = st.lists(edit, min_size=1, max_size=5)


def edited(data: bytes, changes) -> bytes:
    for kind, start, n, piece in changes:
        start %= len(data) + 1
        lines = data.split(b"\n")
        i, j = start % len(lines), n % len(lines)
        if kind == "insert":
            data = data[:start] + piece + data[start:]
        elif kind == "replace":
            data = data[:start] + piece + data[start + len(piece) :]
        elif kind == "delete":
            data = data[:start] + data[start + n :]
        elif kind == "flip" and start < len(data):
            data = data[:start] + bytes([data[start] ^ (1 << n % 8)]) + data[start + 1 :]
        elif kind == "cut":
            data = data[:start]
        elif kind in ("double", "swap", "line"):
            lines[i] = {"double": lines[i] + b"\n" + lines[i], "swap": lines[j], "line": piece}[kind]
            data = b"\n".join(lines)
    return data


@contextmanager
def time_limit(seconds: float):
    def late(*_):
        raise TimeoutError(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def failures(n: int, strategy, check) -> list[str]:
    """Run a check on n examples of a strategy; hypothesis makes a failing one as small as it can."""
    options = {"deadline": None, "database": None, "derandomize": True}
    options |= {"phases": [Phase.generate, Phase.shrink], "suppress_health_check": list(HealthCheck)}
    try:
        settings(max_examples=n, **options)(hypothesis_given(strategy)(check))()
    except Exception as error:
        return [f"{type(error).__name__}: {error}; {getattr(error, '__notes__', '')}"]
    return []


def list_files(folder: Path) -> dict[str, tuple[dict, Path]]:
    """Kinds of lists: the parameters that read one, and the file to mutate."""
    ids = {"Archery": 1, "Surfing": 2, "YoYo": 3}
    names = [f"{c}/v_{c}_g0{g}_c01.avi" for c in ids for g in range(6)]
    for name in names:
        for subset in ("train", "val", "."):
            path = folder / "root" / subset / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    label = {name: name.split("/")[0] for name in names}
    train, test = [n for n in names if "g05" not in n], [n for n in names if "g05" in n]
    clips = [f"{c},id{i:08d},{i},{i + 10},{s}" for c in ids for i in range(5) for s in ("train", "val")]
    rows = [f"{n},{label[n]},{'test' if n in test else 'train'}" for n in names]
    lines = {
        "ucf/classInd.txt": [f"{i} {c}\r" for c, i in ids.items()],
        "ucf/trainlist01.txt": [f"{n} {ids[label[n]]}" for n in train],
        "ucf/testlist01.txt": test,
        "kinetics/all.csv": ["label,youtube_id,time_start,time_end,split", *clips],
        "own/videos.csv": ["video,label,split", *rows],
        "labels/some.lst": [f"videos/{n}*{ids[label[n]]}" for n in train[::2]],
    }
    for c in ids:
        videos = [n.split("/")[1] for n in names if label[n] == c]
        lines[f"hmdb/{c}_test_split1.txt"] = [f"{n} {1 + (i > 3)} " for i, n in enumerate(videos)]
    for name in lines:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join([*lines[name], ""]))
    own = {"dataset": "fuzz", "root": folder / "root", "outputs": folder / "outputs", "method": "supervised"}
    ucf = own | {"source": "ucf101", "lists": folder / "ucf"}
    hmdb = own | {"source": "hmdb51", "lists": folder / "hmdb"}
    kinetics = own | {"source": "kinetics", "lists": folder / "kinetics"}
    csv = own | {"source": "csv", "lists": folder / "own/videos.csv"}
    labels = ucf | {"label_draw": "list", "label_list": folder / "labels/some.lst"}
    given = {"ucf": ucf, "kinetics": kinetics, "own": csv, "labels": labels, "hmdb": hmdb}
    return {name: (given[name.split("/")[0]], folder / name) for name in lines}


def lists(n: int, folder: Path) -> list[str]:
    """Read n mutated list files: an error that names the file, or a data set that can be trained on."""
    kinds = list_files(folder)
    originals = {name: path.read_bytes() for name, (_, path) in kinds.items()}
    before, counts = helpers.tree(folder), {name: [0, 0] for name in kinds}  # read, refused

    def check(example):
        name, changes = example
        given, path = kinds[name]
        path.write_bytes(edited(originals[name], changes))
        try:
            with time_limit(10):
                p = params.load(**given)
                index = datasets.read_index(p)
                split = splits.make_split(p, index)
        except ValueError as error:
            named = isinstance(error, datasets.DatasetError | splits.SplitError) or str(path) in str(error)
            if not named:
                raise
            counts[name][1] += 1
            return
        finally:
            path.write_bytes(originals[name])
        counts[name][0] += 1
        assert {"labelled", "test"} <= set(split.role)
        assert split.label.between(0, len(index.classes) - 1).all()
        assert [index.classes[i] for i in split.label] == list(split.class_name)
        assert not split.video.duplicated().any()
        for video in split.video:
            assert (p.root / video).resolve().is_relative_to(p.root), video
        splits.from_csv(splits.to_csv(split))

    wrong = failures(n, st.tuples(st.sampled_from(sorted(kinds)), edits), check)
    if helpers.tree(folder) != before or Path("pwned").exists():
        wrong.append("reading lists has written something")
    if n > 500 and not all(min(pair) for pair in counts.values()):
        wrong.append(f"these mutants prove little (read, refused): {counts}")
    return wrong


def parameter_files(n: int, folder: Path) -> list[str]:
    """Load n mutated parameter files: ParameterError, or parameters whose runs stay in their folder."""
    originals = {path.stem: path.read_bytes() for path in (paths.ROOT / "params").glob("*.yaml")}
    everything = params.Params(source="demo").model_dump(mode="json", exclude_none=True, exclude={"dataset"})
    originals["everything"] = "".join(f"{k}: {v}\n" for k, v in everything.items()).encode()
    (folder / "params").mkdir(parents=True)
    for name, content in originals.items():
        (folder / "params" / f"{name}.yaml").write_bytes(content)
    numbers = st.integers() | st.floats()
    values = numbers | st.none() | st.booleans() | st.text(max_size=9) | st.lists(st.integers())
    names = st.sampled_from([*params.Params.model_fields, "base", "stepz"])
    given = st.dictionaries(names, values, max_size=2)
    counts = [0, 0]

    def check(example):
        name, changes, extra = example
        path = folder / "params" / "mine.yaml"
        path.write_bytes(edited(originals[name], changes))
        try:
            with time_limit(10):
                p = params.load(**{"dataset": "mine"} | extra)
        except params.ParameterError as error:
            if len(str(error)) > 20_000:
                raise AssertionError("an error message of many pages") from error
            counts[1] += 1
            return
        counts[0] += 1
        assert p.run_dir.resolve().is_relative_to(p.outputs / p.dataset)
        assert p.steps >= 1
        assert p.batch_size >= 2
        assert p.source is not None
        p.model_dump_json()

    root, paths.ROOT = paths.ROOT, folder
    try:
        before = helpers.tree(folder)
        wrong = failures(n, st.tuples(st.sampled_from(sorted(originals)), edits, given | st.just({})), check)
        (folder / "params" / "mine.yaml").unlink(missing_ok=True)
        if helpers.tree(folder) != before or Path("pwned").exists():
            wrong.append("reading parameters has written something")
    finally:
        paths.ROOT = root
    if n > 500 and min(counts) < n // 20:
        wrong.append(f"these mutants prove little (read, refused): {counts}")
    return wrong


# ---- Caches and checkpoints


def caches(n: int, folder: Path, seed: int = 0) -> list[str]:
    """Damage frame files, the store's table and checkpoints: an error that names the file, or a rebuilt one."""
    rng = random.Random(seed)
    names = helpers.small_videos(folder / "videos", ["a.mp4", "b.mp4"])
    store = FrameStore(folder / "store", StoreSettings(32, 90, 4))
    store.add(names, folder / "videos", workers=1)
    run = runs.Run(folder / "run")
    run.write_checkpoint({"metrics": [], "log": [], "step": 1, "model": {"w": torch.ones(100)}})
    readers = {
        store.path("a.mp4"): lambda: store.images("a.mp4", np.arange(12)),
        store.table_path: lambda: FrameStore(folder / "store", store.settings),
        run.checkpoint: run.read_checkpoint,
    }
    targets, originals = list(readers), {path: path.read_bytes() for path in readers}
    wrong = []
    for i in range(n):
        path = targets[i % 3]
        path.write_bytes(mutate_video(rng, originals[path], originals[targets[(i + 1) % 3]]))
        try:
            with warnings.catch_warnings(action="ignore"):
                readers[path]()
        except (ValueError, IndexError, runs.RunError) as error:
            if str(path) not in str(error):
                wrong.append(f"mutant {i} of {path.name}: {error!r} does not name the file")
        except Exception as error:
            wrong.append(f"mutant {i} of {path.name}: {error!r}")
        finally:
            path.write_bytes(originals[path])
    return wrong


KINDS = {videos: 1500, structured: 900, lists: 1500, parameter_files: 1500, caches: 600}


def main() -> int:
    passed = failed = 0
    with tempfile.TemporaryDirectory() as name:
        for kind, n in KINDS.items():
            start = time.perf_counter()
            folder = Path(name).resolve() / kind.__name__
            folder.mkdir()
            wrong = kind(n, folder)
            print(*wrong, sep="\n", end="\n" if wrong else "")
            seconds = time.perf_counter() - start
            print(f"{kind.__name__:<16} {n} mutants, {len(wrong)} failed, {seconds:.0f} s", flush=True)
            passed, failed = passed + n - len(wrong), failed + len(wrong)
    print(f"{passed} passed, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
