"""All parameters of a run, and how it gets them: defaults, ``params/<dataset>.yaml``, then what is given.

It imports neither torch nor pandas: a misspelt parameter is refused in a moment.
"""

import difflib
import json
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from videossl_core import paths

# The rows of the tables that these names choose from; test_params.py compares them.
PaperMethod = Literal["supervised", "pseudo_label", "mean_teacher", "sd", "mt_sd", "s4l", "videossl"]
MethodName = Literal[PaperMethod, "probe", "probe_motion", "fixmatch", "videossl_plus"]
SourceName = Literal["demo", "ucf101", "hmdb51", "kinetics", "folder", "csv", "annotated"]
DrawName = Literal["list", "uniform", "stratified"]
TeacherName = Literal["resnet50", "efficientnet_lite0", "untaught"]
TorchvisionName = Literal[
    "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b",
]  # fmt: skip
BackboneName = Literal["resnet10", "resnet18", "resnet34", "resnet50", TorchvisionName]
InitName = Literal["scratch", "kinetics400"]


class ParameterError(ValueError):
    """A parameter is unknown or out of range; the message names it and the way out."""


def nearest(name: object, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the most similar known name; empty where none is similar."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def comma_list(value: Any) -> Any:
    """Names from "a,b", ["a", "b"], or the number that papermill makes of a name like 7."""
    if isinstance(value, str | int | float):
        value = str(value).split(",")
    if isinstance(value, list | tuple):
        value = [name for part in value if (name := paths.clean_name(str(part)))]
    return value


def _teacher(name: str) -> str:
    known = get_args(TeacherName)
    if name not in known and not re.fullmatch(r"(torchvision|timm):[\w.-]+", name):
        others = "torchvision:<name>, timm:<name>"
        raise ValueError(f"not one of {', '.join(known)}, {others}{nearest(name, known)}")
    return name


ProjectPath = Annotated[Path, AfterValidator(paths.in_project)]
AnyTeacher = Annotated[str, AfterValidator(_teacher)]
Names = Annotated[list[str], BeforeValidator(comma_list)]  # "a,b" or ["a", "b"]


class _Model(BaseModel):
    model_config = {"extra": "forbid", "frozen": True, "validate_default": True, "allow_inf_nan": False}

    def but(self, **changes) -> Self:
        """The same parameters with some changed, checked like all others.

        Raises:
            ParameterError: a name is unknown or a value is out of range.
        """
        return check(type(self), dict(self) | changes, "the parameters")


class Bookkeeping(_Model):
    """How a run is carried out, not what it computes: a resumed run may change all of these."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    num_workers: int | None = Field(None, ge=0, le=64, description="loaders; None: 0 on CPU, else the cores")
    prep_workers: int | None = Field(None, ge=1, le=256, description="decoding processes; None: one per core")
    max_reject_pct: float = Field(5, ge=0, le=100, description="more unusable videos than this is an error")
    video_timeout: float = Field(600, gt=0, description="seconds, and one more a MB, for decoding a video")
    checkpoint_minutes: float = Field(10, ge=0, description="a kill loses at most this much; 0: every step")
    resume: Literal["auto", "never", "must"] = "auto"
    overwrite: bool = Field(False, description="train again although the run is finished")
    outputs: ProjectPath = Field(Path("outputs"), description="where everything is written")


class WhichRun(Bookkeeping):
    """What names a run. Notebooks that look at a finished run take no other parameter."""

    dataset: str = Field("demo", pattern=r"^[A-Za-z0-9][\w.-]*$", description="names outputs/<dataset>/")
    method: MethodName = "videossl"
    variant: str = Field("", pattern=r"^[\w.=+-]*$", description="labels runs with other settings")
    label_pct: float = Field(10, gt=0, le=100, description="share of the training videos with a label, %")
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @property
    def run_name(self) -> str:
        """``<method>[@<variant>]/<label_pct>/seed<seed>``"""
        return run_name(self.method, self.variant, self.label_pct, self.seed)

    @property
    def run_dir(self) -> Path:
        return self.outputs / self.dataset / self.run_name

    @property
    def data_dir(self) -> Path:
        return self.outputs / self.dataset / "data"

    @property
    def figures_dir(self) -> Path:
        """Where notebooks save pictures: a finished run's folder stays as it is."""
        return self.outputs / self.dataset / "figures"


def run_name(method: str, variant: str, label_pct: float, seed: int) -> str:
    return f"{method}@{variant}/{label_pct:g}/seed{seed}" if variant else f"{method}/{label_pct:g}/seed{seed}"


class Params(WhichRun):
    """All parameters of a run. The paper's own value is the default wherever the paper gives one."""

    # Data set: which videos, which of them train and test
    source: SourceName | None = Field(None, description="how the videos are listed")
    root: ProjectPath | None = Field(None, description="folder that holds the videos")
    lists: ProjectPath | None = Field(None, description="folder (or file) of the official train/test lists")
    split: int = Field(1, ge=1, le=3, description="official split (UCF101, HMDB51)")
    tune: bool = Field(False, description="test on held-out training videos, to choose settings")
    classes: Names | None = Field(None, description="restrict to these classes, in this order of ids")
    largest_classes: int | None = Field(None, ge=1, description="the n classes with most training videos")
    hmdb51_pool: Literal["videossl", "official"] = Field("videossl", description="training pool of HMDB51")
    test_pct: float = Field(25, gt=0, lt=100, description="held-out share with tune, or without a test split")
    demo_per_class: int = Field(30, ge=3, le=1000, description="videos rendered for each class of the demo")
    short_videos: Literal["reject", "loop"] = Field("reject", description="a video shorter than a clip")
    max_damaged_pct: float = Field(10, ge=0, le=100, description="more damaged or missing frames refuse it")

    # Label split
    label_draw: DrawName = Field("stratified", description="how the labelled videos are chosen")
    label_list: ProjectPath | None = Field(None, description="path*label file, or the authors' folder")
    val_pct: float = Field(0, ge=0, lt=100, description="share of the labelled videos to choose by, %")
    class_balance: Literal["none", "sampler", "loss"] = Field(
        "none", description="of a network's labelled clips: each class as often, or weighted as much"
    )

    # Clips (4.1): videos at 136 x 136, clips of 16 frames at 112 x 112
    frame_size: int = Field(136, ge=16, le=1024, description="side of the stored frames, pixels")
    crop_size: int = Field(112, ge=16, le=1024, description="side of the random crop, pixels")
    clip_frames: int = Field(16, ge=2, le=256, description="frames of a clip")
    clips: Literal["consecutive", "spread"] = Field(
        "consecutive", description="frames of a clip: one after the other, or spread over the whole video"
    )
    fps: float | None = Field(None, ge=0.1, le=240, description="resample videos to it; None: as they come")
    stride: int = Field(1, ge=1, le=64, description="use every n-th frame of a video")
    jpeg_quality: int = Field(90, ge=30, le=100, description="quality of the stored frames")
    hflip: bool = Field(False, description="random horizontal flip (the paper names none)")
    augment: Literal["crop", "standard"] = Field(
        "crop", description="crop: the paper's; standard: random resized crop, horizontal flip, colour jitter"
    )

    # Teacher (3.3)
    teacher: AnyTeacher = Field("resnet50", description="or torchvision:<name>, timm:<name>")
    teacher_weights: ProjectPath | None = Field(None, description="local file of weights to use instead")
    teacher_stride: int = Field(8, ge=1, le=64, description="the teacher sees every n-th frame")
    teacher_view: Literal["stored", "same"] = Field(
        "stored",
        description="stored: its answer to the whole frame, from disk; same: to the student's crop and flip, "
        "computed at every step, which makes one of ucf101_6 on a CPU four times as long",
    )

    # Network (4.1)
    backbone: BackboneName = "resnet18"
    shortcut: Literal["A", "A_detached", "B"] = Field("A", description="3D ResNet downsampling shortcut")
    width: float = Field(1.0, gt=0, le=4, description="multiplies the 64, 128, 256, 512 feature maps")
    init: InitName | ProjectPath = Field("scratch", description="or kinetics400, a file, a run's folder")

    # Method (3.1 to 3.4, 4.2) and what the text leaves open
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
    mt_view: Literal["other", "same"] = Field("other", description="mean teacher: another crop, or the same")
    eval_model: Literal["auto", "student", "ema"] = Field("auto", description="auto: ema where there is one")
    s4l_rotations: Literal["all", "one"] = "all"
    s4l_rotate_on: Literal["both", "unlabelled"] = "both"
    s4l_weight: float = Field(1, ge=0)

    # The frozen teacher with a linear layer (methods probe and probe_motion)
    probe_features: Literal["mean", "mean_and_motion"] | None = Field(None, description="None: the method's")
    probe_classifier: Literal["linear", "knn"] = Field("linear", description="on the teacher's features")

    # Optimisation (4.1)
    steps: int = Field(80_000, ge=1, description="iterations")
    batch_size: int = Field(128, ge=2, description="clips per iteration, half labelled, half unlabelled")
    lr: float = Field(0.01, gt=0)
    backbone_lr: float | None = Field(None, ge=0, description="the backbone's; None: lr; 0: it stays")
    lr_drop_every: int = Field(40_000, ge=1, description="iterations between divisions by ten")
    momentum: float = Field(0.9, ge=0, lt=1)
    dampening: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.001, ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    deterministic: bool = Field(False, description="on a GPU: the same bits each time, or an error")
    sync_batch_norm: bool = Field(True, description="several GPUs: batch norm over the clips of all")

    # Evaluation and log
    eval_every: int = Field(4_000, ge=1, description="iterations between two evaluations")
    eval_videos: int = Field(1_000, ge=1, description="videos per subset in evaluations during training")
    keep: Literal["last", "best"] = Field("last", description="best: the weights best on the val videos")
    last_clip: Literal["drop", "pad"] = Field("drop", description="a rest shorter than a clip")
    log_every: int = Field(10, ge=1, description="iterations between two rows of log.csv")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.crop_size > self.frame_size:
            raise ValueError(f"crop_size = {self.crop_size} is larger than frame_size = {self.frame_size}")
        if self.label_draw == "list" and self.label_list is None:
            raise ValueError("label_draw = 'list' needs label_list, the path*label file or its folder")
        if self.keep == "best" and not self.val_pct:
            raise ValueError("keep = 'best' needs val_pct, the share of the labelled videos to choose by")
        if self.source not in (None, "demo", "annotated") and self.root is None:
            raise ValueError(f"source = {self.source!r} needs root, the folder that holds the videos")
        if self.backbone.startswith("mvit") and (self.clip_frames, self.crop_size) != (16, 224):
            raise ValueError(f"backbone = {self.backbone!r} takes clip_frames = 16 and crop_size = 224 only")
        if self.backbone == "s3d" and (self.clip_frames < 14 or self.crop_size < 224):
            raise ValueError("backbone = 's3d' takes clip_frames from 14 and crop_size from 224 up")
        if self.init == "kinetics400" and self.backbone not in (known := get_args(TorchvisionName)):
            raise ValueError(f"init = 'kinetics400' is for {', '.join(known)}; not for {self.backbone!r}")
        return self

    @property
    def videos_dir(self) -> Path:
        """``root``; where none is needed, the folder of the rendered videos."""
        return self.root or self.data_dir / "videos"

    @property
    def labels_file(self) -> Path:
        """The CSV of one's own labels: ``lists``, or labels.csv beside the videos."""
        return self.lists or self.videos_dir / "labels.csv"

    def differing(self, recorded: dict) -> dict[str, tuple]:
        """Parameters that a recorded params.json has otherwise: name -> (recorded value, value now).

        One that it lacks came later, with what was done before as its default.
        """
        now = self.model_dump(mode="json")
        recorded = {name: field.default for name, field in type(self).model_fields.items()} | recorded
        names = sorted(now.keys() - Bookkeeping.model_fields.keys())
        return {n: (recorded[n], now[n]) for n in names if recorded[n] != now[n]}


AnyParams = TypeVar("AnyParams", bound=_Model)


def of_run(which: WhichRun) -> Params:
    """The parameters of the run that ``which`` names, from its params.json.

    Raises:
        ParameterError: there is no such run yet.
    """
    path = which.run_dir / "params.json"
    if not path.exists():
        given = " ".join(f"-p {n} {getattr(which, n)}" for n in ("dataset", "method", "label_pct", "seed"))
        command = f"papermill notebooks/train.ipynb out.ipynb {given}"
        raise ParameterError(f"no run in {which.run_dir}; train it: {command}")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    # parameters that have gone since are passed over
    values = {name: value for name, value in recorded.items() if name in Params.model_fields}
    return check(Params, values | {n: getattr(which, n) for n in Bookkeeping.model_fields}, str(path))


def load(model: type[AnyParams] = Params, /, **given) -> AnyParams:  # type: ignore[assignment]
    """Parameters from ``params/<dataset>.yaml`` and the values given; ``None`` means not given.

    A file may name another with ``base:`` whose values hold where it is silent. A relative path that is given
    starts ``from_here``, one in a file in the project.

    Raises:
        ParameterError: a name is unknown (the nearest right one is named), or a value is out of range.
    """
    given = {k: _as_meant(model, k, v) for k, v in given.items() if v is not None}
    values: dict[str, Any] = {}
    if "base" in given and issubclass(model, Params):
        values |= _read_file(_base(given.pop("base"), "the parameters"))
    dataset = given.get("dataset", model.model_fields["dataset"].default)
    if isinstance(dataset, str) and PurePath(dataset).name == dataset:
        values |= _read_file(paths.ROOT / "params" / f"{dataset}.yaml")
    p = check(model, {k: v for k, v in values.items() if k in model.model_fields} | given, "the parameters")
    if isinstance(p, Params) and p.source is None:  # a misspelt data set must not train on something else
        what = f"there is no params/{p.dataset}.yaml{nearest(p.dataset, _datasets())}"
        if not _datasets():
            what = (
                f"{paths.ROOT} has no params/*.yaml: clone the project, pip install -e . in it and work there"
            )
        raise ParameterError(f"dataset = {p.dataset!r}: {what}; for your own videos give source and root too")
    return p


def _as_meant(model: type[BaseModel], name: str, value: Any) -> Any:
    """Text that papermill took for a number, as text; a path from where the user stands."""
    if name == "init" and value in get_args(InitName):
        return value
    kind = model.model_fields[name].annotation if name in model.model_fields else str
    is_path = "Path" in str(kind)
    if isinstance(value, int | float) and (kind is str or is_path):
        value = str(value)
    return paths.from_here(value) if is_path and isinstance(value, str | Path) else value


def _read_file(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    """The values of a parameter file, and those of its ``base`` where it is silent; {} if there is none."""
    if path in seen:
        raise ParameterError(f"{path}: base leads back to this file")
    if not path.exists():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise ParameterError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: a parameter file holds 'name: value' lines")
    _check_names(values, [*Params.model_fields, "base"], str(path))
    base = values.pop("base", None)
    return values if base is None else _read_file(_base(base, str(path)), (*seen, path)) | values


def _base(name: Any, where: str) -> Path:
    path = paths.ROOT / "params" / f"{name}.yaml"
    if not isinstance(name, str) or PurePath(name).name != name or not path.exists():
        raise ParameterError(f"{where}: base = {name!r}: there is no {path}{nearest(name, _datasets())}")
    return path


def _datasets() -> list[str]:
    return [path.stem for path in (paths.ROOT / "params").glob("*.yaml")]


def _check_names(names: Iterable, known: Iterable[str], where: str) -> None:
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            if name in Params.model_fields:
                hint = f": it belongs to the training. Here only {', '.join(known)} can be given"
            raise ParameterError(f"{where}: unknown parameter {name!r}{hint}")


def check(model: type[AnyParams], values: dict, where: str) -> AnyParams:
    """Build the model; a ``ParameterError`` names every value that is wrong."""
    _check_names(values, model.model_fields, where)
    try:
        return model(**values)
    except ValidationError as error:
        raise ParameterError("; ".join(map(_in_words, error.errors()))) from None


def _in_words(error: Any) -> str:
    name = f"{error['loc'][0]} = {reprlib.repr(error['input'])}" if error["loc"] else ""
    if error["type"] == "literal_error":
        known = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"{name} is not one of {', '.join(known)}{nearest(error['input'], known)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
