"""Labels of your own videos, in a plain CSV that the widget writes at every click and you may edit by hand.

A line is ``video,label,split``: the video as a path relative to its folder; ``train`` or ``test`` (held out)
for one that has a label, ``skip`` for one to leave out. The order is that of the clicks. An empty split is
filled in by ``next_split``.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from videossl_core.data import files
from videossl_core.params import nearest

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


def read(path: Path, classes: list[str] | None = None, test_pct: float = 25) -> Rows:
    """The labels in a CSV; none where there is no file yet.

    Args:
        classes: the labels that may occur; None allows any.

    Raises:
        LabelError: a line is malformed, repeats a video, or has a label that is not among the classes.
    """
    text = files.read_text(path) if path.exists() else ""
    try:
        return _parse(text, classes, test_pct)
    except ValueError as error:
        raise LabelError(f"{path} {error}") from None


def _parse(text: str, classes: list[str] | None, test_pct: float) -> Rows:
    rows: Rows = {}
    lines: dict[str, int] = {}
    for number, cells in _cells(text):
        video, label, split = cells[0], cells[1].strip(), cells[2].strip()
        where = f"line {number}: "
        if not video or split not in ("", "train", "test", "skip") or not (label or split == "skip"):
            raise ValueError(f"{where}needs a video, a label, and train, test, skip or nothing as split")
        if video in rows:
            raise ValueError(f"{where}{video!r} stands in line {lines[video]} too; delete one of them")
        if label and classes is not None and label not in classes:
            raise ValueError(
                f"{where}{label!r} is not one of the classes {', '.join(classes)}"
                f"{nearest(label, classes) or '.'} Correct the line, or add it to the parameter classes"
            )
        rows[video] = label, split or next_split(rows, label, test_pct)
        lines[video] = number
    return rows


def _cells(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and three cells of each line below the heading; empty lines are passed over."""
    reader, heading = csv.reader(io.StringIO(text, newline=""), strict=True), None
    try:
        for cells in reader:
            if not any(cells):
                continue
            where = f"line {reader.line_num}: "
            if heading is None:
                heading = cells
                if heading != COLUMNS:
                    raise ValueError(f"{where}must be {','.join(COLUMNS)}")
            elif len(cells) != len(COLUMNS):
                raise ValueError(
                    f"{where}{len(cells)} cells instead of 3 (video,label,split); "
                    'a name that holds a comma is put between " and "'
                )
            else:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: not readable as CSV ({error})") from None
