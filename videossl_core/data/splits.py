"""Which training videos have a label: the authors' published lists, or a seeded draw."""

import io
import posixpath
import re
import warnings
from enum import IntEnum
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from videossl_core.data import files
from videossl_core.data.datasets import Index
from videossl_core.params import Params
from videossl_core.paths import clean_name


class Stream(IntEnum):
    """A generator is seeded with ``[seed, stream, ...]``: every published draw depends on these numbers."""

    UNIFORM = 1  # which training videos have a label, whatever their class
    STRATIFIED = 2  # which videos of each class have one
    ORDER = 3  # the order of the videos in an epoch
    CLIPS = 4  # everything random in a step's batch
    DROPOUT = 5  # what the network drops in a step
    VALIDATION = 6  # which labelled videos are held out to choose by


class SplitError(ValueError):
    """A label list does not fit the data set; the message names the file and line."""


def _share(count: int, pct: float) -> int:
    return max(1, int(count * pct / 100 + 1e-9))


def _uniform(p: Params, train: pd.DataFrame, index: Index) -> np.ndarray:
    """As the authors drew UCF101 and HMDB51: int(p % of all training videos), whatever their class."""
    rng = np.random.default_rng([p.seed, Stream.UNIFORM])
    return rng.permutation(len(train))[: _share(len(train), p.label_pct)]


def _stratified(p: Params, train: pd.DataFrame, index: Index) -> np.ndarray:
    """As the authors drew Kinetics: int(p % of a class's training videos), and at least one of each."""
    rng = np.random.default_rng([p.seed, Stream.STRATIFIED])
    groups = [np.flatnonzero(train.label == label) for label in range(len(index.classes))]
    return np.concatenate([rng.permutation(group)[: _share(len(group), p.label_pct)] for group in groups])


def _listed(p: Params, train: pd.DataFrame, index: Index) -> np.ndarray:
    path = p.label_list
    assert path is not None, "Params requires it"
    if path.is_dir():
        name = f"ssl_sub{{}}c_{p.label_pct:g}p_labeled0.lst"
        part, path = (path / name.format(len(c)) for c in (index.classes, index.all_classes))
        if part.exists():
            names = {PurePosixPath(line).parent.name for _, line in files.read_lines(part)}
            path = part if names <= set(index.classes) else path  # not as many other classes
        if not path.exists():
            existing = ", ".join(sorted(f.name for f in path.parent.glob("*_labeled0.lst"))) or "no such list"
            raise SplitError(f"{path}: no such file; there is {existing}. Or draw: label_draw = stratified")
    # without official lists the index holds what is on the disk, so the list may name videos that are not
    return read_label_list(path, train, index, p.max_reject_pct if p.lists is None else 0)


# One row per way to choose: (parameters, training videos, index) -> positions of the labelled ones.
DRAWS = {"list": _listed, "uniform": _uniform, "stratified": _stratified}


def _key(video: str) -> str:
    """Class folder and file name without its suffix: lists were made from copies in other folders."""
    folder, name = posixpath.split(posixpath.normpath(clean_name(video)))
    return f"{posixpath.basename(folder)}/{posixpath.splitext(name)[0]}"


def read_label_list(path: Path, train: pd.DataFrame, index: Index, missing_pct: float = 0) -> np.ndarray:
    """Positions in ``train`` of the videos of a list in the authors' format, ``path*label`` a line.

    Ids may count from 0 (HMDB51, Kinetics) or from 1 (UCF101), over all classes of the data set or the
    chosen ones; lines of classes that are left out of the index are skipped. Up to ``missing_pct`` % of the
    lines may name a video that is not a training video; a warning counts them.

    Raises:
        SplitError: a line is malformed, repeats another, or has another label than its class; or too many
            name no training video.
    """
    entries, missing = _read_entries(path, train, index)
    if missing:
        total = len(entries) + len(missing)
        count = f"{missing[0]} ({len(missing)} of {total} such lines)"
        if 100 * len(missing) > missing_pct * total:
            limit = "max_reject_pct is how many may be missing, in %; " if missing_pct else ""
            raise SplitError(f"{count}; {limit}label_draw = stratified draws among the existing videos")
        warnings.warn(f"{count}: they are left out", stacklevel=2)
    if not entries:
        raise SplitError(f"{path}: no labelled video of the classes {', '.join(index.classes[:5])}")
    names = list(train.class_name)
    schemes = [(classes, base) for classes in (index.all_classes, index.classes) for base in (0, 1)]
    candidates = [{name: id for id, name in enumerate(classes, base)} for classes, base in schemes]
    ids = max(candidates, key=lambda ids: sum(label == ids[names[i]] for i, (_, label) in entries.items()))
    for i, (n, label) in entries.items():
        if label != (expected := ids[names[i]]):
            raise SplitError(f"{path} line {n}: label {label}, but {names[i]} is {expected} elsewhere")
    return np.array(list(entries))


def _read_entries(path: Path, train: pd.DataFrame, index: Index) -> tuple[dict[int, tuple], list[str]]:
    """Line and label by position in ``train``, and a message for each line that names no training video."""
    positions = {_key(video): i for i, video in enumerate(train.video)}
    if len(positions) < len(train):
        raise SplitError(f"{path} cannot tell training videos apart that share their class folder and name")
    left_out = set(index.all_classes) - set(index.classes)
    entries: dict[int, tuple[int, int]] = {}
    missing: list[str] = []
    for n, line in files.read_lines(path):
        video, _, label = line.rpartition("*")
        if not video or not label.isascii() or not label.isdecimal():
            raise SplitError(f"{path} line {n}: {line!r} is not 'path*label'")
        if int(label) > len(index.all_classes):
            raise SplitError(f"{path} line {n}: label {label} is outside {len(index.all_classes)} classes")
        if left_out and PurePosixPath(video).parent.name in left_out:
            continue
        if (i := positions.get(_key(video))) is None:
            missing.append(f"{path} line {n}: {video!r} is not a training video of this data set and split")
        elif i in entries:
            raise SplitError(f"{path} line {n}: {video!r} stands in line {entries[i][0]} too")
        else:
            entries[i] = n, int(label)
    return entries, missing


def make_split(p: Params, index: Index) -> pd.DataFrame:
    """The index with a column ``role`` (labelled, val, unlabelled or test) instead of ``split``."""
    table = _tuning(p, index.table) if p.tune else index.table.copy()
    train = table[(table.split == "train") & (table.label >= 0)]  # others have no label to show
    chosen = DRAWS[p.label_draw](p, train, index)
    table["role"] = np.where(table.split == "train", "unlabelled", "test")
    table.loc[train.index[chosen], "role"] = "labelled"
    if p.val_pct:  # without it there is nothing to look for among 300,000 videos
        table.loc[_validation(p, train.iloc[chosen]), "role"] = "val"
    return table.drop(columns="split")


def _tuning(p: Params, table: pd.DataFrame) -> pd.DataFrame:
    """Only the training videos, the last ``test_pct`` % of each class's sources as test videos: the last four
    groups of UCF101's classes. The videos of a source are alike, so none may be on both sides."""
    table = table[table.split == "train"].reset_index(drop=True)
    sources = table.video.map(source_of)
    for _, of_class in sources[table.label >= 0].groupby(table.label):
        names = sorted(set(of_class))
        kept = names[: max(1, len(names) - _share(len(names), p.test_pct))]
        table.loc[of_class.index[~of_class.isin(kept)], "split"] = "test"
    return table


def _validation(p: Params, labelled: pd.DataFrame) -> list[int]:
    """Rows of the labelled videos that are held out: about ``val_pct`` % of each class, whole sources, one of
    which stays. The videos of a source are alike: one left for training would give the others away."""
    held_out: list[int] = []
    rng = np.random.default_rng([p.seed, Stream.VALIDATION])
    for _, of_class in labelled.groupby("label"):
        sources = [list(rows) for rows in of_class.groupby(of_class.video.map(source_of)).groups.values()]
        left = round(len(of_class) * p.val_pct / 100)
        for i in rng.permutation(len(sources))[1:]:
            if len(sources[i]) <= left:
                held_out += sources[i]
                left -= len(sources[i])
    return held_out


def source_of(video: str) -> str:
    """What a video was cut from: of UCF101's v_Class_gNN_cNN its class and group; otherwise itself."""
    match = re.fullmatch(r"(v_.+_g\d+)_c\d+", PurePosixPath(video).stem)
    return match[1] if match else video


def difference(was: pd.DataFrame, now: pd.DataFrame) -> str:
    """What differs between two splits, in words; empty if nothing does."""
    was, now = was.set_index("video"), now.set_index("video")
    common = was.index.intersection(now.index)
    parts = []
    for column in ("role", "class_name", "label"):
        old, new = was.loc[common, column], now.loc[common, column]
        if len(changed := common[old != new]):
            example = f"{changed[0]}, whose {column} was {old[changed[0]]} and is now {new[changed[0]]}"
            parts.append(f"{len(changed)} videos changed, such as {example}")
    groups = {"gone": was.index.difference(now.index), "new": now.index.difference(was.index)}
    parts += [f"{len(v)} videos are {word}, such as {v[0]}" for word, v in groups.items() if len(v)]
    return "; ".join(parts)


def warn_without_label(split: pd.DataFrame, classes: list[str]) -> None:
    """A uniform draw can leave a class without any label (the authors' 5 % list of UCF101 does)."""
    labelled = set(split.class_name[split.role == "labelled"])
    if missing := ", ".join(c for c in classes if c not in labelled):
        warnings.warn(f"no labelled video of {missing}: nothing can learn to name it", stacklevel=3)


def to_csv(split: pd.DataFrame) -> str:
    return split.to_csv(index=False, lineterminator="\n")


def from_csv(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False).astype({"label": int})


def split_hash(split: pd.DataFrame) -> str:
    """sha256 of the split as CSV: which videos train with which labels, without, and test."""
    return files.sha256(to_csv(split).encode())
