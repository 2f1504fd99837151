"""Which training videos have a label: the authors' published lists, or a seeded draw."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from videossl_core.data import files
from videossl_core.data.datasets import Index

if TYPE_CHECKING:
    from videossl_core.params import Params


class SplitError(ValueError):
    """A label list does not fit the data set; the message names the file and line."""


def _uniform(p: "Params", train: pd.DataFrame, index: Index) -> np.ndarray:
    """As the authors drew UCF101 and HMDB51: int(p % of all training videos), whatever their class."""
    rng = np.random.default_rng([p.seed, 1])
    return rng.permutation(len(train))[: max(1, int(len(train) * p.label_pct / 100 + 1e-9))]


def _stratified(p: "Params", train: pd.DataFrame, index: Index) -> np.ndarray:
    """As the authors drew Kinetics: int(p % of a class's training videos), and at least one of each."""
    rng = np.random.default_rng([p.seed, 2])
    chosen = []
    for label in range(len(index.classes)):
        of_class = np.flatnonzero(train.label == label)
        n = max(1, int(len(of_class) * p.label_pct / 100 + 1e-9))
        chosen.append(rng.permutation(of_class)[:n])
    return np.concatenate(chosen)


def _listed(p: "Params", train: pd.DataFrame, index: Index) -> np.ndarray:
    path = p.label_list
    if path.is_dir():
        name = f"ssl_sub{{}}c_{p.label_pct:g}p_labeled0.lst"
        part, path = (path / name.format(len(c)) for c in (index.classes, index.all_classes))
        if part.exists() and _classes_in(part) <= set(index.classes):  # as many classes may be other ones
            path = part
        if not path.exists():
            found = ", ".join(sorted(f.name for f in path.parent.glob("*_labeled0.lst"))) or "no such list"
            raise SplitError(
                f"{path}: no such file; the folder has {found}. Or draw: label_draw = stratified"
            )
    # where the index is what is on the disk, a copy that lacks videos shows only here
    return read_label_list(path, train, index, p.max_reject_pct if p.lists is None else 0)


def _classes_in(path: Path) -> set[str]:
    lines = files.read_text(path).splitlines()
    return {PurePosixPath(line.rpartition("*")[0]).parent.name for line in lines if line.strip()}


# One row per way to choose: (parameters, training videos, index) -> positions of the labelled ones.
DRAWS: dict[str, Callable[["Params", pd.DataFrame, Index], np.ndarray]] = {
    "list": _listed,
    "uniform": _uniform,
    "stratified": _stratified,
}


def _key(video: str) -> str:
    """Class folder and file name without its suffix: lists were made from copies in other folders."""
    path = PurePosixPath(video)
    return f"{path.parent.name}/{path.stem}"


def read_label_list(path: Path, train: pd.DataFrame, index: Index, missing_pct: float = 0) -> np.ndarray:
    """Positions in ``train`` of the videos of a list in the authors' format, ``path*label`` a line.

    Ids may count from 0 (HMDB51, Kinetics) or from 1 (UCF101), over all classes of the data set or the
    chosen ones; lines of classes that are left out of the index are passed over.

    Args:
        missing_pct: so many lines, in percent, may name a video that is not a training video; a warning
            counts them.

    Raises:
        SplitError: a line is malformed, repeats another, has a label that is not its class's, or too many
            name a video that is not a training video.
    """
    position = {_key(video): i for i, video in enumerate(train.video)}
    if len(position) < len(train):
        raise SplitError(
            f"{path}: two training videos have the same class folder and name; a list cannot tell them apart"
        )
    left_out = set(index.all_classes) - set(index.classes)
    entries: list[tuple[int, int, int, str]] = []  # line, position in train, id, class name
    seen: dict[int, int] = {}
    missing: list[str] = []
    for n, line in enumerate(files.read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        video, star, label = line.strip().rpartition("*")
        if not star or not video or not label.isascii() or not label.isdecimal():
            raise SplitError(f"{path} line {n}: {line.strip()!r} is not 'path*label'")
        if int(label) > len(index.all_classes):
            raise SplitError(
                f"{path} line {n}: label {label} is outside the {len(index.all_classes)} classes"
            )
        if PurePosixPath(video).parent.name in left_out:
            continue
        at = position.get(_key(video))
        if at is None:
            missing.append(f"{path} line {n}: {video!r} is not a training video of this data set and split")
            continue
        if at in seen:
            raise SplitError(f"{path} line {n}: {video!r} stands in line {seen[at]} too")
        seen[at] = n
        entries.append((n, at, int(label), train.class_name.iloc[at]))
    if missing:
        count = f"{missing[0]} ({len(missing)} of {len(missing) + len(entries)} such lines)"
        if 100 * len(missing) > missing_pct * (len(missing) + len(entries)):
            way = "max_reject_pct is how many may be missing, in %; " if missing_pct else ""
            raise SplitError(f"{count}; {way}label_draw = stratified draws among the videos that are here")
        warnings.warn(f"{count}: they are left out", stacklevel=2)
    if not entries:
        raise SplitError(f"{path}: no labelled video of the classes {', '.join(index.classes[:5])}")
    # ids count from 0 or 1, over all classes of the data set or over the chosen ones (Kinetics-100)
    schemes = [(names, base) for names in (index.all_classes, index.classes) for base in (0, 1)]
    ids = [{name: i + base for i, name in enumerate(names)} for names, base in schemes]
    fits = max(ids, key=lambda of: sum(label == of[name] for _, _, label, name in entries))
    for n, _, label, name in entries:
        if label != fits[name]:
            raise SplitError(
                f"{path} line {n}: label {label} is not that of {name}, which is {fits[name]} elsewhere"
            )
    return np.array([at for _, at, _, _ in entries])


def make_split(p: "Params", index: Index) -> pd.DataFrame:
    """The index with a column ``role``: labelled, unlabelled or test."""
    table = index.table.copy()
    train = table[(table.split == "train") & (table.label >= 0)]  # who has no label cannot show it
    chosen = DRAWS[p.label_draw](p, train, index)
    table["role"] = np.where(table.split == "train", "unlabelled", "test")
    table.loc[train.index[chosen], "role"] = "labelled"
    return table.drop(columns="split")


def difference(was: pd.DataFrame, now: pd.DataFrame) -> str:
    """What differs between two splits, in words; empty if nothing does."""
    both = was.merge(now, on="video", how="outer", suffixes=("_was", "_now"))
    said = []
    for column in ("role", "class_name", "label"):
        old, new = both[f"{column}_was"], both[f"{column}_now"]
        changed = both[(old != new) & old.notna() & new.notna()]
        if len(changed):
            first = changed.iloc[0]
            what = f"{column} was {first[f'{column}_was']} and is now {first[f'{column}_now']}"
            said.append(f"{len(changed)} videos changed, such as {first.video}, whose {what}")
    for which, missing in (("gone", "role_now"), ("new", "role_was")):
        if len(found := both.video[both[missing].isna()]):
            said.append(f"{len(found)} videos are {which}, such as {found.iloc[0]}")
    return "; ".join(said)


def warn_without_label(split: pd.DataFrame, classes: list[str]) -> None:
    """A uniform draw can leave a class without any label (the authors' 5 % list of UCF101 does)."""
    having = set(split.class_name[split.role == "labelled"])
    if without := [c for c in classes if c not in having]:
        warnings.warn(
            f"no labelled video of {', '.join(without)}: the network cannot learn to name it", stacklevel=3
        )


def to_csv(split: pd.DataFrame) -> str:
    return split.to_csv(index=False, lineterminator="\n")


def from_csv(text: str) -> pd.DataFrame:
    return pd.read_csv(
        io.StringIO(text), dtype={"video": str, "class_name": str, "role": str}, keep_default_na=False
    )


def split_hash(split: pd.DataFrame) -> str:
    """sha256 of the split as CSV: which videos train with which labels, without, and test."""
    return files.sha256(to_csv(split).encode())
