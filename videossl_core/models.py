"""Any 3D CNN with two heads: C classes p(x), and an embedding q(v) of the teacher's M classes (3, 4.1)."""

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from videossl_core.params import TorchvisionName

SPORTS1M_MEAN = (101.41, 97.66, 90.25)
"""Mean R, G, B of Sports-1M on the scale 0 to 255. Its variance is not published; see VideoNet."""


def _conv3x3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)


class Shortcut(nn.Module):
    """The identity branch of a residual block when the shape changes.

    ``A`` subsamples and pads with zero channels (no parameters), ``A_detached`` also stops its gradient
    (as the code that the paper builds on does), ``B`` is a 1x1x1 convolution with batch norm.
    """

    def __init__(self, kind: str, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.kind, self.stride, self.pad = kind, stride, outputs - inputs
        if kind == "B":
            self.project = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs)
            )
        elif kind not in ("A", "A_detached"):
            raise ValueError(f"shortcut = {kind!r} is not one of A, A_detached, B")

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "B":
            return self.project(x)
        s = self.stride
        x = F.pad(x[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.pad))
        return x.detach() if self.kind == "A_detached" else x


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, shortcut: str):
        super().__init__()
        outputs = planes * self.expansion
        self.body = self.make_body(inputs, planes, stride)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else Shortcut(shortcut, inputs, outputs, stride)

    def make_body(self, inputs: int, planes: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            _conv3x3x3(inputs, planes, stride),
            nn.BatchNorm3d(planes),
            nn.ReLU(inplace=True),
            _conv3x3x3(planes, planes),
            nn.BatchNorm3d(planes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(BasicBlock):
    """1x1x1, 3x3x3 and 1x1x1 convolutions, four times as many maps out."""

    expansion = 4

    def make_body(self, inputs: int, planes: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(inputs, planes, 1, bias=False),
            nn.BatchNorm3d(planes),
            nn.ReLU(inplace=True),
            _conv3x3x3(planes, planes, stride),
            nn.BatchNorm3d(planes),
            nn.ReLU(inplace=True),
            nn.Conv3d(planes, planes * self.expansion, 1, bias=False),
            nn.BatchNorm3d(planes * self.expansion),
        )


class StemPool(nn.MaxPool3d):
    """Max-pool 3, stride 2, padding 1. Its CUDA backward adds in any order; where PyTorch is told to use
    deterministic algorithms, it is computed as separable maxima of slices."""

    def __init__(self):
        super().__init__(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(x)
        for dim in (2, 3, 4):
            end = x.shape[dim] + (x.shape[dim] % 2)
            x = F.pad(x, [0, 0] * (4 - dim) + [1, 1], value=-torch.inf).movedim(dim, 0)
            x = functools.reduce(torch.maximum, (x[i : end - 1 + i : 2] for i in range(3))).movedim(0, dim)
        return x


class ResNet3D(nn.Sequential):
    """3D ResNet of Hara et al. [13] up to the pooled features: clips (N, 3, T, H, W) to (N, features).

    7x7x7 stem with stride (1, 2, 2), max-pool of stride 2 in time too, four stages that halve time, height
    and width. Adaptive pooling lets it take any clip of at least one frame and pixel.
    """

    def __init__(self, block: type[BasicBlock], depths: tuple[int, ...], shortcut: str, width: float):
        maps = [max(1, round(width * m)) for m in (64, 128, 256, 512)]
        layers: list[nn.Module] = [
            nn.Conv3d(3, maps[0], 7, stride=(1, 2, 2), padding=3, bias=False),
            nn.BatchNorm3d(maps[0]),
            nn.ReLU(inplace=True),
            StemPool(),
        ]
        inputs = maps[0]
        for stage, (planes, depth) in enumerate(zip(maps, depths, strict=True)):
            for i in range(depth):
                layers.append(block(inputs, planes, 2 if i == 0 and stage > 0 else 1, shortcut))
                inputs = planes * block.expansion
        super().__init__(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.num_features = inputs
        for m in self.modules():
            if isinstance(m, nn.Conv3d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def kinetics400(name: str):
    """torchvision's ``Weights`` of one of its networks, trained on Kinetics-400: where they lie, and the
    ``transforms()`` of the clips that they were trained on."""
    import torchvision  # here, for it loads as long as torch does

    return torchvision.models.get_model_weights(name).KINETICS400_V1


def _torchvision(name: str, shortcut: str, width: float) -> nn.Module:
    """torchvision's network without its last layer, whose name becomes ``cut``; dropout before it stays."""
    import torchvision

    if width != 1:
        raise ValueError(f"width = {width:g}: torchvision's {name} has one width, 1")
    net = torchvision.models.get_model(name, weights=None)
    # s3d's is a 1x1x1 convolution, of which it takes the mean over time and space: the order does not matter
    net.cut, last = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv3d)][-1]
    net.set_submodule(net.cut, nn.Identity())
    net.num_features = last.weight.shape[1]
    if not any(isinstance(layer, nn.BatchNorm3d) for layer in net.modules()):
        net.preset = kinetics400(name).transforms()
    return net


def _resnet3d(block: type[BasicBlock], *depths: int) -> Callable[[str, float], nn.Module]:
    return lambda shortcut, width: ResNet3D(block, depths, shortcut, width)


# One row per backbone: (shortcut, width) -> module that maps clips to (N, num_features).
BACKBONES: dict[str, Callable[[str, float], nn.Module]] = {
    "resnet10": _resnet3d(BasicBlock, 1, 1, 1, 1),
    "resnet18": _resnet3d(BasicBlock, 2, 2, 2, 2),
    "resnet34": _resnet3d(BasicBlock, 3, 4, 6, 3),
    "resnet50": _resnet3d(Bottleneck, 3, 4, 6, 3),
    **{name: functools.partial(_torchvision, name) for name in get_args(TorchvisionName)},
}


class VideoNet(nn.Module):
    """A backbone with one linear head per output.

    Takes uint8 or float clips (N, 3, T, H, W) on the scale 0 to 255 and subtracts the Sports-1M mean. The
    paper also names the variance, which nobody published; where a batch norm follows the first convolution, a
    division by any constant would leave the output the same. Networks without batch norm and pretrained ones
    normalise as their authors do.

    Args:
        backbone: a row of BACKBONES.
        heads: name -> number of outputs, e.g. ``{"classes": 101, "embedding": 1000}``.
    """

    mean: Tensor
    std: Tensor | None

    def __init__(self, backbone: str, heads: dict[str, int], shortcut: str = "A", width: float = 1.0):
        super().__init__()
        self.backbone = BACKBONES[backbone](shortcut, width)
        features = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.heads = nn.ModuleDict({name: nn.Linear(features, n) for name, n in heads.items()})
        self.autocast: torch.dtype | None = None  # see ``precision``
        self.init: dict = {}  # see ``networks``
        self.register_buffer("mean", torch.tensor(SPORTS1M_MEAN).view(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("std", None, persistent=False)
        if preset := getattr(self.backbone, "preset", None):
            self.normalise(preset.mean, preset.std)
        self.to(memory_format=torch.channels_last_3d)

    def normalise(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Use this mean and standard deviation from now on; they are on the scale 0 to 1."""
        self.mean, self.std = (255 * self.mean.new_tensor(v).view(1, 3, 1, 1, 1) for v in (mean, std))

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """The outputs of all heads, before any softmax: name -> (N, outputs)."""
        x = clips.to(self.mean.dtype) - self.mean
        x = (x if self.std is None else x / self.std).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(x.device.type, dtype=self.autocast) if self.autocast else nullcontext():
            features = self.backbone(x)
            out = {name: head(features) for name, head in self.heads.items()}
        return {name: logits.to(self.mean.dtype) for name, logits in out.items()}


def folded(network: nn.Module, parents: type[nn.Module] = nn.Sequential) -> nn.Module:
    """A copy for evaluation whose batch norms are folded into the convolutions before them: the same outputs
    up to rounding, with less to do. ``parents`` are the modules that use their parts in order."""
    network = copy.deepcopy(network).eval()
    for parent in [m for m in network.modules() if isinstance(m, parents)]:
        for (name, conv), (after, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d | nn.Conv3d) and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, after, nn.Identity())
    return network


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """Mean teacher: the exponential moving average of the weights, batch-norm statistics copied.

    The decay starts low, min(decay, 1 − 1/(n + 1)) after n updates, so that a short run is not an average
    of its random start.
    """

    def update(averages, values, n) -> None:  # n has moved to the GPU, which would have to be waited for
        get_ema_multi_avg_fn(min(decay, 1 - 1 / (int(ema.n_averaged) + 1)))(averages, values, n)

    ema = AveragedModel(network, multi_avg_fn=update)
    return ema.eval().requires_grad_(False)
