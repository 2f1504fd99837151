"""Where the videos of a data set are listed: official lists, folders, a CSV, one's own labels.

A new source is a function from parameters to rows and a row of SOURCES.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from videossl_core.data import demo, labels
from videossl_core.data.files import read_text
from videossl_core.data.pool import quiet

if TYPE_CHECKING:
    from videossl_core.params import Params

VIDEO_SUFFIXES = {".avi", ".mp4", ".m4v", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv",
                  ".ts", ".mts", ".m2ts", ".3gp", ".3g2"}  # fmt: skip

Rows = list[tuple[str, str, str]]
"""(video, class name, split), the video as a POSIX path relative to the root, the split train or test."""


class DatasetError(ValueError):
    """The files or lists of a data set do not fit together; the message names the file and the way out."""


def _folder_of(path: Path | None, what: str) -> Path:
    if path is None or not path.is_dir():
        raise DatasetError(f"{path}: no such folder ({what})")
    return path


def videos_below(folder: Path) -> list[str]:
    """Links to folders are followed, but not round in a circle; hidden files and folders are passed over."""
    found = []
    for at, folders, names in os.walk(folder, followlinks=True):
        here = Path(at)
        above = {os.path.realpath(parent) for parent in (here, *here.parents)}
        folders[:] = [f for f in folders if not f.startswith(".") and os.path.realpath(here / f) not in above]
        found += [here / n for n in names if not n.startswith(".") and _suffix(n) in VIDEO_SUFFIXES]
    return sorted(f.relative_to(folder).as_posix() for f in found)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _subfolders(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def alphabetical(names) -> list[str]:
    """Sorted by letters and digits only, the order in which Kinetics numbers its classes."""
    return sorted(names, key=lambda name: ("".join(c for c in name.lower() if c.isalnum()), name))


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list file that are not empty, with their numbers; either line ending."""
    return [(n, line.strip()) for n, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]


def _ucf101(p: "Params") -> tuple[Rows, list[str]]:
    """Official lists: classInd.txt, trainlist0N.txt (``Class/video.avi id``), testlist0N.txt."""
    lists = _folder_of(p.lists, "lists: the official ucfTrainTestlist folder")
    classes = []
    for n, line in _lines(lists / "classInd.txt"):
        number, _, name = line.partition(" ")
        if not name or number != str(len(classes) + 1):
            raise DatasetError(
                f"{lists / 'classInd.txt'} line {n}: {line!r} is not '{len(classes) + 1} ClassName'"
            )
        classes.append(name)
    rows = []
    for split in ("train", "test"):
        path = lists / f"{split}list{p.split:02d}.txt"
        for n, line in _lines(path):
            video = line.rsplit(" ", 1)[0] if split == "train" else line
            name = PurePosixPath(video).parent.name
            if name not in classes or (
                split == "train" and line.rsplit(" ", 1)[1:] != [str(classes.index(name) + 1)]
            ):
                raise DatasetError(
                    f"{path} line {n}: {line!r} is not a video of a class in classInd.txt with its id"
                )
            rows.append((video, name, split))
    return (_tuning(rows) if p.tune else rows), classes


def _tuning(rows: Rows) -> Rows:
    """The training videos alone, the last four groups of each class (v_Class_gNN_cNN.avi) as test videos: a
    group's videos were cut from one, so that none may be on both sides."""
    train = [(video, name, video.rsplit("_", 2)[1]) for video, name, split in rows if split == "train"]
    last = {name: sorted({g for _, of, g in train if of == name})[-4:] for _, name, _ in train}
    return [(video, name, "test" if group in last[name] else "train") for video, name, group in train]


def _hmdb51(p: "Params") -> tuple[Rows, list[str]]:
    """Official lists, one ``<class>_test_split<N>.txt`` a class: ``video.avi 1`` train, 2 test, 0 unused.

    ``hmdb51_pool = videossl`` trains on all videos that are not test videos, as the authors' lists do (5,236
    instead of the official 3,570 on split 1); results of the two pools must not be compared.
    """
    lists = _folder_of(p.lists, "lists: the official testTrainMulti_7030_splits folder")
    ending = f"_test_split{p.split}.txt"
    paths = sorted(lists.glob(f"*{ending}"))
    rows = []
    for path in paths:
        name = path.name.removesuffix(ending)
        for n, line in _lines(path):
            video, _, mark = line.rpartition(" ")
            if not video or mark not in ("0", "1", "2"):
                raise DatasetError(f"{path} line {n}: {line!r} is not 'video.avi 0|1|2'")
            if mark != "0" or p.hmdb51_pool == "videossl":
                rows.append((f"{name}/{video.strip()}", name, "test" if mark == "2" else "train"))
    return rows, [path.name.removesuffix(ending) for path in paths]


def _kinetics(p: "Params") -> tuple[Rows, list[str]]:
    """Folder per class below train/ and val/ (any case), or the official CSVs in ``lists``.

    A CSV has the columns label, youtube_id, time_start, time_end, split; its videos are
    ``<split>/<label>/<youtube_id>_<start>_<end>.mp4`` with six digits each. Tested on is the validation
    split, as in the paper (4.2.2), or the test split where there is no other.
    """
    held_out = ("val", "validate", "test")
    if p.lists is None:
        return _split_folders(p.root, held_out)
    rows = []
    paths = (
        [p.lists]
        if p.lists.is_file()
        else sorted(_folder_of(p.lists, "lists: the official CSV files").glob("*.csv"))
    )
    folders = {f.lower(): f for f in _subfolders(_folder_of(p.root, "root of the videos"))}
    for path in paths:
        table = _read_csv(path, ["label", "youtube_id", "time_start", "time_end", "split"])
        for n, r in enumerate(table.itertuples(), 2):
            if not (r.label and r.youtube_id and r.time_start.isdecimal() and r.time_end.isdecimal()):
                raise DatasetError(f"{path} line {n}: needs a label, a youtube_id and whole seconds as times")
            if r.split.lower() not in ("train", *held_out):
                raise DatasetError(f"{path} line {n}: split {r.split!r} is not train, {', '.join(held_out)}")
            folder = folders.get(r.split.lower(), folders.get(r.split.lower()[:3], r.split))
            name = f"{r.youtube_id}_{int(r.time_start):06d}_{int(r.time_end):06d}.mp4"
            label = r.label if (p.root / folder / r.label).is_dir() else r.label.replace(" ", "_")
            rows.append((f"{folder}/{label}/{name}", r.label, r.split.lower()))
    test = _held_out({split for *_, split in rows}, held_out, p.lists)
    roles = {"train": "train", test: "test"}
    rows = [(video, name, roles[split]) for video, name, split in rows if split in roles]
    return rows, alphabetical({name for _, name, _ in rows})


def _held_out(there: Iterable[str], preferred: tuple[str, ...], where: Path) -> str:
    """The one of these splits that is tested on; a mix of two would be neither."""
    found = [split for split in preferred if split in there]
    if len(found) > 1:
        warnings.warn(f"{where}: tested on {found[0]}; {', '.join(found[1:])} is left out", stacklevel=2)
    return found[0] if found else ""


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors too
        raise DatasetError(f"{path}: not readable as CSV: {error}") from None
    if missing := [c for c in columns if c not in table.columns]:
        raise DatasetError(f"{path}: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    return table


def _split_folders(root: Path, held_out: tuple[str, ...]) -> tuple[Rows, list[str]]:
    """Class folders below train/ and the first of these folders that there is, in any case."""
    folders = {f.lower(): f for f in _subfolders(_folder_of(root, "root of the videos"))}
    rows = []
    for split, there in (("train", "train"), ("test", _held_out(folders, held_out, root))):
        folder = folders.get(there, there)
        for name in _subfolders(root / folder) if there in folders else []:
            rows += [(f"{folder}/{name}/{v}", name, split) for v in videos_below(root / folder / name)]
    return rows, alphabetical({name for _, name, _ in rows})


def _folder(p: "Params") -> tuple[Rows, list[str]]:
    """Class folders below train/ and test/ or val/, or right below the root with a seeded held-out part."""
    root = _folder_of(p.root, "root of the videos")
    names = {name.lower() for name in _subfolders(root)}
    if "train" in names and names <= {"train", "test", "val"}:
        return _split_folders(root, ("test", "val"))
    rows = [(f"{name}/{v}", name, "") for name in _subfolders(root) for v in videos_below(root / name)]
    return _hold_out(rows, p.test_pct), alphabetical({name for _, name, _ in rows})


def _csv(p: "Params") -> tuple[Rows, list[str]]:
    """A CSV file ``lists`` with the columns video (relative to root), label, and perhaps split."""
    table = _read_csv(p.lists, ["video", "label"]) if p.lists else None
    if table is None:
        raise DatasetError("source = 'csv' needs lists, the CSV file with the columns video, label[, split]")
    splits = table["split"] if "split" in table.columns else [""] * len(table)
    rows = []
    for n, (video, label, split) in enumerate(zip(table["video"], table["label"], splits, strict=True), 2):
        if not video or not label or split not in ("", "train", "test"):
            raise DatasetError(
                f"{p.lists} line {n}: needs a video, a label, and train, test or nothing as split"
            )
        rows.append((video, label, split))
    return _hold_out(rows, p.test_pct), alphabetical({label for _, label, _ in rows})


def _hold_out(rows: Rows, test_pct: float) -> Rows:
    """Give the rows without a split one: per class, ``test_pct`` % by a fixed draw are test videos."""
    table = pd.DataFrame(rows, columns=["video", "class_name", "split"]).sort_values("video")
    rng = np.random.default_rng(20_20)  # not the run's seed: all runs share one test split
    for _, group in table[table.split == ""].groupby("class_name", sort=True):
        order = rng.permutation(group.index)
        n = min(len(order) - 1, max(1, round(len(order) * test_pct / 100)))
        table.loc[order[:n], "split"], table.loc[order[n:], "split"] = "test", "train"
    return list(table.itertuples(index=False, name=None))


def _demo(p: "Params") -> tuple[Rows, list[str]]:
    return _split_folders(p.videos_dir, ("test",))


def _annotated(p: "Params") -> tuple[Rows, list[str]]:
    """A folder of videos, most of them without a label, and the CSV of ``labels`` made in annotate.ipynb."""
    known = labels.read(p.labels_file, p.classes, p.test_pct)
    rows = [(video, name, split) for video, (name, split) in known.items() if split != "skip"]
    for split, what in (("train", "labelled"), ("test", "held-out")):
        if not any(s == split for _, _, s in rows):
            raise DatasetError(f"{p.labels_file}: no {what} video yet; label some in annotate.ipynb")
    classes = p.classes or alphabetical({name for _, name, _ in rows})
    return rows + [(v, "", "train") for v in videos_below(p.videos_dir) if v not in known], classes


def open_root(p: "Params", progress=quiet) -> Path:
    """The folder of the videos, which are rendered first if they are the demo's."""
    root = p.videos_dir
    if p.source == "demo" or (p.source == "annotated" and p.root is None):
        demo.render(root, p.demo_per_class, p.prep_workers, progress, class_folders=p.source == "demo")
    return _folder_of(root, "root of the videos")


SOURCES: dict[str, Callable[["Params"], tuple[Rows, list[str]]]] = {
    "demo": _demo,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "kinetics": _kinetics,
    "folder": _folder,
    "csv": _csv,
    "annotated": _annotated,
}
