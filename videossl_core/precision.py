"""In which number format to compute, after a check of this machine on the network's own layers.

Half the bits are twice the speed, if the machine gets them right. Some do not: on CPUs with oneDNN the bf16
weight gradient of a 3x3x3 convolution over two frames can be wrong without a word. So forward and backward
of every layer are compared with fp32 on the shapes of the run, and what fails is computed in fp32.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from videossl_core.models import VideoNet
from videossl_core.params import Params

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 0.03
"""Largest relative error of a layer's output or gradients; bf16 done right has 0.003, wrong 0.9 and more."""
LEAST_COSINE = 0.9
"""Between the whole network's gradients in this format and in fp32 (0.97 in bf16 on random clips)."""


@dataclass(frozen=True)
class Precision:
    """A format, the layers that must not use it, and how far the gradients then point the same way."""

    dtype: str = "fp32"
    fp32_layers: tuple[str, ...] = ()
    cosine: float = 1.0

    def __str__(self) -> str:
        if self.dtype == "fp32":
            return self.dtype
        kept = f", {len(self.fp32_layers)} layers in fp32" if self.fp32_layers else ""
        return f"{self.dtype}{kept} (gradient cosine {self.cosine:.3f})"

    def apply(self, network: VideoNet) -> None:
        """Let the network compute so from now on; do it before copying the network."""
        network.autocast = DTYPES[self.dtype]
        for name in self.fp32_layers:
            layer = network.get_submodule(name)
            layer.register_forward_pre_hook(_enter_fp32)
            layer.register_forward_hook(_leave_fp32)


def _enter_fp32(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    torch.set_autocast_enabled(inputs[0].device.type, False)
    return inputs[0].float()


def _leave_fp32(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    torch.set_autocast_enabled(output.device.type, True)  # as it is in all of ``VideoNet.forward``


def choose(p: Params, network: VideoNet, device: str) -> Precision:
    """The format of ``precision``; ``auto`` is the fastest, if it passes a check of a few seconds, else fp32.

    Raises:
        ValueError: the format that ``precision`` names fails the check.
    """
    name = fastest(device) if p.precision == "auto" else p.precision
    if name == "fp32":
        return Precision()
    # as much as two of the paper's clips
    clips = max(2, min(p.batch_size, 2 * 16 * 112**2 // (p.clip_frames * p.crop_size**2)))
    checked = check(network, (clips, 3, p.clip_frames, p.crop_size, p.crop_size), name, device)
    if layers := checked.fp32_layers:
        some = f"{len(layers)} layers, which stay in fp32: {', '.join(layers[:3])} ..."
        warnings.warn(f"{name} is wrong here in {some}", stacklevel=2)
    if checked.cosine >= LEAST_COSINE:
        return checked
    what = f"gradients in {name} point elsewhere than in fp32 (cosine {checked.cosine:.3f})"
    if p.precision != "auto":
        raise ValueError(f"precision = {name!r}: {what}; use precision = 'auto' or 'fp32'")
    warnings.warn(f"{what}: the run stays in fp32", stacklevel=2)
    return Precision()


def fastest(device: str) -> str:
    """The format that the device computes fastest, right or wrong."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    native = device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if native else "fp32"


def check(network: VideoNet, shape: tuple[int, ...], name: str, device: str) -> Precision:
    """Compare the format with fp32 on clips of this shape: each layer alone, then the whole network."""
    # a copy and a generator of its own: statistics, gradients and draws of the run stay as they are
    network = copy.deepcopy(network).train()
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    inputs: dict[nn.Module, Tensor] = {}

    def keep_input(layer: nn.Module, args: tuple[Tensor]) -> None:
        if isinstance(layer, nn.Conv3d | nn.Linear):
            inputs[layer] = args[0].detach()

    with exact_fp32(), torch.random.fork_rng([device] if device.startswith("cuda") else []):
        with register_module_forward_pre_hook(keep_input):
            network(clips)
        right: dict[str, bool] = {}  # layers of one shape are checked once
        failing = []
        for layer_name, layer in network.named_modules():
            if layer in inputs:
                kind = f"{layer} {inputs[layer].shape}"
                if kind not in right:
                    right[kind] = _is_right(layer, inputs[layer], name)
                failing += [] if right[kind] else [layer_name]
        exact = gradients(network, clips)
        Precision(name, tuple(failing)).apply(network)
        a, b = (g.cpu().double() for g in (exact, gradients(network, clips)))  # sums in float32 drift
        cosine = (a @ b / a.norm() / b.norm()).nan_to_num(-1)
    return Precision(name, tuple(failing), cosine.item())


def _is_right(layer: nn.Module, x: Tensor, name: str) -> bool:
    """Are output and gradients close to those in fp32? Never where anything is not a number."""

    def run(enabled: bool) -> list[Tensor]:
        given = x.clone().requires_grad_()
        with torch.autocast(x.device.type, dtype=DTYPES[name], enabled=enabled):
            out = layer(given)
        g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        return [out, *torch.autograd.grad(out, [given, *layer.parameters()], g)]

    pairs = zip(run(False), run(True), strict=True)
    return all((b.float() - a).norm() / a.norm().clamp_min(1e-30) <= TOLERANCE for a, b in pairs)


def gradients(network: VideoNet, clips: Tensor) -> Tensor:
    """All gradients of a cross-entropy on every head, as one vector."""
    torch.manual_seed(0)  # the same dropout each time
    loss = sum(-out.log_softmax(-1)[:, 0].mean() for out in network(clips).values())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


@contextmanager
def exact_fp32() -> Iterator[None]:
    """fp32 that is fp32: without TF32, which GPUs take for convolutions unless told otherwise."""
    was = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = was
