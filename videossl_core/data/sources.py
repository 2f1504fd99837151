"""Where the videos of a data set are listed: official lists, folders, a CSV, labels of your own.

A new source is a function from parameters to a ``Listing``, and a row of SOURCES.
"""

import os
import posixpath
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from videossl_core.data import demo, files, labels
from videossl_core.data.files import read_lines
from videossl_core.data.folders import DatasetError, Rows, arrange, split_of, videos_below
from videossl_core.params import Params
from videossl_core.paths import places


class Listing(NamedTuple):
    """The videos that a source lists, and its classes in the order of their ids; None: by their names."""

    rows: Rows
    classes: list[str] | None = None


def _existing(folder: Path | None, what: str) -> Path:
    if folder is None or not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder ({what}); {places()}")
    return folder


def _arranged(p: Params) -> Rows:
    """The videos below the root by their folders; a warning names the folders that hold none, and videos that
    lie in no class folder."""
    root, videos = p.videos_dir, videos_below(p.videos_dir)
    rows = arrange(root, videos, p.classes)
    lowest = {os.path.dirname(video) for video in videos}  # few, where videos are many
    used = {parent for folder in lowest for parent in Path(folder, "video").parents}
    levels = ("*", "*/*") if any(split for *_, split in rows) else ("*",)
    folders = {f.relative_to(root) for level in levels for f in root.glob(level) if f.is_dir()} - used
    empty = sorted(f.as_posix() for f in folders if f.parent in used and f.name[0] != ".")
    if empty:
        warnings.warn(f"{root}: no video in {', '.join(empty)}: passed over", stacklevel=2)
    placed = {video for video, *_ in rows}
    if loose := [video for video in videos if video not in placed]:
        what = f"{len(loose)} videos lie in no class folder, such as {loose[0]}"
        warnings.warn(f"{root}: {what}: passed over", stacklevel=2)
    return rows


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
    return Listing(rows, classes)


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
    ``<youtube_id>_<start>_<end>`` with six digits each and any suffix, in the folder of the split or in a
    class's below it. Tested on is the validation split, as in the paper (4.2.2), or the test split where
    there is no other.
    """
    held_out = ("val", "test")
    if p.lists is None:
        return _tested_on(held_out, _arranged(p), p.videos_dir)
    existing = defaultdict(list)
    for video in videos_below(p.videos_dir):
        name, _ = posixpath.splitext(posixpath.basename(video))
        existing[name, split_of(video.split("/")[0])].append(video)
    rows = []
    for path in sorted(p.lists.glob("*.csv")) or [p.lists]:
        for n, cells in _read_csv(path, ["label", "youtube_id", "time_start", "time_end", "split"]):
            label, youtube_id, start, end, split = map(str.strip, cells)
            if not (label and youtube_id and start.isdecimal() and end.isdecimal()):
                raise DatasetError(f"{path} line {n}: needs a label, a youtube_id and whole seconds as times")
            if (role := split_of(split)) == "":
                raise DatasetError(f"{path} line {n}: split {split!r} is not train, validate or test")
            name = f"{youtube_id}_{int(start):06d}_{int(end):06d}"
            # a missing one is rejected by the name that it would have
            videos = existing[name, role] or existing[name, ""] or [f"{split}/{label}/{name}.mp4"]
            rows.append((videos[0], label, role))
    return _tested_on(held_out, rows, p.lists)


def _tested_on(held_out: tuple[str, ...], rows: Rows, where: Path) -> Listing:
    """The videos of train and of the first of these splits that has any; a mix of two would be neither."""
    splits = {split for *_, split in rows}
    test, *others = [split for split in held_out if split in splits] or [""]
    if others:
        warnings.warn(f"{where}: tested on {test}; {', '.join(others)} is left out", stacklevel=2)
    roles = {"train": "train", test: "test"}
    return Listing([(video, name, roles[split]) for video, name, split in rows if split in roles])


def _read_csv(
    path: Path, columns: list[str], optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, list[str]]]:
    """Line number and the cells of these columns, row by row; of a missing optional one empty."""
    try:
        (_, header), *rows = files.read_csv(path) or [(1, [])]
    except (ValueError, OSError) as error:
        raise DatasetError(str(error)) from None
    names = [name.strip().lower() for name in header]
    if missing := ", ".join(c for c in columns if c not in names):
        found = ", ".join(header) or "nothing"
        raise DatasetError(f"{path}: no column {missing}; it has {found}. Separate them by , or ; or tabs")
    for n, cells in rows:
        row = dict(zip(names, cells, strict=True))
        yield n, [row.get(name, "") for name in (*columns, *optional)]


def _folder(p: Params) -> Listing:
    """Class folders below folders of splits, or right below the root with a seeded held-out part."""
    rows = _arranged(p)
    splits = {split for *_, split in rows}
    if splits == {"train"}:
        what = f"only a training folder; {p.test_pct:g} % of it is held out"
        warnings.warn(f"{p.videos_dir}: {what}", stacklevel=2)
    if splits <= {"train", ""}:
        return _hold_out([(video, name, "") for video, name, _ in rows], p.test_pct)
    return _tested_on(("test", "val"), rows, p.videos_dir)


def _csv(p: Params) -> Listing:
    """A CSV file ``lists`` with the columns video (relative to root), label, and perhaps split."""
    if p.lists is None:
        raise DatasetError("source = 'csv' needs lists, the CSV file with the columns video, label[, split]")
    rows = []
    for n, (video, label, split) in _read_csv(p.lists, ["video", "label"], ("split",)):
        label, split = label.strip(), split.strip()
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
    videos = videos_below(p.videos_dir)
    in_file = labels.read(p.labels_file, p.classes, p.test_pct, videos)
    rows = [(video, name, split) for video, (name, split) in in_file.items() if split != "skip"]
    for needed, kind in (("train", "labelled"), ("test", "held-out")):
        if not any(split == needed for *_, split in rows):
            raise DatasetError(f"{p.labels_file}: no {kind} video yet; label some in annotate.ipynb")
    others = [(video, "", "train") for video in videos if video not in in_file]
    return Listing(rows + others, p.classes)


def open_root(p: Params) -> Path:
    """The folder of the videos, which are rendered first if they are the demo's."""
    root = p.videos_dir
    if p.source == "demo" or (p.source == "annotated" and p.root is None):
        demo.render(root, p.demo_per_class, p.prep_workers, class_folders=p.source == "demo")
    return _existing(root, "root of the videos")


SOURCES: dict[str | None, Callable[[Params], Listing]] = {
    "demo": _folder,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "kinetics": _kinetics,
    "folder": _folder,
    "csv": _csv,
    "annotated": _annotated,
}
