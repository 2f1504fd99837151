"""The labels of one's own videos: a plain CSV that is written at every click and may be edited by hand.

A line is ``video,label,split``: the video as a path relative to its folder; ``train`` or ``test`` (held out)
for one that has a label, ``skip`` for one to leave out. The order is that of the clicks. A split that is left
empty is filled in by ``next_split``.
"""

import csv
import difflib
import io
from collections import Counter
from pathlib import Path

from videossl_core.data import files

COLUMNS = ["video", "label", "split"]

Rows = dict[str, tuple[str, str]]
"""video -> (label, split), in the order of the file."""


class LabelError(ValueError):
    """The CSV of labels cannot be used as it is; the message names the file, the line and the way out."""


def next_split(rows: Rows, label: str, test_pct: float) -> str:
    """Where the next video of a class belongs: ``test_pct`` % of each class are held out.

    It depends only on what is labelled before and never changes that: a held-out video stays held out. The
    first of a class is for training; with 25 % the second, sixth, tenth, ... are held out.
    """
    count = Counter(split for name, split in rows.values() if name == label)
    n = count["train"] + count["test"] + 1
    return "test" if n > 1 and count["test"] + 0.5 <= n * test_pct / 100 else "train"


def read(path: Path, classes: list[str] | None = None, test_pct: float = 25) -> Rows:
    """The labels in a CSV; none where there is no file yet.

    Args:
        classes: the labels that may occur; None allows any.

    Raises:
        LabelError: a line is malformed, names a video again, or has a label that is not among the classes.
    """
    text = files.read_text(path) if path.exists() else ""
    try:
        return _parse(text, classes, test_pct)
    except ValueError as error:
        raise LabelError(f"{path} {error}") from None


def _parse(text: str, classes: list[str] | None, test_pct: float) -> Rows:
    rows: Rows = {}
    lines: dict[str, int] = {}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    for cells in _cells(reader):
        video, label, split = cells[0], cells[1].strip(), cells[2].strip()
        where = f"line {reader.line_num}: "
        if not video or split not in ("", "train", "test", "skip") or not (label or split == "skip"):
            raise ValueError(f"{where}needs a video, a label, and train, test, skip or nothing as split")
        if video in rows:
            raise ValueError(f"{where}{video!r} stands in line {lines[video]} too; delete one of them")
        if label and classes is not None and label not in classes:
            near = difflib.get_close_matches(label, classes, n=1, cutoff=0.5)
            meant = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(
                f"{where}{label!r} is not one of the classes {', '.join(classes)}{meant} "
                "Correct the line, or add it to the parameter classes"
            )
        rows[video] = label, split or next_split(rows, label, test_pct)
        lines[video] = reader.line_num
    return rows


def _cells(reader):
    """The lines below the heading, three cells each; empty lines are passed over."""
    heading = None
    try:
        for cells in reader:
            if not any(cells):
                continue
            if heading is None:
                heading = cells
                if heading != COLUMNS:
                    raise ValueError(f"line {reader.line_num}: must be {','.join(COLUMNS)}")
            elif len(cells) != len(COLUMNS):
                raise ValueError(
                    f"line {reader.line_num}: {len(cells)} cells instead of 3 (video,label,split); "
                    'a name that holds a comma is put between " and "'
                )
            else:
                yield cells
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: not readable as CSV ({error})") from None


class Labels:
    """The CSV as the annotation widget sees it. Each change is on disk before the call returns.

    When the file was changed by others since it was last read, their content counts, and what could be
    undone before is forgotten.
    """

    def __init__(self, path: Path, classes: list[str], test_pct: float = 25):
        self.path, self.classes, self.test_pct = path, classes, test_pct
        self._text: str | None = None
        self._before: list[tuple[str, Rows]] = []
        self.reread()

    def reread(self) -> Rows:
        """The labels as they are on disk now; raises LabelError as ``read`` does."""
        text = self.path.read_bytes() if self.path.exists() else None
        if text != self._text or text is None:
            self.rows = read(self.path, self.classes, self.test_pct)
            self._text, self._before = text, []
        return self.rows

    def set(self, video: str, label: str) -> None:
        """Give a video its label, or another one; it becomes the last line."""
        if label not in self.classes:
            raise LabelError(f"{label!r} is not one of the classes {', '.join(self.classes)}")
        self._change(video, label)

    def skip(self, video: str) -> None:
        """Leave a video out of everything."""
        self._change(video, "")

    def _change(self, video: str, label: str) -> None:
        before = self.reread()
        rows = {v: row for v, row in before.items() if v != video}
        rows[video] = (label, next_split(rows, label, self.test_pct)) if label else ("", "skip")
        self._write(rows)
        self._before.append((video, before))

    def undo(self) -> str | None:
        """Take the last click back and say which video it was about.

        After a restart or an edit by hand this is the last line of the file; None when there is no line.
        """
        self.reread()
        if self._before:
            video, before = self._before[-1]
            self._write(before)
            self._before.pop()
            return video
        if not self.rows:
            return None
        *kept, last = self.rows.items()
        self._write(dict(kept))
        return last[0]

    def _write(self, rows: Rows) -> None:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([COLUMNS, *([v, *row] for v, row in rows.items())])
        files.write_text(self.path, out.getvalue())
        self._text, self.rows = out.getvalue().encode(), rows

    def counts(self) -> dict[str, tuple[int, int]]:
        """Per class, how many training and how many held-out videos have its label."""
        count = Counter(self.rows.values())
        return {name: (count[name, "train"], count[name, "test"]) for name in self.classes}

    def lacking(self) -> str:
        """What is missing before a training makes sense, in one sentence; empty if nothing is."""
        counts = self.counts()
        ready = [name for name, (train, _) in counts.items() if train]
        if len(ready) < 2:
            return f"Label videos of at least two classes first: {len(ready)} of {len(counts)} have one."
        if not any(test for _, test in counts.values()):
            most = max(train for train, _ in counts.values())
            return (
                f"No labelled video is held out yet to measure the gain on: {self.test_pct:g} % of each "
                f"class will be, and the class with most labels has {most}. Label more."
            )
        return ""
