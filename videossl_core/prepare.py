"""From parameters to everything a run reads: index, decoded frames, label split, teacher targets."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from videossl_core import devices, methods, teacher
from videossl_core.batches import announce_loaders
from videossl_core.data import datasets, files, splits
from videossl_core.data.frames import FrameStore, StoreSettings
from videossl_core.image_classifiers import row_of
from videossl_core.params import ParameterError, Params


@dataclass(frozen=True)
class Data:
    """``split`` has the columns video, class_name, label, role (labelled, val, unlabelled, test)."""

    index: datasets.Index
    store: FrameStore
    split: pd.DataFrame
    rejected: pd.DataFrame
    targets: teacher.Targets | None

    @property
    def classes(self) -> list[str]:
        return self.index.classes

    def facts(self) -> dict:
        """What a run must find unchanged when it resumes: split, classes, content of the videos, teacher."""
        contents = self.store.table.source_sha256.reindex(self.split.video)
        return {
            "split_sha256": splits.split_hash(self.split),
            "classes": self.classes,
            "videos_sha256": files.sha256("\n".join(contents).encode()),
            "teacher": self.targets.folder.name if self.targets else None,
        }

    def rows(self, role: str) -> pd.DataFrame:
        return self.split[self.split.role == role].reset_index(drop=True)


def open_store(p: Params, folder: Path) -> FrameStore:
    """The store in ``folder`` whose frames are of the sizes that the network and the teacher see."""
    row, frames = row_of(p.teacher), (p.frame_size, p.jpeg_quality, p.teacher_stride, p.fps, p.stride)
    return FrameStore(folder, StoreSettings(*frames, row.short, row.side))


def decode(p: Params, folder: Path, root: Path, videos: list[str]) -> tuple[FrameStore, pd.Series]:
    """Decode the videos below ``root`` that the store in ``folder`` does not hold yet.

    Returns the store, and by video the reason why it cannot be used, empty where it can.
    """
    announce_loaders(p, devices.device(p))  # what is wrong with the GPU is said now, not after hours
    store = open_store(p, folder)
    store.add(videos, root, p.prep_workers, p.video_timeout)
    table = store.table.loc[videos]
    frames, lost = table.frames, table.damaged + table.missing
    short = "shorter than a clip: " + frames.astype(str) + f" of {p.clip_frames} frames"
    damaged = "damaged: " + lost.astype(str) + " of " + (frames + table.missing).astype(str)
    damaged += f" frames are damaged or missing, over max_damaged_pct = {p.max_damaged_pct:g}"
    reasons = table.reason.mask(lost > p.max_damaged_pct / 100 * (frames + table.missing), damaged)
    if p.short_videos != "loop":
        reasons = reasons.mask((reasons == "") & (frames < p.clip_frames), short)
    unusable = reasons[reasons != ""].map(_with_advice)
    return store, unusable.reindex(reasons.index, fill_value="")


ADVICE = {
    "missing": "No such file, or a link to nowhere: correct the list, or copy the file to this folder",
    "unreadable": "No video, or broken off. Copy it again; if a player shows it: ffmpeg -i VIDEO new.mp4",
    "no video stream": "It has sound at most; take it out",
    "zero frames": "There is no picture in it; copy it again",
    "implausible": "Cut or resize it with ffmpeg, or write a new header: ffmpeg -i VIDEO -c copy new.mp4",
    "damaged": "Copy or download it again, or raise max_damaged_pct to use the frames that are left",
    "shorter than a clip": "With short_videos = loop it is repeated; a smaller clip_frames asks for less",
    "time-out": "Raise video_timeout, or convert it: ffmpeg -i VIDEO new.mp4",
    "crash": "Convert it: ffmpeg -i VIDEO new.mp4; if memory was short, lower prep_workers",
}
"""What a person can do about a video that cannot be used, by the beginning of the reason."""


def _with_advice(reason: str) -> str:
    return next((f"{reason}. {text}" for start, text in ADVICE.items() if reason.startswith(start)), reason)


def decode_index(p: Params, index: datasets.Index) -> tuple[FrameStore, pd.DataFrame]:
    """Decode a data set; the second table lists the rejected videos with the reason, as rejected.csv does.

    Raises:
        datasets.DatasetError: more than ``max_reject_pct`` % of the videos cannot be used.
        ParameterError: the method needs a teacher with classes.
    """
    if "teacher" in methods.METHODS[p.method].needs and not row_of(p.teacher).classes:
        what = f"teacher = {p.teacher!r} has features but no classes, which method = {p.method!r} needs"
        raise ParameterError(
            f"{what} (equation 4). Take another teacher, or method = 'probe' (or probe_motion)"
        )
    store, reasons = decode(p, p.data_dir, index.root, list(index.table.video))
    rejected, path = reasons[reasons != ""].reset_index(), p.data_dir / "rejected.csv"
    files.write_text(path, rejected.to_csv(index=False))
    count = f"{len(rejected)} of {len(reasons)} videos"
    if 100 * len(rejected) > p.max_reject_pct * len(reasons):
        first = "".join(f"\n{r.video}: {r.reason}" for r in rejected.head(3).itertuples())
        raise datasets.DatasetError(
            f"{count} below {index.root} are unusable: over max_reject_pct = {p.max_reject_pct:g} %. Mend or "
            f"remove them, or raise max_reject_pct to go on without. All are in {path}, the first:{first}"
        )
    if len(rejected):
        warnings.warn(f"{count} are left out, see {path}", stacklevel=2)
    _warn_of_frame_rates(p, store.table.fps[reasons.index[reasons == ""]])
    return store, rejected


def _warn_of_frame_rates(p: Params, rates: pd.Series) -> None:
    """``rates``: frames per second of the usable videos."""
    if p.fps is None and rates.max() > 1.5 * rates.min():
        median = rates.median()
        off = ((rates - median).abs() > median / 10).mean()
        seconds = " to ".join(f"{p.clip_frames / rate:.2g}" for rate in (rates.max(), rates.min()))
        warnings.warn(
            f"the videos have {rates.min():.3g} to {rates.max():.3g} frames per second ({off:.0%} are more "
            f"than a tenth off the median, {median:.3g}): a clip of {p.clip_frames} frames lasts {seconds} "
            f"s. fps = {median:.3g} shows all at one rate",
            stacklevel=3,
        )


def choose_labels(p: Params, index: datasets.Index, rejected: pd.Series) -> pd.DataFrame:
    """The label split of the usable videos; labels are drawn among them, a list loses what is rejected.

    Raises:
        datasets.DatasetError: no labelled or no test video is left.
        splits.SplitError: the label list does not fit.
    """
    if p.label_draw != "list":
        usable = index.table[~index.table.video.isin(rejected)].reset_index(drop=True)
        index = replace(index, table=usable)
    split = splits.make_split(p, index)
    split = split[~split.video.isin(rejected)].reset_index(drop=True)
    for role in ("labelled", "test"):
        if not (split.role == role).any():
            raise datasets.DatasetError(f"no {role} video is usable, see {p.data_dir / 'rejected.csv'}")
    if p.val_pct and not (split.role == "val").any():
        few = f"val_pct = {p.val_pct:g}: no class has enough labelled videos to hold one out"
        raise splits.SplitError(f"{few}; raise val_pct or label_pct")
    splits.warn_without_label(split, index.classes)
    return split


def run_teacher(p: Params, store: FrameStore, split: pd.DataFrame) -> teacher.Targets:
    """The teacher's softmax for all training videos (3.3); for a method that uses its features these too, and
    for the test videos as well. With ``teacher_view = same`` it looks at each step instead."""
    features = bool(methods.METHODS[p.method].features)
    videos = split.video if features else split.video[split.role.isin(["labelled", "unlabelled"])]
    if p.teacher_view == "same" and not features:
        videos = videos[:0]
    return teacher.build_targets(p, store, list(videos), devices.device(p), features)


def prepare(p: Params, with_teacher: bool | None = None, split: pd.DataFrame | None = None) -> Data:
    """The four steps: index, decode, label split, teacher; whatever is on disk already is used.

    Args:
        with_teacher: None runs the teacher only if the method needs it.
        split: the recorded split of a finished run, instead of a new draw.

    Raises:
        datasets.DatasetError, splits.SplitError: as the steps do, or a recorded video is gone.
    """
    announce_loaders(p, devices.device(p))
    index = datasets.read_index(p)
    if split is None:
        splits.make_split(p, index)  # before the hours of decoding: a wrong list is an error now
    elif absent := sorted(set(split.video) - set(index.table.video)):
        raise splits.SplitError(
            f"{len(absent)} videos of the saved split are no longer in the data set, such as {absent[0]}"
        )
    store, rejected = decode_index(p, index)
    if split is None:
        split = choose_labels(p, index, rejected.video)
    split = split[~split.video.isin(rejected.video)]
    if with_teacher is None:
        method = methods.METHODS[p.method]
        with_teacher = "teacher" in method.needs or bool(method.features)
    return Data(index, store, split, rejected, run_teacher(p, store, split) if with_teacher else None)
