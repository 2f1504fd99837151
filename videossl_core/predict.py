"""A finished run predicts videos whose class nobody knows: a file, a folder, or the rest of a user's own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from videossl_core import prepare, runs, training
from videossl_core.batches import EvalClips
from videossl_core.data import datasets, files
from videossl_core.data.frames import FrameStore
from videossl_core.params import ParameterError, Params
from videossl_core.paths import places

COLUMNS = ["video", "predicted", "confidence", "margin", "disagreement", "clips", "reason"]


@dataclass(frozen=True)
class VideoPredictions:
    """A run's predictions for some videos.

    ``table`` has a row a video, the uncertain ones first: video, predicted (class), confidence (its mean
    softmax over all clips), margin (to the next class), disagreement (share of the clips with another
    predicted class), clips (how many), reason (why the video could not be used; all else is empty then), and
    ``p_<class>`` for each class. ``clips`` has a row for each consecutive clip: video, start and end in
    seconds, and ``p_<class>``.
    """

    table: pd.DataFrame
    clips: pd.DataFrame
    classes: list[str]
    root: Path
    store: FrameStore

    def spans(self) -> pd.DataFrame:
        """What happens when: video, start and end in seconds, predicted (class), confidence (the mean of its
        clips). Neighbouring clips of one predicted class are one span."""
        probs = self.clips[[f"p_{name}" for name in self.classes]].to_numpy()
        clips = self.clips.assign(predicted=np.array(self.classes)[probs.argmax(1)], confidence=probs.max(1))
        kept = clips[["video", "predicted"]]
        span = (kept != kept.shift()).any(axis=1).cumsum()
        columns = {"video": "first", "start": "min", "end": "max", "predicted": "first", "confidence": "mean"}
        return clips.groupby(span).agg(columns).reset_index(drop=True)

    def write(self, path: Path) -> None:
        """The table to this CSV, and the spans to one beside it, ``<name>_spans.csv``."""
        for table, to in ((self.table, path), (self.spans(), path.with_stem(f"{path.stem}_spans"))):
            files.write_text(to, table.round(4).to_csv(index=False, lineterminator="\n"))


def predict_unlabelled(p: Params) -> VideoPredictions:
    """The run of these parameters predicts the videos of its own data set that have no label now."""
    data = prepare.prepare(p, with_teacher=False)
    reasons = pd.Series("", index=pd.Index(data.rows("unlabelled").video, name="video"), name="reason")
    return _predict(p, reasons, data.index.root, data.store)


def predict_files(p: Params, videos: Path) -> VideoPredictions:
    """The run of these parameters predicts a video file, or all videos below a folder.

    They are decoded as the run's own were, into outputs/<dataset>/predict/, so that a second time is quick.

    Raises:
        ParameterError: there is no such file or folder, or no video in it.
    """
    if videos.is_file():
        root, names = videos.parent, [videos.name]
    elif videos.is_dir():
        root, names = videos, datasets.videos_below(videos)
    else:
        raise ParameterError(f"videos = {str(videos)!r}: no such file or folder; {places()}")
    if not names:
        raise ParameterError(f"videos = {str(videos)!r}: no video in this folder or below it")
    folder = p.outputs / p.dataset / "predict" / files.sha256(str(root).encode())[:12]
    store, reasons = prepare.decode(p, folder, root, names)
    return _predict(p, reasons, root, store)


def _predict(p: Params, reasons: pd.Series, root: Path, store: FrameStore) -> VideoPredictions:
    """``reasons``: by video why it cannot be used, empty where it can."""
    predict, classes = training.load_predictor(runs.Run(p.run_dir), p)
    names = [f"p_{name}" for name in classes]
    usable = list(reasons.index[reasons == ""])
    rows = pd.DataFrame({"video": usable, "class_name": "", "label": -1})
    predictions = predict(rows, store, every_clip=True)
    probs, clip_probs = predictions.video_probs, predictions.every_clip  # (V, C), (clips, C)
    assert clip_probs is not None
    clips = _spans(p, usable, store)
    video_of_clip = pd.Categorical(clips.video, usable).codes
    count = np.bincount(video_of_clip, minlength=len(usable))
    differs = clip_probs.argmax(1) != probs.argmax(1)[video_of_clip]
    second, first = np.sort(np.pad(probs, ((0, 0), (1, 0))))[:, -2:].T  # padded: there may be one class
    table = pd.DataFrame(
        {
            "predicted": predictions.table.video_pred.to_numpy(),
            "confidence": first,
            "margin": first - second,
            "disagreement": np.bincount(video_of_clip, differs) / count,
            "clips": pd.array(count, "Int64"),
        },
        index=usable,
    ).join(pd.DataFrame(probs, usable, names))
    table = reasons.to_frame().join(table).reset_index().reindex(columns=[*COLUMNS, *names])
    table = table.sort_values(["margin", "video"], ignore_index=True)  # unusable ones have no margin: last
    return VideoPredictions(table, clips.join(pd.DataFrame(clip_probs, columns=names)), classes, root, store)


def _spans(p: Params, videos: list[str], store: FrameStore) -> pd.DataFrame:
    """video, and start and end in seconds, of each consecutive clip, in the order of the evaluation."""
    rows = EvalClips(p, videos, store).rows
    video, start = rows[rows[:, 2] == 0, :2].T
    frames, fps = (store.table[name].reindex(videos).to_numpy()[video] for name in ("frames", "fps"))
    end = np.minimum(start + p.clip_frames, frames)
    if p.clips == "spread":  # each is of the whole video
        start, end = np.zeros_like(start), frames
    name = np.array(videos, dtype=object)[video]
    return pd.DataFrame({"video": name, "start": start / fps, "end": end / fps})
