"""A finished run looks at videos whose class nobody knows: a file, a folder, or the rest of one's own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from videossl_core import evaluation, prepare, runs, sampling, training
from videossl_core.data import datasets, files
from videossl_core.data.frames import FrameStore
from videossl_core.data.pool import quiet
from videossl_core.params import ParameterError, Params


@dataclass(frozen=True)
class Answers:
    """What a run says of some videos.

    ``table`` has a row a video, the doubtful ones first: video, predicted (class), confidence (its mean
    softmax over all clips), margin (to the next class), disagreement (share of the clips that say another
    class), clips (how many), reason (why the video could not be used; all else is empty then), and
    ``p_<class>`` for each class. ``clips`` has a row for each consecutive clip: video, start and end in
    seconds, and ``p_<class>``.
    """

    table: pd.DataFrame
    clips: pd.DataFrame
    classes: list[str]
    root: Path
    store: FrameStore

    def path(self, video: str) -> Path:
        return self.root / video

    def write(self, path: Path) -> None:
        files.write_text(path, self.table.round(4).to_csv(index=False, lineterminator="\n"))


def rest(p: Params, progress=quiet) -> Answers:
    """What the run of these parameters says of the videos of its own data set that have no label now."""
    data = prepare.prepare(p, with_teacher=False, progress=progress)
    videos = pd.Index(data.rows("unlabelled").video, name="video")
    reasons = pd.Series("", index=videos, name="reason")
    return _ask(p, reasons, data.index.root, data.store, progress)


def classify(p: Params, videos: Path, progress=quiet) -> Answers:
    """What the run of these parameters says of a video file, or of all videos below a folder.

    They are decoded as the run's own were, into outputs/<dataset>/predict/, so that a second look is quick.

    Raises:
        ParameterError: there is no such file or folder, or no video in it.
    """
    root, names = _found(videos)
    folder = p.outputs / p.dataset / "predict" / files.sha256(str(root).encode())[:12]
    store, reasons = prepare.decode(p, folder, root, names, progress)
    return _ask(p, reasons, root, store, progress)


def _found(videos: Path) -> tuple[Path, list[str]]:
    if videos.is_file():
        return videos.parent, [videos.name]
    if not videos.is_dir():
        raise ParameterError(f"videos = {str(videos)!r}: no such file or folder")
    names = datasets.videos_below(videos)
    if not names:
        raise ParameterError(f"videos = {str(videos)!r}: no video in this folder or below it")
    return videos, names


def _ask(p: Params, reasons: pd.Series, root: Path, store: FrameStore, progress) -> Answers:
    """``reasons``: by video why it cannot be used, empty where it can."""
    network, classes = training.load_network(runs.Run(p.run_dir), p)
    names = [f"p_{name}" for name in classes]
    columns = ["video", "predicted", "confidence", "margin", "disagreement", "clips", "reason", *names]
    rejected = reasons[reasons != ""].reset_index().reindex(columns=columns)
    usable = reasons[reasons == ""].reset_index()[["video"]].assign(class_name="", label=-1)
    if usable.empty:
        return Answers(
            rejected, pd.DataFrame(columns=["video", "start", "end", *names]), classes, root, store
        )
    said = evaluation.predict(
        network, p, usable, classes, store, prepare.device(p), progress, every_clip=True
    )
    clips = _spans(p, list(usable.video), store)
    of = pd.Categorical(clips.video, usable.video).codes
    other = said.every_clip.argmax(1) != said.video_probs.argmax(1)[of]
    _, second, first = np.sort(np.pad(said.video_probs, ((0, 0), (2, 0))))[:, -3:].T  # there may be one class
    count = np.bincount(of)
    table = pd.DataFrame({"video": usable.video, "predicted": said.table.video_pred, "confidence": first})
    table = table.assign(margin=first - second, disagreement=np.bincount(of, other) / count, clips=count)
    table = table.assign(reason="").join(pd.DataFrame(said.video_probs, columns=names))
    table = table.sort_values(["margin", "video"], ignore_index=True)
    table = table.astype({"clips": "Int64"}).set_index("video").reindex([*table.video, *rejected.video])
    table = table.assign(reason=reasons.reindex(table.index)).reset_index()
    return Answers(table, clips.join(pd.DataFrame(said.every_clip, columns=names)), classes, root, store)


def _spans(p: Params, videos: list[str], store: FrameStore) -> pd.DataFrame:
    """video, and start and end in seconds, of each consecutive clip, as the evaluation looks at them."""
    rows = sampling.TestClips(p, videos, store).rows
    of, start = rows[rows[:, 2] == 0, :2].T
    frames, fps = (store.table[name].reindex(videos).to_numpy()[of] for name in ("frames", "fps"))
    end = np.minimum(start + p.clip_frames, frames)
    return pd.DataFrame({"video": np.array(videos, dtype=object)[of], "start": start / fps, "end": end / fps})
