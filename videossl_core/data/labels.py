"""Labels of your own videos, in a plain CSV that the widget writes at every click and you may edit by hand.

A line is ``video,label,split``: the video as a path relative to its folder; ``train`` or ``test`` (held out)
for one that has a label, ``skip`` for one to leave out. The order is that of the clicks. An empty split is
filled in by ``next_split``.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from videossl_core.data import files
from videossl_core.params import nearest
from videossl_core.paths import clean_name

COLUMNS = ["video", "label", "split"]

Rows = dict[str, tuple[str, str]]
"""video -> (label, split), in the order of the file."""


class LabelError(ValueError):
    """The CSV of labels cannot be used as it is; the message names the file, the line and the way out."""


def next_split(rows: Rows, label: str, test_pct: float) -> str:
    """The split of the next video of a class, so that ``test_pct`` % of each class are held out.

    It depends only on the earlier labels and changes none of them: a held-out video stays held out. The first
    of a class is for training; with 25 % the second, sixth, tenth, ... are held out.
    """
    count = Counter(split for name, split in rows.values() if name == label)
    n = count["train"] + count["test"] + 1
    return "test" if n > 1 and count["test"] + 0.5 <= n * test_pct / 100 else "train"


def read(
    path: Path, classes: list[str] | None = None, test_pct: float = 25, videos: Iterable[str] = ()
) -> Rows:
    """The labels in a CSV; none where there is no file yet. ``classes`` are those that may occur, None any;
    ``videos`` those on the disk, whose spelling of accents counts.

    Raises:
        LabelError: a line is malformed, repeats a video, or has a label that is not among the classes.
    """
    try:
        table = files.read_csv(path) if path.exists() else []
    except ValueError as error:
        raise LabelError(str(error)) from None
    spelled = files.spelled_as(videos)
    rows: Rows = {}
    line_of: dict[str, int] = {}
    (n, header), *lines = table or [(1, COLUMNS)]
    try:
        if [name.strip().lower() for name in header] != COLUMNS:
            raise LabelError(f"must be {','.join(COLUMNS)} (separated by , or ; or tabs)")
        for n, cells in lines:
            video, label, split = spelled(cells[0]), clean_name(cells[1]), cells[2].strip()
            if not video or split not in ("", "train", "test", "skip") or not (label or split == "skip"):
                raise LabelError("needs a video, a label, and train, test, skip or nothing as split")
            if video in rows:
                raise LabelError(f"{video!r} stands in line {line_of[video]} too; delete one of them")
            if label and classes is not None and label not in classes:
                hint = (
                    f"{nearest(label, classes) or '.'} Correct the line, or add it to the parameter classes"
                )
                raise LabelError(f"{label!r} is not one of the classes {', '.join(classes)}{hint}")
            rows[video] = label, split or next_split(rows, label, test_pct)
            line_of[video] = n
    except LabelError as error:
        raise LabelError(f"{path} line {n}: {error}") from None
    return rows
