"""Labelling one's own videos in a notebook: which video next, the widget, and what the labels are worth."""

import string
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import anywidget
import numpy as np
import pandas as pd
import traitlets

from videossl_core import evaluation, prepare, runs, teacher, training
from videossl_core.data import codec, datasets, demo, labels, splits
from videossl_core.data.pool import quiet
from videossl_core.params import ParameterError, Params

KEYS = "123456789" + "".join(c for c in string.ascii_lowercase if c not in "su")
"""Keys of the classes in their order; s skips and u undoes."""

BALANCE = 2
"""How much a video that looks like a class with no label counts more than one like the class with most."""

COMPARED = ("supervised", "videossl")


@dataclass(frozen=True)
class Likeness:
    """How alike videos are: 1 for the same distribution over the teacher's classes, 0 for disjoint ones.

    ``roots`` (videos, M) are the square roots of the distributions, so that likeness is their product;
    ``crowd`` (videos,) is the likeness to the five nearest, summed up.
    """

    roots: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, said: np.ndarray) -> "Likeness":
        """``said``: (videos, M), the teacher's mean softmax of each."""
        roots = np.sqrt(said / said.sum(1, keepdims=True))
        parts = np.array_split(roots, 1 + len(roots) // 1000)
        near = [np.sort(part @ roots.T, axis=1)[:, -6:-1].sum(1) for part in parts]  # the last is itself
        return cls(roots, np.concatenate(near))

    def between(self, some: np.ndarray, others: list[int]) -> np.ndarray:
        return self.roots[some] @ self.roots[others].T


def suggest(
    videos: list[str],
    likeness: Likeness,
    rows: labels.Rows,
    classes: list[str],
    said: pd.DataFrame | None = None,
) -> tuple[str, str]:
    """The video whose label is worth most, and why in a few words; ("", "") when none is left.

    After a training it is one whose two likeliest classes are close. Before, it is one that is unlike all
    seen so far, and yet like some others: what is like nothing teaches nothing. Either counts the more, the
    fewer labels there are of the class it is taken for: what the training said, or the most similar label.

    Args:
        likeness: of these videos, in this order.
        rows: what is labelled or skipped already.
        said: by video, the columns predicted and margin of an earlier training; new videos are uncertain.
    """
    left = np.array([i for i, video in enumerate(videos) if video not in rows], dtype=int)
    if not len(left):
        return "", ""
    count = {name: sum(label == name for label, _ in rows.values()) for name in classes}
    seen = [i for i, video in enumerate(videos) if video in rows]
    if said is not None:
        known = said.reindex([videos[i] for i in left])
        unsure, taken_for = 1 - known.margin.fillna(0).to_numpy(), known.predicted.fillna("").to_numpy()
        whys = [f"taken for {c}, margin {1 - u:.2f}" if c else "new since the last training"
                for c, u in zip(taken_for, unsure, strict=True)]  # fmt: skip
    else:
        if not seen:
            return videos[left[likeness.crowd[left].argmax()]], "a typical video to begin with"
        alike = likeness.between(left, seen)
        unsure = (1 - alike.max(1)) * likeness.crowd[left]
        taken_for = np.array([rows[videos[seen[i]]][0] for i in alike.argmax(1)])
        whys = ["unlike those seen so far"] * len(left)
    most = max(1, *count.values())
    need = np.array([1 - count.get(name, most) / most for name in taken_for])
    best = int((unsure * (1 + BALANCE * need)).argmax())
    return videos[left[best]], whys[best]


class Desk:
    """The videos of a folder, decoded, with their labels, and what a network said of them if one was trained.

    ``p`` are the parameters with the classes filled in, ``rejected`` the reasons by video.

    Raises:
        ParameterError: no classes are named.
        datasets.DatasetError: no video can be used.
        labels.LabelError: a line of the CSV is wrong.
    """

    def __init__(self, p: Params, progress=quiet):
        self.root = datasets.open_root(p, progress)
        file = p.labels_file
        self.p = p.model_copy(update={"classes": _classes(p, file)})
        self.labels = labels.Labels(file, self.p.classes, p.test_pct)
        store, reasons = prepare.decode(p, p.data_dir, self.root, datasets.videos_below(self.root), progress)
        self.rejected = reasons[reasons != ""]
        self.videos = list(reasons.index[reasons == ""])
        if not self.videos:
            raise datasets.DatasetError(f"{self.root}: no video here that can be used ({len(reasons)} found)")
        self.likeness = Likeness.of(teacher.glance(p, store, self.videos, prepare.device(p), progress))
        self.predictions = p.outputs / p.dataset / "predictions.csv"

    def suggest(self, but: str = "") -> tuple[str, str]:
        """The next video and why, as if ``but`` had a label already."""
        try:
            said = runs.read_table(self.predictions).set_index("video")[["predicted", "margin"]]
        except (OSError, ValueError, KeyError):  # not there yet, or not ours
            said = None
        rows = self.labels.rows | ({but: ("", "skip")} if but else {})
        return suggest(self.videos, self.likeness, rows, self.p.classes, said)

    def lacking(self) -> str:
        """What is missing before a training makes sense, in one sentence; empty if nothing is."""
        said = self.labels.lacking()
        if not said and all(video in self.labels.rows for video in self.videos):
            return (
                "Every video has a label or was skipped, but VideoSSL learns from those without: add videos "
                f"to {self.root} and run this notebook again, or take some labels back."
            )
        return said

    def progress(self) -> pd.DataFrame:
        """Labels per class, for training and held out, with the sum."""
        table = pd.DataFrame(self.labels.counts(), index=["training", "held out"]).T
        table.loc["all"] = table.sum()
        return table


def _classes(p: Params, file: Path) -> list[str]:
    classes = p.classes or datasets.alphabetical({label for label, _ in labels.read(file).values() if label})
    if not classes and p.root is None:
        return list(demo.NOUNS)
    if not classes:
        raise ParameterError("classes = None: name those you want to tell apart, as in 'walks,runs,jumps'")
    if len(set(classes)) < len(classes):
        raise ParameterError(f"classes = {','.join(classes)!r}: a class is named twice")
    return classes


class Annotator(anywidget.AnyWidget):
    """Plays a clip and takes its label by click or key. The browser only draws ``state`` and sends what was
    pressed; every press is in the CSV before the next clip is shown."""

    _esm = Path(__file__).with_name("annotate.js")
    _css = Path(__file__).with_name("annotate.css")
    classes = traitlets.List().tag(sync=True)  # pairs of name and key
    state = traitlets.Dict().tag(sync=True)  # video, why, said, problem, counts, left
    clip = traitlets.Bytes().tag(sync=True)

    def __init__(self, desk: Desk):
        keys = [*KEYS, *[""] * len(desk.p.classes)]
        super().__init__(classes=list(zip(desk.p.classes, keys, strict=False)))
        self.desk = desk
        self._thread = ThreadPoolExecutor(1)
        self._films: dict[str, Future] = {}
        self._coming: tuple[str, str] = ("", "")
        self.on_msg(lambda _, message, __: self.press(**message))
        self._show(*desk.suggest(), said=f"{len(desk.labels.rows)} lines in {desk.labels.path}")

    def press(self, action: str, video: str = "", label: str = "") -> None:
        """What a button does: label, skip, undo. A press that was meant for another video is passed over."""
        desk, said = self.desk, ""
        if action != "undo" and video != self.state["video"]:
            return
        try:
            if action == "undo":
                back = desk.labels.undo()
                said = f"taken back: {back}" if back else "nothing to take back"
                if back in desk.videos:
                    return self._show(back, "its label was taken back", said)
            elif action == "label":
                desk.labels.set(video, label)
                said = f"{label}{' (held out)' if desk.labels.rows[video][1] == 'test' else ''}: {video}"
            else:
                desk.labels.skip(video)
                said = f"skipped: {video}"
        except (ValueError, OSError) as error:  # a hand edit went wrong, the disk is full: nothing was saved
            self.state = self.state | {"problem": str(error)}
            return None
        coming = self._coming if action != "undo" and self._coming[0] not in desk.labels.rows else ("", "")
        return self._show(*(coming if coming[0] else desk.suggest()), said)

    def _show(self, video: str, why: str, said: str) -> None:
        problem = ""
        try:
            clip = self._film(video).result() if video else b""
        except (codec.VideoError, OSError) as error:
            clip, problem = b"", f"{video} cannot be played ({error}); skip it"
        rows = self.desk.labels.rows
        left = sum(v not in rows for v in self.desk.videos)
        counts = self.desk.labels.counts()
        with self.hold_sync():
            self.clip = clip
            self.state = dict(video=video, why=why, said=said, problem=problem, counts=counts, left=left)
        self._coming = self.desk.suggest(but=video)
        if self._coming[0]:
            self._film(self._coming[0])  # made while this one is looked at

    def _film(self, video: str) -> Future:
        if video not in self._films:
            self._films[video] = self._thread.submit(codec.for_browser, self.desk.root / video)
            for old in list(self._films)[:-4]:
                del self._films[old]
        return self._films[video]


def train(p: Params, progress=quiet) -> dict[str, runs.Run]:
    """Train both compared methods on the labels as they are now. A run that was made with other labels,
    videos or parameters is made anew; an interrupted one goes on."""
    made = {}
    for method in COMPARED:
        asked = p.model_copy(update={"method": method})
        run = made[method] = runs.Run(asked.run_dir)
        if run.params.exists() and run.split.exists():
            split = prepare.prepare(asked, with_teacher=False, progress=progress).split
            if asked.differing(run.read_params()) or splits.difference(run.read_split(), split):
                asked = asked.model_copy(update={"resume": "never"})
        training.train(asked, progress)
    return made


def worth(made: dict[str, runs.Run]) -> tuple[pd.DataFrame, evaluation.Gain]:
    """Clip and video top-1 of the runs on the held-out videos, and the last one's gain over the first."""
    tables = {method: runs.read_table(run.predictions_test) for method, run in made.items()}
    top1 = {m: [100 * t.clip_right.mean(), 100 * t.video_right.mean(), len(t)] for m, t in tables.items()}
    first, last = (tables[m].video_right.to_numpy(bool) for m in COMPARED)
    return (
        pd.DataFrame(top1, index=["clip_top1", "video_top1", "held_out"]).T.astype({"held_out": int}),
        evaluation.paired_gain(first, last),
    )
