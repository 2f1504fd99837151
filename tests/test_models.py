"""The published network: parameter counts, feature maps, shortcuts."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.helpers import slow_after
from torch.utils.flop_counter import FlopCounterMode

from videossl_core import devices
from videossl_core.models import BACKBONES, Shortcut, StemPool, VideoNet, folded


@pytest.mark.parametrize(
    ("shortcut", "classes", "published"),
    [
        ("A", 101, 33_081_893),
        ("A_detached", 101, 33_081_893),
        ("A", 51, 33_056_243),
        ("A", 100, 33_081_380),
        ("A", 400, 33_235_280),
        ("B", 101, 33_255_717),
        ("B", 400, 33_409_104),
    ],
)
def test_published_parameter_counts(shortcut, classes, published):
    with torch.device("meta"):  # counted, not filled
        network = VideoNet("resnet18", {"classes": classes}, shortcut)
        both = VideoNet("resnet18", {"classes": classes, "embedding": 1000}, shortcut)
    assert sum(w.numel() for w in network.parameters()) == published
    assert sum(w.numel() for w in both.parameters()) == published + 513 * 1000


@pytest.mark.slow
def test_feature_maps_and_flops():
    network = VideoNet("resnet18", {"classes": 101}).eval()
    shapes = []
    for layer in network.backbone:
        layer.register_forward_hook(lambda _layer, _inputs, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 16, 112, 112, dtype=torch.uint8))
    assert (shapes[0], shapes[3], shapes[-1]) == (
        (64, 16, 56, 56),
        (64, 8, 28, 28),
        (512,),
    )  # stem, pool, end
    stages = shapes[4:12:2]
    assert stages == [(64, 8, 28, 28), (128, 4, 14, 14), (256, 2, 7, 7), (512, 1, 4, 4)]
    first = 343 * 3 * 64 * 16 * 56 * 56 + 4 * 27 * 64 * 64 * 8 * 28 * 28  # stem and stage 1
    rest = [(64, 128, 4 * 14 * 14), (128, 256, 2 * 7 * 7), (256, 512, 1 * 4 * 4)]
    later = sum(27 * (a * b + 3 * b * b) * places for a, b, places in rest)
    assert counter.get_total_flops() / 2 == first + later + 512 * 101  # multiply-adds, 8.30e9


SMALLEST = {"s3d": (14, 224, 224), "mvit_v1_b": (16, 224, 224), "mvit_v2_s": (16, 224, 224)}
TORCHVISION = torchvision.models.list_models(module=torchvision.models.video)
NORMED = [name for name in BACKBONES if name[:4] not in ("mvit", "swin")]
"""With batch norm."""


def clips_for(backbone: str, count: int, *size: int) -> torch.Tensor:
    """Of this size (frames, height, width); a single one of those that take no small ones, for it takes long
    and has places enough for a batch norm."""
    if backbone in SMALLEST:
        count, size = 1, SMALLEST[backbone]
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


# the larger ones of two families are left to their shapes, below
@pytest.mark.parametrize("backbone", slow_after(1, [*NORMED, "swin3d_t", "mvit_v2_s"]))
def test_two_heads_on_every_backbone(backbone):
    network = VideoNet(backbone, {"classes": 7, "embedding": 1000})
    clips = clips_for(backbone, 2, 8, 32, 32)
    count, out = len(clips), network(clips)
    assert {k: tuple(v.shape) for k, v in out.items()} == {"classes": (count, 7), "embedding": (count, 1000)}
    sum(v.square().mean() for v in out.values()).backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in network.parameters())


@pytest.mark.parametrize("name", TORCHVISION)
def test_shapes_of_torchvision(name):
    """All of its networks are there, whole but for the last layer: the published number of parameters."""
    published = torchvision.models.get_model_weights(name).KINETICS400_V1
    with torch.device("meta"):  # counted, not computed
        network = VideoNet(name, {"classes": 7})
        out = network(torch.zeros(2, 3, *SMALLEST.get(name, (8, 32, 32)), dtype=torch.uint8))["classes"]
    assert out.shape == (2, 7)
    count = sum(w.numel() for w in network.backbone.parameters())
    assert count == published.meta["num_params"] - 400 * (network.heads["classes"].in_features + 1)


@pytest.mark.parametrize("name", slow_after(0, sorted(TORCHVISION, reverse=True)))
def test_features_of_torchvision(name):
    """Its own last layer on our features gives its own output, for pixels that its own code normalises."""
    torch.manual_seed(0)
    whole, network = torchvision.models.get_model(name).eval(), VideoNet(name, {"classes": 400}).eval()
    weights = whole.state_dict()
    last = [
        key.removesuffix(".weight") for key in weights if key.endswith("weight") and 400 in weights[key].shape
    ]
    parts = {key: w for key, w in weights.items() if not key.startswith(f"{last[0]}.")}
    network.backbone.load_state_dict(parts)
    head = {key: weights[f"{last[0]}.{key}"] for key in ("weight", "bias")}
    network.heads["classes"].load_state_dict(head | {"weight": head["weight"].flatten(1)})
    own = torchvision.models.get_model_weights(name).KINETICS400_V1.transforms()
    network.normalise(own.mean, own.std)
    frames, side, _ = SMALLEST.get(name, (4, 32, 32))
    clips = torch.randint(0, 256, (1, frames, 3, side, side), dtype=torch.uint8)
    own.resize_size = own.crop_size = [side, side]
    with torch.no_grad():
        wanted, out = whole(own(clips)), network(clips.transpose(1, 2))["classes"]
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["A", "A_detached"])
def test_shortcut_a_pools_and_pads(kind):
    x = torch.randn(2, 3, 4, 6, 5, requires_grad=True)
    y = Shortcut(kind, 3, 8, 2)(x)
    assert torch.equal(y[:, :3], F.avg_pool3d(x, 1, 2))
    assert y[:, 3:].abs().sum() == 0
    assert y.shape[1] == 8
    assert y.requires_grad == (kind == "A")


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match=r"width = 0.5: torchvision's r3d_18 has one width"):
        VideoNet("r3d_18", {"classes": 2}, width=0.5)
    with pytest.raises(ValueError, match="A, A_detached, B"):
        Shortcut("C", 3, 8, 2)


def narrow(backbone: str, **given) -> VideoNet:
    """In double precision, and an eighth as wide where a backbone has more than one width."""
    torch.manual_seed(0)
    width = {} if backbone in TORCHVISION else {"width": 0.125}
    return VideoNet(backbone, {"classes": 3}, **width, **given).double()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NORMED)
def test_input_variance_would_change_nothing(backbone):
    """The reason why the unpublished Sports-1M variance can be left out (see VideoNet)."""
    network = narrow(backbone)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.eps = 1e-14  # the one thing that sees the scale; deep networks amplify it
    clips = clips_for(backbone, 3, 8, 32, 32).double()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0
    usual = network(clips)["classes"]
    scaled = network((clips - network.mean) / 58 + network.mean)["classes"]
    assert torch.allclose(usual, scaled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", slow_after(4, NORMED))
def test_folded_batch_norms_change_no_output(backbone):
    network = narrow(backbone, shortcut="B")
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            for values in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                values.uniform_(0.5, 1.5)
    clips = clips_for(backbone, 2, 4, 16, 16).double()
    before = sum(isinstance(m, torch.nn.BatchNorm3d) for m in network.modules())
    quick = folded(network)
    assert network.training
    assert sum(isinstance(m, torch.nn.BatchNorm3d) for m in quick.modules()) < before / 2
    torch.testing.assert_close(quick(clips)["classes"], network.eval()(clips)["classes"])


@pytest.mark.parametrize("shape", [(2, 3, 16, 12, 10), (1, 2, 1, 1, 1), (2, 3, 5, 7, 8)])
def test_pooling_by_slices(shape):
    pool = StemPool()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    usual = pool(x)
    g = torch.randn_like(usual)
    with devices.reproducible(True):
        sliced = pool(x)
    assert torch.equal(usual, sliced)
    gradients = [torch.autograd.grad(out, x, g)[0] for out in (usual, sliced)]
    torch.testing.assert_close(*gradients)
