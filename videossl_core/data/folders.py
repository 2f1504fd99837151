"""What lies below a folder: videos, by their suffixes; their classes and splits, by the folders' names."""

import os
import posixpath
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from videossl_core.paths import clean_name

_SUFFIXES = (
    "264 265 360 3g2 3gp 3gpp asf avc avi dav dif divx dv dvr-ms evo f4v flv gif gxf h264 h265 hevc insv ivf "
    "lrf lrv m1v m2p m2t m2ts m2v m4v mjpeg mjpg mk3d mkv mod mov mp4 mp4v mpe mpeg mpeg4 mpg mpv mts mxf "
    "nut obu ogg ogm ogv ogx qt rm rmvb tod tp trp ts vob vro webm wm wmv wtv xvid y4m"
)
SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Of files that are looked at, in any case. ``codec`` opens the containers that they stand for."""

Rows = list[tuple[str, str, str]]
"""(video, class name, split), the video as a POSIX path relative to the root, the split train or test."""


class DatasetError(ValueError):
    """The files or lists of a data set do not fit together; the message names the file and the way out."""


def _files_below(folder: Path) -> list[str]:
    """Sorted relative paths. Links to folders are followed, but not in a circle, hidden folders are not."""

    def warn(error: OSError) -> None:
        warnings.warn(f"{error.filename}: passed over ({error.strerror})", stacklevel=4)

    found: list[str] = []
    for path, subfolders, names in os.walk(folder, onerror=warn, followlinks=True):
        parent = Path(path)
        above = {os.path.realpath(p) for p in (parent, *parent.parents)}
        subfolders[:] = [s for s in subfolders if s[0] != "." and os.path.realpath(parent / s) not in above]
        below = "" if parent == folder else f"{parent.relative_to(folder).as_posix()}/"
        found += [below + name for name in names]
    return sorted(found)


def videos_below(folder: Path) -> list[str]:
    """The relative paths of all files that have a video's suffix and are not hidden, sorted."""
    return [name for name in _files_below(folder) if _kind(name) in SUFFIXES]


def passed_over(folder: Path, videos: Iterable[str]) -> str:
    """How many files below the folder are none of these videos, by suffix, in a few words."""
    others = sorted(set(_files_below(folder)) - set(videos))
    counts = Counter(map(_kind, others))
    return "passed over: " + (", ".join(f"{n} {kind}" for kind, n in counts.most_common()) or "nothing")


def _kind(name: str) -> str:
    stem, suffix = posixpath.splitext(posixpath.basename(name))
    return "hidden" if stem[0] == "." else suffix.lower() or "without a suffix"


def _fold(name: str) -> str:
    """The name without case, spaces, _ and -."""
    return re.sub(r"[\s_-]", "", clean_name(name)).casefold()


_SPLITS = {"train": "train training", "val": "val valid validate validation dev", "test": "test testing"}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names.split()}


def split_of(folder: str) -> str:
    """train, val or test for a folder of such a name, as Training or test_set; empty for any other."""
    return _SPLIT_OF.get(_fold(folder).removesuffix("set"), "")


def arrange(root: Path, videos: Iterable[str], classes: list[str] | None = None) -> Rows:
    """Class and split of the videos by the folders that they lie in, ``<class>/`` or ``<split>/<class>/``.

    The split is train, val, test, or empty for the first layout. A video that lies higher up is left out.
    ``classes`` decides where the names of folders can be read in both ways.

    Raises:
        DatasetError: they can be read in both ways, or in none.
    """
    paths = [(video, folders) for video in videos if (folders := video.split("/")[:-1])]
    tops = sorted({folders[0] for _, folders in paths})
    named = classes and {*classes} <= {clean_name(top) for top in tops}
    splits = {top: split for top in tops if (split := split_of(top)) and not named}
    depth = 1 if splits else 0
    rows = [(video, clean_name(f[depth]), splits.get(f[0], "")) for video, f in paths if len(f) > depth]
    others = [top for top in tops if splits and top not in splits]
    flat = [top for top in splits if all(len(f) == 1 for _, f in paths if f[0] == top)]
    within = sorted({f[depth + 1] for _, f in paths if len(f) > depth + 1})
    names, comma = sorted({name for _, name, _ in rows}), ", ".join
    problems = {
        f"{comma(splits)} look like splits, {comma(others)} like classes; move one kind elsewhere": others,
        f"no class folders in {comma(flat)}; make them, or list the videos in a CSV (source = csv)": flat,
        f"of {comma(splits)} two are for the same split; put their class folders into one": (
            len({*splits.values()}) < len(splits)
        ),
        f"no folder train beside {comma(splits)}": splits and "train" not in splits.values(),
        f"only one class, {comma(names)}, with folders as {comma(within[:3])}; set root to the folder that "
        "holds the classes or splits": len(names) == 1 and len(within) > 1 and not classes,
    }
    for problem, holds in problems.items():
        if holds:
            raise DatasetError(f"{root}: {problem}. Or name the classes: classes = {','.join(tops)}")
    return rows


def warn_of_near_names(counts: dict[str, int]) -> None:
    """``counts`` gives the videos of each class; a class that was written in two ways would be two."""
    by_fold = defaultdict(list)
    for name in sorted(counts):
        by_fold[_fold(name)].append(f"{name!r} ({counts[name]} videos)")
    for names in by_fold.values():
        if len(names) > 1:
            what = "differ only by case, spaces, _ or -; if they are one class, give them one name"
            warnings.warn(f"{' and '.join(names)} {what}", stacklevel=3)
