"""The videos to label, and the widget that plays them and takes their labels."""

import string
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from videossl_core import prepare, probe, teacher
from videossl_core.data import codec, datasets, demo, folders
from videossl_core.data.labels import read
from videossl_core.devices import device
from videossl_core.linear import Scale
from videossl_core.params import ParameterError, Params
from videossl_lab import films
from videossl_lab.annotate.labels import Labels
from videossl_lab.annotate.suggest import Learner

KEYS = "123456789" + "".join(c for c in string.ascii_lowercase if c not in "su")
"""Keys of the classes in their order; s skips and u undoes."""


class Desk:
    """The videos of a folder, decoded and seen by the teacher, their labels, and what these teach. ``p`` has
    the classes filled in; ``rejected`` are the reasons by unusable video.

    Raises:
        ParameterError: no classes are named.
        datasets.DatasetError: no video can be used.
        labels.LabelError: a line of the CSV is wrong.
    """

    def __init__(self, p: Params):
        self.root = datasets.open_root(p)
        self.p = p.but(classes=_classes(p))
        videos = datasets.videos_below(self.root)
        self.labels = Labels(p.labels_file, self.p.classes, p.test_pct, videos)
        self.store, reasons = prepare.decode(p, p.data_dir, self.root, videos)
        self.rejected = reasons[reasons != ""]
        self.videos = list(reasons.index[reasons == ""])
        if not self.videos:
            raise datasets.DatasetError(f"{self.root}: no usable video here ({len(reasons)} unusable)")
        targets = teacher.build_targets(p, self.store, self.videos, device(p), features=True)
        fits = p.but(method="probe")
        x = probe.features_of(fits, targets, self.videos)
        scale = Scale.of(x, probe.sizes_of(fits, x.shape[1]))
        self.learner = Learner(self.videos, scale(x).astype(np.float32), self.p.classes)
        self.learner.learn(self.labels.rows)
        self.predictions = p.outputs / p.dataset / "predictions.csv"

    def suggest(self, after: str = "") -> str:
        """The next video, as if ``after`` had been skipped."""
        return self.learner.suggest(self.labels.rows | ({after: ("", "skip")} if after else {}))


def _classes(p: Params) -> list[str]:
    in_file = Counter(label for label, _ in read(p.labels_file).values() if label)
    folders.warn_of_near_names({name: in_file[name] for name in p.classes or in_file})
    classes = p.classes or datasets.alphabetical(in_file) or ([] if p.root else list(demo.NOUNS))
    if not classes:
        raise ParameterError("classes = None: name those you want to tell apart, as in 'walks,runs,jumps'")
    if len(set(classes)) < len(classes):
        raise ParameterError(f"classes = {','.join(classes)!r}: a class is named twice")
    return classes


class Annotator(anywidget.AnyWidget):
    """Plays a clip, says what it takes it for, and takes its label by click or key. The browser only draws
    ``state`` and sends presses. Each is in the CSV before the next clip is shown."""

    _esm = Path(__file__).with_name("annotate.js")
    _css = Path(__file__).with_name("annotate.css")
    classes = traitlets.List().tag(sync=True)  # pairs of name and key
    state = traitlets.Dict().tag(
        sync=True
    )  # video, why, guess, message, problem, counts, curve, left, sure, delta
    clip = traitlets.Bytes().tag(sync=True)

    def __init__(self, desk: Desk):
        keys = [*KEYS, *[""] * len(desk.p.classes)]
        super().__init__(classes=list(zip(desk.p.classes, keys, strict=False)))
        self.desk = desk
        thread = ThreadPoolExecutor(1)
        self._encoded = lru_cache(4)(lambda video: thread.submit(films.for_browser, desk.root / video))
        self._next = ""
        self.on_msg(lambda _, message, __: self.press(**message))
        self._show(desk.suggest(), f"{len(desk.labels.rows)} lines in {desk.labels.path}")

    def press(self, action: str, video: str = "", label: str = "") -> None:
        """Do what a button says: label, skip, undo. A press that was meant for another video is ignored."""
        if action != "undo" and video != self.state["video"]:
            return
        try:
            self._show(*self._change(action, video, label))
        except (ValueError, OSError) as error:  # a hand edit went wrong, the disk is full: nothing was saved
            self.state = self.state | {"problem": str(error)}

    def _change(self, action: str, video: str, label: str) -> tuple[str, str]:
        """Returns the video to show next, and what was done."""
        labels = self.desk.labels
        if action == "undo":
            undone = labels.undo()
            message = f"taken back: {undone}" if undone else "nothing to take back"
            return undone if undone in self.desk.videos else self.desk.suggest(), message
        labels.set(video, label if action == "label" else None)
        shown = {"train": label, "test": f"{label} (held out)", "skip": "skipped"}
        # the next clip was chosen, and encoded, while this one was watched
        ready = self._next and self._next not in labels.rows
        return self._next if ready else self.desk.suggest(), f"{shown[labels.rows[video][1]]}: {video}"

    def _show(self, video: str, message: str) -> None:
        learner, rows, problem = self.desk.learner, self.desk.labels.rows, ""
        learner.learn(rows)
        try:
            clip = self._encoded(video).result() if video else b""
        except (codec.VideoError, OSError) as error:
            clip, problem = b"", f"{video} cannot be played ({error}); skip it"
        state = {"video": video, "message": message, "problem": problem}
        parts = (learner.why(video), films.part_shown(self.desk.store, video)) if video else ()
        state |= {"why": "; ".join(filter(None, parts)), "guess": learner.guess(video)[:1]}
        state |= {"counts": self.desk.labels.counts(), "curve": learner.curve}
        delta = self.desk.p.delta
        state |= {"left": len(learner.left(rows)), "sure": learner.sure(rows, delta), "delta": delta}
        with self.hold_sync():
            self.clip, self.state = clip, state
        self._next = self.desk.suggest(after=video)
        if self._next:
            self._encoded(self._next)  # while this one is watched
