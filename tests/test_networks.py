"""Where a backbone's first weights come from: published ones, a file, another run; and what is refused."""

from urllib.error import URLError

import pandas as pd
import pytest
import torch
import torchvision
from support.helpers import same, stop_at, without_times
from torch import nn

from videossl_core import models, params, precision, prepare, runs, training
from videossl_core.networks import build_network
from videossl_core.params import ParameterError
from videossl_lab import paper, results

OTHER_CLIPS = (
    r"r3d_18 were trained on clips of 16 frames at 112 x 112; here clip_frames = 8 and crop_size = 24"
)


@pytest.fixture(scope="module")
def r3d() -> dict:
    """Random weights in torchvision's format, for 5 classes, with statistics of their own."""
    torch.manual_seed(7)
    net = torchvision.models.video.r3d_18(num_classes=5)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.running_mean.uniform_(-1, 1)
    return net.state_dict()


@pytest.fixture
def r3d_file(r3d, tmp_path):
    torch.save(r3d, tmp_path / "r3d.pth")
    return tmp_path / "r3d.pth"


def finished(p) -> runs.Run:
    return training.train(p)


def backbone_of(checkpoint: dict, part: str = "model") -> dict:
    names = {key: key.removeprefix("module.").removeprefix("backbone.") for key in checkpoint[part]}
    return {name: checkpoint[part][key] for key, name in names.items() if "backbone." in key}


@pytest.mark.slow
def test_file_of_torchvision(tiny, r3d, r3d_file):
    """Its last layer is dropped; the heads are those of a network from scratch; the pixels are normalised as
    torchvision's own transform does."""
    given = {"backbone": "r3d_18", "width": 1, "method": "videossl"}
    with pytest.warns(UserWarning, match=OTHER_CLIPS):
        network = build_network(tiny(**given, init=r3d_file), 14)
    state = network.backbone.state_dict()
    assert same(dict(state), {name: w for name, w in r3d.items() if not name.startswith("fc.")})
    scratch = build_network(tiny(**given), 14)
    assert same(scratch.heads.state_dict(), network.heads.state_dict())
    assert scratch.init == {}
    own = torchvision.models.video.R3D_18_Weights.KINETICS400_V1.transforms(
        resize_size=[24, 24], crop_size=[24, 24]
    )
    clips = torch.randint(0, 256, (2, 8, 3, 24, 24), dtype=torch.uint8)
    whole = torchvision.models.video.r3d_18()
    whole.fc = nn.Identity()
    whole.load_state_dict(state)
    with torch.no_grad():
        wanted = network.heads["embedding"](whole.eval()(own(clips)))
        out = network.eval()(clips.transpose(1, 2))["embedding"]
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_published_weights(tiny, r3d, tmp_path, monkeypatch):
    """From the folder of torch hub; without it, what cannot be downloaded is said with the way out."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    p = tiny(backbone="r3d_18", width=1, init="kinetics400", crop_size=112, frame_size=112, clip_frames=16)

    def no_network(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    address = (
        r"no route to host.* Give a file of weights of r3d_18 \(https://.*r3d_18-b3b3357e.pth\) or a run's"
    )
    with pytest.raises(ParameterError, match=f"init = kinetics400: .*{address}"):
        build_network(p, 14)
    torch.save(r3d, tmp_path / "checkpoints/r3d_18-b3b3357e.pth")
    network = build_network(p, 14)  # and no warning: these are the clips of its training
    assert torch.equal(network.backbone.stem[0].weight, r3d["stem.0.weight"])
    assert torch.allclose(network.mean.flatten(), 255 * torch.tensor([0.43216, 0.394666, 0.37645]))
    assert torch.allclose(network.std.flatten(), 255 * torch.tensor([0.22803, 0.22145, 0.216989]))
    assert network.init["normalisation"] == [[0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989]]


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models.video))
def test_clips_of_published_weights(name):
    """Their length stands in torchvision's description alone."""
    length = {"s3d": 128, "swin3d_t": 32, "swin3d_s": 32, "swin3d_b": 32}.get(name, 16)
    assert f"clip_len={length}`" in models.kinetics400(name).meta["_docs"]


def test_what_is_no_file_of_weights(tiny, tmp_path):
    for content, message in (
        ({"0.weight": torch.zeros(8, 3, 7, 7, 7), "x.bias": torch.zeros(2)}, "Missing key.*1.weight"),
        (torch.zeros(2), r"init = .*w.pth: "),
        (b"not weights", r"init = .*w.pth: "),
    ):
        if isinstance(content, bytes):
            (tmp_path / "w.pth").write_bytes(content)
        else:
            torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ParameterError, match=message) as error:
            build_network(tiny(init=tmp_path / "w.pth"), 14)
        assert "Give a file of weights of resnet10 or a run's folder" in str(error.value)
        assert len(str(error.value)) < 600
    with pytest.raises(
        ParameterError, match=r"no such file; did you mean 'kinetics400'\?; a relative path starts"
    ):
        build_network(tiny(init="kinetics40"), 14)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParameterError, match=r"empty/checkpoint.pt"):
        build_network(tiny(init=tmp_path / "empty"), 14)


@pytest.mark.slow
def test_run_as_start(tiny):
    """The backbone of the run as it is evaluated, new heads; another backbone is refused."""
    first = finished(tiny(method="mean_teacher", variant="first", ema_decay=0.5))
    checkpoint = first.read_checkpoint()
    for given, part in (({}, "ema"), ({"eval_model": "student"}, "model")):
        if given:
            first = finished(tiny(method="mean_teacher", variant="student", ema_decay=0.5, **given))
        network = build_network(tiny(init=first.folder, seed=3), 14)
        assert same(dict(network.backbone.state_dict()), backbone_of(checkpoint, part))
        assert same(network.heads.state_dict(), build_network(tiny(seed=3), 14).heads.state_dict())
        assert (network.std, network.init["normalisation"]) == (None, None)
    assert same(
        build_network(tiny(init=first.checkpoint), 14).state_dict(),
        build_network(tiny(init=first.folder), 14).state_dict(),
    )
    for name, value, was in (
        ("width", 0.25, "0.125"),
        ("backbone", "resnet18", "resnet10"),
        ("shortcut", "A_detached", "A"),
    ):
        with pytest.raises(ParameterError, match=f"that run has {name} = {was}, this one {value}"):
            build_network(tiny(init=first.folder, **{name: value}), 14)


@pytest.mark.slow
def test_normalisation_is_inherited(tiny, r3d_file, monkeypatch):
    """A run that starts from a run that started from torchvision's; neither needs its start once trained."""
    given = {"backbone": "r3d_18", "width": 1, "steps": 1, "eval_every": 1, "method": "supervised"}
    with pytest.warns(UserWarning, match=OTHER_CLIPS):
        first = finished(tiny(**given, init=r3d_file))
    second_p = tiny(**given, init=first.folder, variant="second")
    second = finished(second_p)
    mean = 255 * torch.tensor([0.43216, 0.394666, 0.37645])
    assert torch.allclose(build_network(second_p, 14).mean.flatten(), mean)
    recorded = second.read_provenance()["init"]
    assert recorded["normalisation"] == first.read_provenance()["init"]["normalisation"]
    assert recorded["sha256"] != first.read_provenance()["init"]["sha256"]
    r3d_file.unlink()
    first.checkpoint.unlink()
    network, _ = training.load_network(second, second_p)
    assert torch.allclose(network.mean.flatten(), mean)
    assert network.std is not None
    found = results.find(tiny().outputs, variants=True).set_index("variant").settings
    assert found[""] != found["second"]


def narrow_file(tmp_path, seed: int = 5):
    """Weights of the tiny network's backbone, in a file."""
    torch.manual_seed(seed)
    torch.save(models.VideoNet("resnet10", {}, width=0.125).backbone.state_dict(), tmp_path / "narrow.pth")
    return tmp_path / "narrow.pth"


@pytest.mark.slow
def test_start_is_checked_when_a_run_resumes(tiny, tmp_path):
    """It goes on with the weights that it began with; a wrong start is refused before the data are read."""
    p = tiny(init=narrow_file(tmp_path))
    whole = finished(p.but(variant="whole"))
    stop_at(p, 3)
    assert same(without_times(finished(p).read_checkpoint()), without_times(whole.read_checkpoint()))
    assert whole.read_provenance()["init"]["normalisation"] is None
    p = p.but(seed=1)
    stop_at(p, 3)
    narrow_file(tmp_path, seed=6)
    with pytest.raises(runs.RunError, match=r"was trained with init = .*the data and machine now give"):
        finished(p)
    (tmp_path / "narrow.pth").unlink()
    with pytest.raises(ParameterError, match=r"narrow.pth: no such file"), runs.open(p):
        pytest.fail("opened")
    with runs.open(p.but(seed=0)) as run:  # finished
        assert run.finished
    with pytest.raises(runs.RunError, match=r"init was '.*narrow.pth' and is now 'scratch'"):
        finished(p.but(init="scratch"))


@pytest.mark.slow
def test_other_starts_are_other_settings(tiny, tmp_path):
    """Whatever the name of the file; two methods that start alike share theirs."""
    file = narrow_file(tmp_path)
    for variant, given in (("", {}), ("a", {"init": file}), ("lr", {"init": file, "backbone_lr": 0.001})):
        finished(tiny(variant=variant, method="supervised", **given))
    moved = file.rename(tmp_path / "moved.pth")
    finished(tiny(variant="a", method="pseudo_label", init=moved))
    narrow_file(tmp_path, seed=6)
    finished(tiny(variant="b", method="supervised", init=file))
    found = results.find(tiny().outputs, variants=True).set_index(["method", "variant"]).settings
    assert found["pseudo_label", "a"] == found["supervised", "a"]
    assert found["supervised"].nunique() == 4


def test_two_learning_rates(tiny):
    """The same bits when they are the same; at 0 the backbone stays; both are divided alike."""
    data = prepare.prepare(tiny())

    def after(steps, **given):
        trainer = training.Trainer(tiny(lr=0.05, lr_drop_every=2, **given), data)
        for step in range(steps):
            trainer.step({n: v for n, v in trainer.batches[step].items() if n != "step"})
        return trainer

    plain, alike, frozen = (after(3, **given) for given in ({}, {"backbone_lr": 0.05}, {"backbone_lr": 0}))
    assert len(plain.optimizer.param_groups) == 1
    assert same(plain.network.state_dict(), alike.network.state_dict())
    start = build_network(tiny(), 14)
    for part, stays in (("backbone", True), ("heads", False)):
        pairs = zip(*(getattr(net, part).parameters() for net in (start, frozen.network)), strict=True)
        assert all(torch.equal(*pair) == stays for pair in pairs)
    fifth = after(3, backbone_lr=0.01).optimizer.param_groups
    assert [group["lr"] for group in fifth] == pytest.approx([0.005, 0.001])
    assert training.learning_rate(2, params.Params(lr_drop_every=2, backbone_lr=0.5)) == pytest.approx(0.001)


def with_dropout(shortcut: str, width: float) -> nn.Module:
    net = models.ResNet3D(models.BasicBlock, (1, 1, 1, 1), shortcut, width)
    net.append(nn.Dropout(0.5))
    return net


@pytest.mark.slow
def test_dropout_draws_alike(tiny, monkeypatch):
    """In a resumed run, and in both formats of the check of the machine; not in every step."""
    monkeypatch.setitem(models.BACKBONES, "resnet10", with_dropout)
    p = tiny(method="supervised")
    whole = finished(p.but(variant="whole"))
    stop_at(p, 3)
    torch.manual_seed(99)
    assert same(without_times(finished(p).read_checkpoint()), without_times(whole.read_checkpoint()))
    network = build_network(p, 14)
    clips = torch.randint(0, 256, (4, 3, 8, 24, 24), dtype=torch.uint8)
    assert torch.equal(*(precision.gradients(network, clips) for _ in range(2)))
    masks = []
    for step, rank in ((0, 0), (0, 0), (1, 0), (0, 1)):
        training.seed_dropout(0, step, rank)
        masks.append(nn.functional.dropout(torch.ones(64)).tolist())
    assert masks[0] == masks[1]
    assert len({tuple(mask) for mask in masks}) == 3


@pytest.mark.slow
def test_run_of_a_transformer(tiny):
    """Without batch norm and with stochastic depth; it normalises as its authors do, from scratch too."""
    p = tiny(method="videossl", backbone="swin3d_t", width=1, steps=1, eval_every=1)
    run = finished(p)
    network, classes = training.load_network(run, p)
    mean, std = 255 * torch.tensor([0.485, 0.456, 0.406]), 255 * torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(network.mean.flatten(), mean)
    assert torch.allclose(network.std.flatten(), std)
    assert len(classes) == 14
    again = build_network(tiny(backbone="swin3d_t", width=1, init=run.folder), 14)
    assert again.init["normalisation"] is None
    assert torch.equal(again.std, network.std.cpu())


def test_table_of_different_settings_warns():
    row = {
        "dataset": "birds",
        "method": "sd",
        "label_pct": 10,
        "clip_top1": 50.0,
        "video_top1": 60.0,
        "settings": "a",
    }
    both = pd.DataFrame([row, row | {"settings": "b", "video_top1": 80.0}])
    with pytest.warns(UserWarning, match="birds: runs of different settings"):
        assert paper.results_table(both, "birds")["SD", "video"].item() == "70.0 ± 14.1"
    paper.results_table(both.head(1), "birds")
