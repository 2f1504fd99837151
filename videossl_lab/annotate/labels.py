"""The CSV of labels as the widget edits it: every click is on disk at once, and edits by hand count too."""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from videossl_core.data import files
from videossl_core.data.labels import COLUMNS, LabelError, Rows, next_split, read


class Labels:
    """Labels that can be set, skipped and taken back. Each change is on disk before the call returns.

    If somebody else changed the file since it was last read, their content counts, and earlier clicks can no
    longer be undone one by one.
    """

    def __init__(self, path: Path, classes: list[str], test_pct: float = 25):
        self.path, self.classes, self.test_pct = path, classes, test_pct
        self._text: bytes | None = None
        self._history: list[tuple[str, Rows]] = []
        self.reread()

    def reread(self) -> Rows:
        """The labels as they are on disk now; raises LabelError as ``read`` does."""
        text = self.path.read_bytes() if self.path.exists() else None
        if text != self._text or text is None:
            self.rows = read(self.path, self.classes, self.test_pct)
            self._text, self._history = text, []
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
        self._history.append((video, before))

    def undo(self) -> str | None:
        """Take the last click back; returns its video.

        After a restart or an edit by hand, the last line of the file goes; None if there is no line.
        """
        self.reread()
        if self._history:
            video, before = self._history[-1]
            self._write(before)
            self._history.pop()
            return video
        if not self.rows:
            return None
        *kept, (video, _) = self.rows.items()
        self._write(dict(kept))
        return video

    def _write(self, rows: Rows) -> None:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([COLUMNS, *([v, *row] for v, row in rows.items())])
        files.write_text(self.path, out.getvalue())
        self._text, self.rows = out.getvalue().encode(), rows

    def counts(self) -> dict[str, tuple[int, int]]:
        """By class, how many training and how many held-out videos have its label."""
        count = Counter(self.rows.values())
        return {name: (count[name, "train"], count[name, "test"]) for name in self.classes}

    def lacking(self, videos: Iterable[str]) -> str:
        """What is missing before training on these videos makes sense, in one sentence; empty if nothing."""
        counts = self.counts()
        ready = sum(train > 0 for train, _ in counts.values())
        if ready < 2:
            return f"Label videos of at least two classes first: {ready} of {len(counts)} have one."
        if not any(test for _, test in counts.values()):
            share = f"{self.test_pct:g} % of each class will be"
            return f"No labelled video is held out yet to measure the gain on: {share}. Label more."
        if all(video in self.rows for video in videos):
            return (
                "Every video has a label or was skipped, but VideoSSL needs some without: add some, or undo."
            )
        return ""
