"""A data set as one table: the videos that its source lists, checked, with their class, label and split."""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from videossl_core.data import files, folders
from videossl_core.data.folders import DatasetError, videos_below
from videossl_core.data.sources import SOURCES, alphabetical, open_root
from videossl_core.params import Params, comma_list
from videossl_core.paths import clean_name

__all__ = ["SOURCES", "DatasetError", "alphabetical", "open_root", "videos_below"]

# to be looked at: absolute, not in its shortest form, control characters, bytes that are no UTF-8
_UNUSUAL = re.compile(r"^/|//|/$|^$|(^|/)\.\.?(/|$)|[\\\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Index:
    """A data set: ``table`` has the columns video, class_name, label, split, sorted by video.

    A training video of unknown class has the class_name "" and the label -1. ``classes`` gives the names by
    label id; ``all_classes`` those of the whole data set, of which ``classes`` may be a part.
    """

    root: Path
    table: pd.DataFrame
    classes: list[str]
    all_classes: list[str]


def read_index(p: Params) -> Index:
    """List the videos of a data set, rendering them first if it is the demo.

    Raises:
        DatasetError: a list is malformed, a name leads out of the root, or no video is left.
    """
    root = open_root(p)
    rows, listed = SOURCES[p.source](p)
    table = pd.DataFrame(rows, columns=["video", "class_name", "split"])
    table["class_name"] = table.class_name.map(clean_name)
    all_classes = comma_list(listed) or alphabetical({*table.class_name.unique()} - {""})
    table["video"] = videos = [_below(root, video) for video in table.video]
    if not all(map(str.isascii, videos)):
        table["video"] = table.video.map(files.spelled_as(videos_below(root)))
    if (double := table.video[table.video.duplicated()]).size:
        raise DatasetError(f"{double.iloc[0]} is listed twice ({len(double)} such videos)")
    classes = choose_classes(p, table, all_classes)
    table = table[table.class_name.isin([*classes, ""])].sort_values("video", ignore_index=True)
    for split in ("train", "test"):
        if not (table.split == split).any():
            where = f"{root} (source = {p.source!r}); {folders.passed_over(root, table.video)}"
            raise DatasetError(f"no {split} video of any class found below {where}")
    folders.warn_of_near_names(table.class_name[table.class_name != ""].value_counts().to_dict())
    parents = set(zip(table.class_name, table.video.map(os.path.dirname), strict=True))
    found = {name for name, folder in parents if os.path.isdir(root / folder)}
    present = [c for c in classes if c in found]
    if absent := [c for c in classes if c not in present]:
        count = f"{len(absent)} of {len(classes)} classes have no folder below {root}, such as {absent[0]}"
        others = f"To use the others: classes = {','.join(present)}" if present else "Is root right?"
        raise DatasetError(f"{count}. {others}")
    table.insert(2, "label", pd.Index(classes).get_indexer(table.class_name))  # -1 for ""
    return Index(root, table, classes, all_classes)


def _below(root: Path, video: str) -> str:
    """The video relative to the root, below which it must lie; trust no list."""
    if not _UNUSUAL.search(video):
        return video
    path = PurePosixPath(video)
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    if path.is_absolute() or "\\" in video or ".." in path.parts or not path.name:
        raise DatasetError(f"{video!r}: a listed video must lie below the root folder {root}")
    if _UNUSUAL.search(str(path)):  # by its characters, then
        raise DatasetError(f"{video!r}: the name has characters that no list can hold; rename it")
    return str(path)


def choose_classes(p: Params, table: pd.DataFrame, all_classes: list[str]) -> list[str]:
    """The classes that the parameters select and that have a video, in the order of their ids."""
    classes = p.classes or all_classes
    if unknown := [c for c in classes if c not in all_classes]:
        raise DatasetError(f"classes: {unknown[0]!r} is not a class of this data set")
    if len(set(classes)) < len(classes):
        raise DatasetError("classes: a class is named twice")
    if p.largest_classes:
        # Kinetics-100 is defined so (4.2.2): the classes with most training videos, ties in order of name
        counts = table[(table.split == "train") & table.class_name.isin(classes)].class_name.value_counts()
        largest = sorted(counts.index, key=lambda c: (-counts[c], classes.index(c)))[: p.largest_classes]
        classes = [c for c in classes if c in largest]
    present = set(table.class_name.unique())
    return [c for c in classes if c in present]
