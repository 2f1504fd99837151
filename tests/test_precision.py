"""Half the bits only where this machine gets them right: faults are planted, found, and worked around."""

import copy
import math

import pandas as pd
import pytest
import torch
from support.helpers import same, slow_after, stop_at, without_times
from torch import nn

from videossl_core import models, precision, prepare, training
from videossl_core.precision import Precision


class Faulty(nn.Conv3d):
    """A convolution that is right in fp32. Under autocast its weight gradient is wrong, as on some CPUs."""

    def forward(self, x):
        weight = self.weight.clone()
        if torch.is_autocast_enabled(x.device.type):
            weight.register_hook(lambda g: g * self.factor)
        return nn.functional.conv3d(x, weight, self.bias, self.stride, self.padding)


def network(faulty: str = "", factor: float = 1.0) -> models.VideoNet:
    torch.manual_seed(0)
    net = models.VideoNet("resnet10", {"classes": 5, "embedding": 20}, width=0.25)
    if faulty:
        layer = net.get_submodule(faulty)
        layer.__class__, layer.factor = Faulty, factor
    return net


CLIPS = (8, 3, 8, 48, 48)  # two frames never meet a padded convolution's real fault: see below


@pytest.fixture(scope="module")
def clean() -> Precision:
    """What the check says of this machine, with nothing planted."""
    return precision.check(network(), CLIPS, "bf16", "cpu")


@pytest.mark.parametrize(
    ("layer", "factor"),
    slow_after(
        2,
        [("backbone.0", 1.5), ("backbone.6.body.0", math.nan), ("backbone.0", math.inf)]
        + [("backbone.6.body.0", factor) for factor in (math.inf, 0.0, 1.5, -1.0)],
    ),
)
def test_wrong_gradient_keeps_layer_in_fp32(clean, layer, factor):
    chosen = precision.check(network(layer, factor), CLIPS, "bf16", "cpu")
    assert set(chosen.fp32_layers) == {layer, *clean.fp32_layers}
    assert chosen.cosine > 0.9
    net = network(layer, factor)
    chosen.apply(net)
    clips = torch.randint(0, 256, CLIPS, dtype=torch.uint8)
    assert all(g.isfinite().all() for g in precision.gradients(net, clips).split(1000))
    unprotected = network(layer, factor)
    Precision("bf16", clean.fp32_layers).apply(unprotected)
    right, wrong = (precision.gradients(n, clips) for n in (net, unprotected))
    assert not torch.allclose(right, wrong, rtol=0.1, atol=1e-3)


def real_fault() -> bool:
    """Does this machine have the fault that precision.py is about? By PyTorch alone, without our check."""
    torch.manual_seed(0)
    conv = nn.Conv3d(64, 64, 3, padding=1, bias=False)
    x, g = torch.randn(2, 64, 2, 6, 6), torch.randn(2, 64, 2, 6, 6)
    right = torch.autograd.grad(conv(x), conv.weight, g)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
    half = torch.autograd.grad(out, conv.weight, g.bfloat16())[0]
    return not (half - right).norm() < 0.1 * right.norm()


@pytest.mark.slow
def test_real_fault_is_found_where_it_exists():
    """Over 16 frames the third stage has two: its padded convolutions' weight gradients are wrong there."""
    net = models.VideoNet("resnet18", {"classes": 5})
    chosen = precision.check(net, (2, 3, 16, 48, 48), "bf16", "cpu")
    assert bool(chosen.fp32_layers) == real_fault()
    if real_fault():  # all convolutions between maps of two frames, and no other
        assert chosen.fp32_layers == ("backbone.8.body.3", "backbone.9.body.0", "backbone.9.body.3")
    assert not precision.check(net, (8, 3, 8, 48, 48), "bf16", "cpu").fp32_layers[3:]


def test_check_leaves_no_trace():
    net = network()
    before, draws = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    precision.check(net, CLIPS, "bf16", "cpu")
    assert same(net.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(w.grad is None for w in net.parameters())
    assert net.autocast is None


def test_copied_network_uses_its_own_weights():
    """Mean teacher copies the network after its layers were told to stay in fp32."""
    net = network()
    Precision("bf16", ("backbone.0",)).apply(net)
    twin = models.averaged(net, 0.9).module
    clips = torch.randint(0, 256, (2, 3, 8, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        before = net.eval()(clips)["classes"]
        twin.backbone[0].weight.zero_()
        assert torch.equal(net(clips)["classes"], before)
        assert not torch.equal(twin.eval()(clips)["classes"], before)
        assert not torch.is_autocast_enabled("cpu")


@pytest.fixture
def half(tiny, monkeypatch):
    """Parameters of a small run for which bf16 is good enough, on a machine that is fast at it."""
    monkeypatch.setattr(precision, "fastest", lambda device: "bf16")
    monkeypatch.setattr(precision, "LEAST_COSINE", 0.5)
    size = {"batch_size": 8, "crop_size": 32}
    return lambda **given: tiny(**{"method": "mt_sd", "precision": "auto", "steps": 6} | size | given)


@pytest.mark.filterwarnings("ignore:bf16 is wrong here")
@pytest.mark.slow
def test_half_precision_resumes_exactly(half):
    p = half()
    whole = training.train(p)
    assert whole.read_provenance()["precision"].startswith("bf16")
    state = without_times(whole.read_checkpoint())
    assert state["precision"]["dtype"] == "bf16"
    again = half(outputs=p.outputs.parent / "again")
    stop_at(again, 5)
    assert same(without_times(training.train(again).read_checkpoint()), state)
    net, _ = training.load_network(whole, p)
    assert net.autocast is torch.bfloat16
    full = training.train(half(precision="fp32", overwrite=True)).read_checkpoint()["model"]
    assert not same(full, state["model"])
    for name, weight in full.items():
        if name.endswith("weight"):
            assert torch.cosine_similarity(weight.flatten(), state["model"][name].flatten(), dim=0) > 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:bf16 is wrong here")
def test_changed_format_warns_on_resume(half, monkeypatch):
    p = half()
    stop_at(p, 3)
    monkeypatch.setattr(precision, "fastest", lambda device: "fp32")
    with pytest.warns(UserWarning, match=r"trained with precision .*'bf16'.*machine now give .*'fp32'"):
        assert training.train(p).finished


@pytest.mark.filterwarnings("ignore:bf16 is wrong here")
def test_gradients_elsewhere_keep_fp32(half, monkeypatch):
    monkeypatch.setattr(precision, "LEAST_COSINE", 1.01)
    net = training.build_network(half(), 14)
    with pytest.warns(UserWarning, match=r"gradients in bf16 point elsewhere.*the run stays in fp32"):
        assert precision.choose(half(), net, "cpu") == Precision()
    with pytest.raises(ValueError, match=r"precision = 'bf16': gradients.*use precision = 'auto' or 'fp32'"):
        precision.choose(half(precision="bf16"), net, "cpu")


def test_fp32_layers_are_named(half, monkeypatch):
    two = Precision("bf16", ("backbone.0", "heads.classes"), 0.99)
    monkeypatch.setattr(precision, "check", lambda *_: two)
    net = training.build_network(half(), 14)
    with pytest.warns(UserWarning, match=r"wrong here in 2 layers, which stay in fp32: backbone.0, heads"):
        assert precision.choose(half(), net, "cpu") == two
    assert str(two) == "bf16, 2 layers in fp32 (gradient cosine 0.990)"


@pytest.mark.filterwarnings("ignore:fp16 is wrong here")
@pytest.mark.slow
def test_fp16_skips_overflows_and_keeps_its_scale(half, monkeypatch):
    monkeypatch.setattr(precision, "LEAST_COSINE", -2)
    run = training.train(half(precision="fp16", method="sd", steps=3, crop_size=24))
    state = run.read_checkpoint()
    assert state["scaler"]["scale"] >= 1
    assert all(w.isfinite().all() for w in state["model"].values())
    assert pd.read_csv(run.log).loss.notna().all()


@pytest.mark.slow
def test_fp16_overflow_at_every_scale_stops(tiny):
    p = tiny(steps=5, method="supervised")
    trainer = training.Trainer(p, prepare.prepare(p))
    Precision("fp16").apply(trainer.network)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.network.heads["classes"].bias.register_hook(lambda g: g * math.inf)
    with pytest.raises(FloatingPointError, match=r"gradient of heads.classes.bias is not finite"):
        list(trainer)
    assert trainer.scaler.get_scale() == 1
    assert trainer.step_number == 2
