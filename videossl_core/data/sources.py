"""Where the videos of a data set are listed: official lists, folders, a CSV, labels of your own.

A new source is a function from parameters to a ``Listing``, and a row of SOURCES.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from videossl_core.data import demo, labels
from videossl_core.data.files import read_lines
from videossl_core.params import Params

_SUFFIXES = (
    "264 265 360 3g2 3gp 3gpp asf avc avi dav dif divx dv dvr-ms evo f4v flv gif gxf h264 h265 hevc insv ivf "
    "lrf lrv m1v m2p m2t m2ts m2v m4v mjpeg mjpg mk3d mkv mod mov mp4 mp4v mpe mpeg mpeg4 mpg mpv mts mxf "
    "nut obu ogg ogm ogv ogx qt rm rmvb tod tp trp ts vob vro webm wm wmv wtv xvid y4m"
)
SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Of files that are looked at, in any case. ``codec`` opens the containers that they stand for."""

Rows = list[tuple[str, str, str]]
"""(video, class name, split), the video as a POSIX path relative to the root, the split train or test."""


class Listing(NamedTuple):
    """The videos that a source lists, and its classes in the order of their ids; None: by their names."""

    rows: Rows
    classes: list[str] | None = None


class DatasetError(ValueError):
    """The files or lists of a data set do not fit together; the message names the file and the way out."""


def _existing(folder: Path | None, what: str) -> Path:
    if folder is None or not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder ({what})")
    return folder


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _files_below(folder: Path) -> list[str]:
    """Sorted relative paths. Links to folders are followed, but not in a circle; hidden ones are skipped."""
    files: list[Path] = []
    for path, subfolders, names in os.walk(folder, onerror=_warn_unreadable, followlinks=True):
        parent = Path(path)
        above = {os.path.realpath(p) for p in (parent, *parent.parents)}
        subfolders[:] = [s for s in subfolders if s[0] != "." and os.path.realpath(parent / s) not in above]
        files += [parent / name for name in names if name[0] != "."]
    return sorted(file.relative_to(folder).as_posix() for file in files)


def _warn_unreadable(error: OSError) -> None:
    warnings.warn(f"{error.filename}: passed over ({error.strerror})", stacklevel=4)


def videos_below(folder: Path) -> list[str]:
    """The relative paths of all files that have a video's suffix, sorted."""
    return [name for name in _files_below(folder) if _suffix(name) in SUFFIXES]


def passed_over(folder: Path, videos: Iterable[str]) -> str:
    """How many files below the folder are none of these videos, by suffix, in a few words."""
    others = set(_files_below(folder)) - set(videos)
    counts = Counter(_suffix(name) or "without a suffix" for name in sorted(others))
    return "passed over: " + (", ".join(f"{n} {suffix}" for suffix, n in counts.most_common()) or "nothing")


def _subfolders(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def alphabetical(names: Iterable[str]) -> list[str]:
    """Sorted by letters and digits only, the order in which Kinetics numbers its classes."""
    return sorted(names, key=lambda name: ("".join(c for c in name.lower() if c.isalnum()), name))


def _ucf101(p: Params) -> Listing:
    """Official lists: classInd.txt, trainlist0N.txt (``Class/video.avi id``), testlist0N.txt."""
    lists = _existing(p.lists, "lists: the official ucfTrainTestlist folder")
    path = lists / "classInd.txt"
    classes: list[str] = []
    for n, line in read_lines(path):
        id, _, name = line.partition(" ")
        if not name or id != str(len(classes) + 1):
            raise DatasetError(f"{path} line {n}: {line!r} is not '{len(classes) + 1} ClassName'")
        classes.append(name)
    rows = []
    for split in ("train", "test"):
        path = lists / f"{split}list{p.split:02d}.txt"
        for n, line in read_lines(path):
            video, *number = line.rsplit(" ", 1) if split == "train" else [line]
            name = PurePosixPath(video).parent.name
            if name not in classes or (split == "train" and number != [str(classes.index(name) + 1)]):
                raise DatasetError(f"{path} line {n}: {line!r} is not a video of a listed class with its id")
            rows.append((video, name, split))
    return Listing(_tuning(rows, classes) if p.tune else rows, classes)


def _tuning(rows: Rows, classes: list[str]) -> Rows:
    """Only the training videos, the last four groups of each class (v_Class_gNN_cNN.avi) as test videos: the
    videos of a group were cut from one, so no group may be on both sides."""
    train = [(video, name, video.rsplit("_", 2)[1]) for video, name, split in rows if split == "train"]
    held_out = {name: sorted({g for _, n, g in train if n == name})[-4:] for name in classes}
    return [(video, name, "test" if group in held_out[name] else "train") for video, name, group in train]


def _hmdb51(p: Params) -> Listing:
    """Official lists, one ``<class>_test_split<N>.txt`` a class: ``video.avi 1`` train, 2 test, 0 unused.

    ``hmdb51_pool = videossl`` trains on all videos that are not test videos, as the authors' lists do (5,236
    instead of the official 3,570 on split 1); results of the two pools must not be compared.
    """
    lists = _existing(p.lists, "lists: the official testTrainMulti_7030_splits folder")
    ending = f"_test_split{p.split}.txt"
    rows, classes = [], []
    for path in sorted(lists.glob(f"*{ending}")):
        name = path.name.removesuffix(ending)
        classes.append(name)
        for n, line in read_lines(path):
            video, _, mark = line.rpartition(" ")
            if not video or mark not in ("0", "1", "2"):
                raise DatasetError(f"{path} line {n}: {line!r} is not 'video.avi 0|1|2'")
            if mark != "0" or p.hmdb51_pool == "videossl":
                rows.append((f"{name}/{video.strip()}", name, "test" if mark == "2" else "train"))
    return Listing(rows, classes)


def _kinetics(p: Params) -> Listing:
    """Folder per class below train/ and val/ (any case), or the official CSVs in ``lists``.

    A CSV has the columns label, youtube_id, time_start, time_end, split; its videos are
    ``<split>/<label>/<youtube_id>_<start>_<end>.mp4`` with six digits each. Tested on is the validation
    split, as in the paper (4.2.2), or the test split where there is no other.
    """
    held_out = ("val", "validate", "test")
    if p.lists is None:
        return _split_folders(p.videos_dir, held_out)
    folders = {f.lower(): f for f in _subfolders(p.videos_dir)}
    rows = []
    for path in sorted(p.lists.glob("*.csv")) or [p.lists]:
        cells = _read_csv(path, ["label", "youtube_id", "time_start", "time_end", "split"])
        for n, (label, youtube_id, start, end, split) in enumerate(cells, 2):
            if not (label and youtube_id and start.isdecimal() and end.isdecimal()):
                raise DatasetError(f"{path} line {n}: needs a label, a youtube_id and whole seconds as times")
            role = split.lower()
            if role not in ("train", *held_out):
                raise DatasetError(f"{path} line {n}: split {split!r} is not train, {', '.join(held_out)}")
            folder = folders.get(role, folders.get(role[:3], split))
            subfolder = label if os.path.isdir(p.videos_dir / folder / label) else label.replace(" ", "_")
            name = f"{youtube_id}_{int(start):06d}_{int(end):06d}.mp4"
            rows.append((f"{folder}/{subfolder}/{name}", label, role))
    return _tested_on(held_out, rows, p.lists)


def _tested_on(held_out: tuple[str, ...], rows: Rows, where: Path) -> Listing:
    """The videos of train and of the first of these splits that has any; a mix of two would be neither."""
    splits = {split for *_, split in rows}
    test, *others = [split for split in held_out if split in splits] or [""]
    if others:
        warnings.warn(f"{where}: tested on {test}; {', '.join(others)} is left out", stacklevel=2)
    roles = {"train": "train", test: "test"}
    return Listing([(video, name, roles[split]) for video, name, split in rows if split in roles])


def _read_csv(path: Path, columns: list[str], optional: tuple[str, ...] = ()) -> list[list[str]]:
    """The cells of these columns, row by row; those of a missing optional column are empty."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors too
        raise DatasetError(f"{path}: not readable as CSV: {error}") from None
    if missing := [c for c in columns if c not in table.columns]:
        raise DatasetError(f"{path}: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    return table.reindex(columns=[*columns, *optional], fill_value="").to_numpy().tolist()


def _split_folders(root: Path, held_out: tuple[str, ...]) -> Listing:
    """Class folders below train/ and one of these folders, in any case."""
    paths = [(video, video.split("/")) for video in videos_below(root)]
    rows = [(video, parts[1], parts[0].lower()) for video, parts in paths if len(parts) > 2]
    return _tested_on(held_out, rows, root)


def _folder(p: Params) -> Listing:
    """Class folders below train/ and test/ or val/, or right below the root with a seeded held-out part."""
    names = {name.lower() for name in _subfolders(p.videos_dir)}
    if "train" in names and names <= {"train", "test", "val"}:
        return _split_folders(p.videos_dir, ("test", "val"))
    rows = [(video, video.split("/")[0], "") for video in videos_below(p.videos_dir) if "/" in video]
    return _hold_out(rows, p.test_pct)


def _csv(p: Params) -> Listing:
    """A CSV file ``lists`` with the columns video (relative to root), label, and perhaps split."""
    if p.lists is None:
        raise DatasetError("source = 'csv' needs lists, the CSV file with the columns video, label[, split]")
    rows = []
    for n, (video, label, split) in enumerate(_read_csv(p.lists, ["video", "label"], ("split",)), 2):
        if not video or not label or split not in ("", "train", "test"):
            raise DatasetError(f"{p.lists} line {n}: needs a video, a label, and train, test or no split")
        rows.append((video, label, split))
    return _hold_out(rows, p.test_pct)


def _hold_out(rows: Rows, test_pct: float) -> Listing:
    """Give the rows without a split one: per class, ``test_pct`` % by a fixed draw are test videos."""
    table = pd.DataFrame(rows, columns=["video", "class_name", "split"]).sort_values("video")
    rng = np.random.default_rng(20_20)  # not the run's seed: all runs share one test split
    for _, group in table[table.split == ""].groupby("class_name", sort=True):
        order = rng.permutation(group.index)
        n = min(len(order) - 1, max(1, round(len(order) * test_pct / 100)))
        table.loc[order[:n], "split"], table.loc[order[n:], "split"] = "test", "train"
    return Listing(list(table.itertuples(index=False, name=None)))


def _annotated(p: Params) -> Listing:
    """A folder of videos, most of them without a label, and the CSV of ``labels`` made in annotate.ipynb."""
    in_file = labels.read(p.labels_file, p.classes, p.test_pct)
    rows = [(video, name, split) for video, (name, split) in in_file.items() if split != "skip"]
    for needed, kind in (("train", "labelled"), ("test", "held-out")):
        if not any(split == needed for *_, split in rows):
            raise DatasetError(f"{p.labels_file}: no {kind} video yet; label some in annotate.ipynb")
    others = [(video, "", "train") for video in videos_below(p.videos_dir) if video not in in_file]
    return Listing(rows + others, p.classes)


def open_root(p: Params) -> Path:
    """The folder of the videos, which are rendered first if they are the demo's."""
    root = p.videos_dir
    if p.source == "demo" or (p.source == "annotated" and p.root is None):
        demo.render(root, p.demo_per_class, p.prep_workers, class_folders=p.source == "demo")
    return _existing(root, "root of the videos")


SOURCES: dict[str | None, Callable[[Params], Listing]] = {
    "demo": lambda p: _split_folders(p.videos_dir, ("test",)),
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "kinetics": _kinetics,
    "folder": _folder,
    "csv": _csv,
    "annotated": _annotated,
}
