"""What a run may be told: one validated model for all notebooks."""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from videossl_core import methods, models, teacher
from videossl_core.data import datasets, splits
from videossl_core.data.files import ROOT

# Parameters that say how a run is carried out, not what it computes: a resumed run may change them.
BOOKKEEPING = {"resume", "overwrite", "device", "num_workers", "prep_workers", "outputs", "num_processes"}
BOOKKEEPING |= {"max_reject_pct", "video_timeout", "checkpoint_minutes", "tensorboard"}

# What two methods' runs must have in common to be compared; the rest of their parameters is about one method,
# or shows in the split, which is compared too.
SHARED = ["frame_size", "crop_size", "clip_frames", "jpeg_quality", "hflip", "backbone", "shortcut", "width"]
SHARED += ["loss_reduction", "steps", "batch_size", "lr", "lr_drop_every", "momentum", "dampening"]
SHARED += ["weight_decay", "last_clip", "precision"]


class ParameterError(ValueError):
    """A parameter is unknown or out of range; the message names it and the way out."""


def _one_of(table: dict[str, Any], value: str, name: str) -> str:
    if value not in table:
        raise ValueError(f"{name} = {value!r} is not one of {', '.join(table)}{nearest(value, table)}")
    return value


def nearest(name: str, known) -> str:
    """; did you mean the most alike of the known names? Empty where none is."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


class Params(BaseModel):
    """All parameters of a run. The paper's own value is the default wherever the paper gives one."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    # Data set: which videos, which of them train and test
    dataset: str = Field("demo", pattern=r"^[A-Za-z0-9][\w.-]*$", description="names outputs/<dataset>/")
    source: str | None = Field(None, description="how the videos are listed: " + " | ".join(datasets.SOURCES))
    root: Path | None = Field(None, description="folder that holds the videos")
    lists: Path | None = Field(None, description="folder (or file) of the official train/test lists")
    split: int = Field(1, ge=1, le=3, description="official split (UCF101, HMDB51)")
    tune: bool = Field(False, description="UCF101: test on held-out training groups, to choose settings")
    classes: list[str] | None = Field(None, description="restrict to these classes, in this order of ids")
    largest_classes: int | None = Field(
        None, ge=1, description="keep the n classes with most training videos"
    )
    hmdb51_pool: Literal["videossl", "official"] = Field("videossl", description="training pool of HMDB51")
    test_pct: float = Field(25, gt=0, lt=100, description="held-out share where a source has no test split")
    demo_per_class: int = Field(30, ge=3, le=1000, description="videos rendered for each class of the demo")
    max_reject_pct: float = Field(5, ge=0, le=100, description="more unusable videos than this is an error")
    video_timeout: float = Field(600, gt=0, description="seconds after which decoding a video is given up")
    short_videos: Literal["reject", "loop"] = Field("reject", description="a video shorter than a clip")

    # Label split
    label_pct: float = Field(10, gt=0, le=100, description="share of the training videos with a label, %")
    label_draw: str = Field("stratified", description="how it is chosen: " + " | ".join(splits.DRAWS))
    label_list: Path | None = Field(None, description="path*label file, or folder of the authors' lists")

    # Clips (4.1): videos at 136 x 136, clips of 16 frames at 112 x 112
    frame_size: int = Field(136, ge=16, le=1024, description="side of the stored frames, pixels")
    crop_size: int = Field(112, ge=16, le=1024, description="side of the random crop, pixels")
    clip_frames: int = Field(16, ge=2, le=256, description="consecutive frames of a clip")
    jpeg_quality: int = Field(90, ge=30, le=100, description="quality of the stored frames")
    hflip: bool = Field(False, description="random horizontal flip (the paper names none)")

    # Teacher (3.3)
    teacher: str = Field("resnet50", description=" | ".join(teacher.TEACHERS))
    teacher_weights: Path | None = Field(None, description="local weights file instead of the published one")
    teacher_stride: int = Field(8, ge=1, le=64, description="the teacher sees every n-th frame")

    # Network (4.1)
    backbone: str = Field("resnet18", description=" | ".join(models.BACKBONES))
    shortcut: Literal["A", "A_detached", "B"] = Field("A", description="3D ResNet downsampling shortcut")
    width: float = Field(1.0, gt=0, le=4, description="multiplies the 64, 128, 256, 512 feature maps")

    # Method (3.1 to 3.4, 4.2) and what the text leaves open
    method: str = Field("videossl", description=" | ".join(methods.METHODS))
    delta: float = Field(0.95, gt=0, le=1, description="confidence threshold of equation 2")
    T: float = Field(10, ge=0, description="weight of the pseudo-labels in equation 3")
    tau: float = Field(2 / 3, ge=0, le=1, description="share of the iterations before lambda_u = 1")
    lambda_d: float = Field(1, ge=0, description="weight of the distillation loss in equation 5")
    below_threshold: Literal["soft", "mask", "entropy"] = "soft"
    confident_target: Literal["literal", "one_hot"] = "literal"
    lambda_u_warmup: Literal["step", "linear"] = "step"
    loss_reduction: Literal["batch", "mean"] = Field("batch", description="see methods.total_loss")
    teacher_temperature: float = Field(1, gt=0, description="softens h(a) above 1, sharpens below")
    consistency_weight: float = Field(8, ge=0, description="mean teacher: largest weight")
    consistency_ramp: float = Field(1 / 3, ge=0, le=1, description="mean teacher: share of run to reach it")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="mean teacher: decay after its warm start")
    mt_view: Literal["other", "same"] = Field(
        "other", description="mean teacher sees another crop, or the same"
    )
    eval_model: Literal["auto", "student", "ema"] = Field("auto", description="auto: ema where there is one")
    s4l_rotations: Literal["all", "one"] = "all"
    s4l_rotate_on: Literal["both", "unlabelled"] = "both"
    s4l_weight: float = Field(1, ge=0)

    # Optimisation (4.1)
    steps: int = Field(80_000, ge=1, description="iterations")
    batch_size: int = Field(128, ge=2, description="clips per iteration, half labelled, half unlabelled")
    lr: float = Field(0.01, gt=0)
    lr_drop_every: int = Field(40_000, ge=1, description="iterations between divisions by ten")
    momentum: float = Field(0.9, ge=0, lt=1)
    dampening: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.001, ge=0)

    # Evaluation
    eval_every: int = Field(4_000, ge=1, description="iterations between two evaluations")
    last_clip: Literal["drop", "pad"] = Field(
        "drop", description="a rest shorter than a clip: drop it, or loop it"
    )
    eval_videos: int = Field(1_000, ge=1, description="videos per subset in the evaluations during training")

    checkpoint_minutes: float = Field(
        10, ge=0, description="at most this much is lost to a kill; 0: every step"
    )
    log_every: int = Field(10, ge=1, description="iterations between two rows of log.csv")
    tensorboard: bool = Field(False, description="write event files for TensorBoard too")

    # How it is carried out
    variant: str = Field("", pattern=r"^[\w.=+-]*$", description="names runs that differ in other parameters")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format, see precision"
    )
    deterministic: bool = Field(False, description="on a GPU: the same bits each time, or an error")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    num_processes: int = Field(1, ge=1, le=1024, description="training processes on this machine, one a GPU")
    sync_batch_norm: bool = Field(True, description="batch norm over the clips of all processes")
    num_workers: int | None = Field(
        None, ge=0, le=64, description="loader processes; None: 0 on CPU, 4 on GPU"
    )
    prep_workers: int | None = Field(None, ge=1, le=256, description="decoding processes; None: one per core")
    resume: Literal["auto", "never", "must"] = "auto"
    overwrite: bool = Field(False, description="train again although the run is finished")
    outputs: Path = Field(Path("outputs"), description="where everything is written")

    @field_validator("root", "lists", "label_list", "teacher_weights", "outputs")
    @classmethod
    def _from_project_root(cls, path: Path | None) -> Path | None:
        return None if path is None else (ROOT / path.expanduser()).resolve()

    @field_validator("classes", mode="before")
    @classmethod
    def _comma_list(cls, value):
        return [c.strip() for c in value.split(",") if c.strip()] if isinstance(value, str) else value

    @field_validator("source", "label_draw", "teacher", "backbone", "method")
    @classmethod
    def _in_its_table(cls, value: str | None, info) -> str | None:
        tables = {"source": datasets.SOURCES, "label_draw": splits.DRAWS, "teacher": teacher.TEACHERS}
        tables |= {"backbone": models.BACKBONES, "method": methods.METHODS}
        return value if value is None else _one_of(tables[info.field_name], value, info.field_name)

    @model_validator(mode="after")
    def _fit_together(self):
        if self.crop_size > self.frame_size:
            raise ValueError(f"crop_size = {self.crop_size} is larger than frame_size = {self.frame_size}")
        if self.label_draw == "list" and self.label_list is None:
            raise ValueError("label_draw = 'list' needs label_list, the path*label file or its folder")
        if self.source not in (None, "demo", "annotated") and self.root is None:
            raise ValueError(f"source = {self.source!r} needs root, the folder that holds the videos")
        return self

    @property
    def data_dir(self) -> Path:
        return self.outputs / self.dataset / "data"

    @property
    def videos_dir(self) -> Path:
        """``root``; where none is needed, the folder of the rendered videos."""
        return self.root or self.data_dir / "videos"

    @property
    def labels_file(self) -> Path:
        """The CSV of one's own labels: ``lists``, or labels.csv beside the videos."""
        return self.lists or self.videos_dir / "labels.csv"

    @property
    def run_dir(self) -> Path:
        return run_dir(
            self.outputs, self.dataset, self.method, self.label_pct, self.seed, variant=self.variant
        )

    def differing(self, other: dict) -> dict[str, tuple]:
        """Names of the parameters whose value in ``other`` (a params.json) is not this one's."""
        mine = self.model_dump(mode="json")
        names = sorted((mine.keys() | other.keys()) - BOOKKEEPING)
        return {n: (other.get(n), mine.get(n)) for n in names if other.get(n) != mine.get(n)}


class FigureParams(Params):
    """Parameters of the notebooks that look at finished runs."""

    datasets: list[str] | None = Field(None, description="data sets to show; None: all with finished runs")
    methods: list[str] = Field(["supervised", "sd", "videossl"], description="models asked in Figure 5")
    videos: int = Field(6, ge=1, le=100, description="videos shown in Figure 5")
    published: bool = Field(False, description="count the runs of outputs/reference/ too")

    _comma_lists = field_validator("datasets", "methods", mode="before")(Params._comma_list.__func__)

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: list[str]) -> list[str]:
        return [_one_of(methods.METHODS, name, "methods") for name in value]


class PredictParams(Params):
    """Parameters of predict.ipynb: which run, and what it is to look at."""

    videos: Path = Field(
        Path("outputs/demo/data/videos/test/clock_falls"), description="a video file, or a folder of videos"
    )
    into: Path = Field(Path("outputs/predictions.csv"), description="CSV file for what the run says of them")

    _from_root = field_validator("videos", "into")(Params._from_project_root.__func__)


def run_dir(outputs: Path, dataset: str, method: str, label_pct: float, seed: int, variant: str = "") -> Path:
    """outputs/<dataset>/<method>[@<variant>]/<label_pct>/seed<seed>"""
    name = f"{method}@{variant}" if variant else method
    return Path(outputs) / dataset / name / f"{label_pct:g}" / f"seed{seed}"
