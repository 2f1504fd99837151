"""The videos to label, and the widget that plays them and takes their labels."""

import string
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import anywidget
import traitlets

from videossl_core import prepare, runs
from videossl_core.data import codec, datasets, demo
from videossl_core.data.labels import read
from videossl_core.params import ParameterError, Params
from videossl_lab import films
from videossl_lab.annotate.labels import Labels
from videossl_lab.annotate.suggest import Likeness, mean_softmax, suggest

KEYS = "123456789" + "".join(c for c in string.ascii_lowercase if c not in "su")
"""Keys of the classes in their order; s skips and u undoes."""


class Desk:
    """The videos of a folder, decoded, their labels, and the predictions of the last training, if any. ``p``
    has the classes filled in; ``rejected`` are the reasons by unusable video.

    Raises:
        ParameterError: no classes are named.
        datasets.DatasetError: no video can be used.
        labels.LabelError: a line of the CSV is wrong.
    """

    def __init__(self, p: Params):
        self.root = datasets.open_root(p)
        self.p = p.but(classes=_classes(p))
        self.labels = Labels(p.labels_file, self.p.classes, p.test_pct)
        store, reasons = prepare.decode(p, p.data_dir, self.root, datasets.videos_below(self.root))
        self.rejected = reasons[reasons != ""]
        self.videos = list(reasons.index[reasons == ""])
        if not self.videos:
            raise datasets.DatasetError(f"{self.root}: no usable video here ({len(reasons)} unusable)")
        self.likeness = Likeness.of(mean_softmax(p, store, self.videos))
        self.predictions = p.outputs / p.dataset / "predictions.csv"

    def suggest(self, after: str = "") -> tuple[str, str]:
        """The next video and why, as if ``after`` had a label already."""
        try:
            predictions = runs.read_table(self.predictions).set_index("video")[["predicted", "margin"]]
        except (OSError, ValueError, KeyError):  # not there yet, or not ours
            predictions = None
        rows = self.labels.rows | ({after: ("", "skip")} if after else {})
        return suggest(self.videos, self.likeness, rows, self.p.classes, predictions)


def _classes(p: Params) -> list[str]:
    in_file = {label for label, _ in read(p.labels_file).values() if label}
    classes = p.classes or datasets.alphabetical(in_file) or ([] if p.root else list(demo.NOUNS))
    if not classes:
        raise ParameterError("classes = None: name those you want to tell apart, as in 'walks,runs,jumps'")
    if len(set(classes)) < len(classes):
        raise ParameterError(f"classes = {','.join(classes)!r}: a class is named twice")
    return classes


class Annotator(anywidget.AnyWidget):
    """Plays a clip and takes its label by click or key; the browser only draws ``state`` and sends presses.
    Each is in the CSV before the next clip is shown."""

    _esm = Path(__file__).with_name("annotate.js")
    _css = Path(__file__).with_name("annotate.css")
    classes = traitlets.List().tag(sync=True)  # pairs of name and key
    state = traitlets.Dict().tag(sync=True)  # video, why, message, problem, counts, left
    clip = traitlets.Bytes().tag(sync=True)

    def __init__(self, desk: Desk):
        keys = [*KEYS, *[""] * len(desk.p.classes)]
        super().__init__(classes=list(zip(desk.p.classes, keys, strict=False)))
        self.desk = desk
        thread = ThreadPoolExecutor(1)
        self._encoded = lru_cache(4)(lambda video: thread.submit(films.for_browser, desk.root / video))
        self._next = ("", "")
        self.on_msg(lambda _, message, __: self.press(**message))
        self._show(*desk.suggest(), message=f"{len(desk.labels.rows)} lines in {desk.labels.path}")

    def press(self, action: str, video: str = "", label: str = "") -> None:
        """Do what a button says: label, skip, undo. A press that was meant for another video is ignored."""
        if action != "undo" and video != self.state["video"]:
            return
        try:
            self._show(*self._change(action, video, label))
        except (ValueError, OSError) as error:  # a hand edit went wrong, the disk is full: nothing was saved
            self.state = self.state | {"problem": str(error)}

    def _change(self, action: str, video: str, label: str) -> tuple[str, str, str]:
        """Returns the video to show next, why this one, and what was done."""
        labels = self.desk.labels
        if action == "undo":
            undone = labels.undo()
            message = f"taken back: {undone}" if undone else "nothing to take back"
            if undone in self.desk.videos:
                return undone, "its label was taken back", message
            return *self.desk.suggest(), message
        labels.set(video, label if action == "label" else None)
        shown = {"train": label, "test": f"{label} (held out)", "skip": "skipped"}
        message = f"{shown[labels.rows[video][1]]}: {video}"
        ready = self._next[0] and self._next[0] not in labels.rows
        return *(self._next if ready else self.desk.suggest()), message

    def _show(self, video: str, why: str, message: str) -> None:
        problem = ""
        try:
            clip = self._encoded(video).result() if video else b""
        except (codec.VideoError, OSError) as error:
            clip, problem = b"", f"{video} cannot be played ({error}); skip it"
        left = sum(v not in self.desk.labels.rows for v in self.desk.videos)
        state = {"video": video, "why": why, "message": message, "problem": problem, "left": left}
        with self.hold_sync():
            self.clip, self.state = clip, state | {"counts": self.desk.labels.counts()}
        self._next = self.desk.suggest(after=video)
        if self._next[0]:
            self._encoded(self._next[0])  # while this one is watched
