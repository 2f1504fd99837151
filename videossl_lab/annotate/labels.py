"""The CSV of labels as the widget edits it: every click is on disk at once, and edits by hand count too."""

import csv
import io
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from videossl_core.data import files
from videossl_core.data.labels import COLUMNS, LabelError, Rows, next_split, read


class Labels:
    """Labels that can be set, skipped and taken back. Each change is on disk before the call returns; if
    somebody else changed the file, that counts, and earlier clicks can no longer be undone one by one."""

    def __init__(self, path: Path, classes: list[str], test_pct: float = 25, videos: Collection[str] = ()):
        self.path, self.classes, self.test_pct, self.videos = path, classes, test_pct, videos
        self._text: bytes | None = None
        self._before: list[Rows] = []  # what each click since then changed
        self.reread()

    def reread(self) -> Rows:
        """The labels as they are on disk now; raises LabelError as ``read`` does."""
        text = self.path.read_bytes() if self.path.exists() else None
        if text != self._text or text is None:
            self.rows = read(self.path, self.classes, self.test_pct, self.videos)
            self._text, self._before = text, []
        return self.rows

    def set(self, video: str, label: str | None) -> None:
        """Give a video its label, or another one; it becomes the last line. None: leave it out of everything.

        Raises:
            LabelError: no class has this name, or a line of the file is wrong.
        """
        if label not in (None, *self.classes):
            raise LabelError(f"{label!r} is not one of the classes {', '.join(self.classes)}")
        before = self.reread()
        rows = {v: row for v, row in before.items() if v != video}
        rows[video] = (label, next_split(rows, label, self.test_pct)) if label else ("", "skip")
        self._write(rows)
        self._before.append(before)

    def skip(self, video: str) -> None:
        self.set(video, None)

    def undo(self) -> str | None:
        """Take the last click back, or after a restart or an edit by hand the last line of the file; returns
        the video of that line, None if there is none."""
        if not self.reread():
            return None
        *kept, (video, _) = self.rows.items()
        self._write(self._before[-1] if self._before else dict(kept))
        self._before = self._before[:-1]
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

    def lacking(self) -> str:
        """What is missing before a fit makes sense, in one sentence; empty if nothing."""
        counts = self.counts()
        ready = sum(train > 0 for train, _ in counts.values())
        if ready < 2:
            return f"Label videos of at least two classes first: {ready} of {len(counts)} have one."
        if not any(test for _, test in counts.values()):
            return (
                f"No labelled video is held out yet; label more: {self.test_pct:g} % of each class will be."
            )
        return ""
