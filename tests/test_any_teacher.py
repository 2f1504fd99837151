"""Any classifier of torchvision or timm as the teacher, against these libraries' networks and pictures."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from support.helpers import slow_after
from torch import nn
from torchvision import models

from videossl_core import methods, params, prepare, training
from videossl_core.batches import Batches
from videossl_core.data import codec, demo
from videossl_core.data.frames import FrameStore, StoreSettings
from videossl_core.image_classifiers import TEACHERS, TeacherError, row_of
from videossl_core.params import ParameterError
from videossl_core.teacher import Classifier, _fast, feature_map
from videossl_lab import clips, estimate

SHUFFLENET, FEATURES = "torchvision:shufflenet_v2_x0_5", "timm:convnextv2_atto.fcmae"
SIZES = {SHUFFLENET: "", "torchvision:convnext_tiny": "-236to224px", "timm:test_vit.r160_in1k": "-168to160px"}


def build(name: str) -> nn.Module:
    """The library's own network with random weights, and the statistics of pictures, as after training."""
    torch.manual_seed(0)
    library, _, model = name.partition(":")
    options = {"transform_input": True, "init_weights": True} if model == "googlenet" else {}
    net = models.get_model(model, **options) if library == "torchvision" else timm.create_model(model)
    net.requires_grad_(False)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1
    for value in net.parameters():  # some begin at 0
        value += 0.02 * torch.randn_like(value)
    net.train()(own_tensor(name, pictures(row_of(name).side)))
    return net.eval()


def save(net: nn.Module, path: Path) -> Path:
    """A file of weights as the library publishes them."""
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def pictures(side: int, count: int = 3) -> torch.Tensor:
    """(N, 3, side, side) uint8 of areas and edges, each another."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (count, 3, 6, 6), generator=generator).float()
    return nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255).byte()


def own_tensor(name: str, frames: torch.Tensor) -> torch.Tensor:
    """Pixels as the library's own preprocessing ends, without its resizing."""
    library, _, model = name.partition(":")
    if library == "torchvision":
        transforms = models.get_model_weights(model).DEFAULT.transforms()
        mean, std = transforms.mean, transforms.std
    else:
        shown = timm.data.resolve_model_data_config(timm.create_model(model))
        mean, std = shown["mean"], shown["std"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    return (frames / 255 - mean) / std


@pytest.mark.parametrize(
    "name",
    slow_after(
        7,
        [
            SHUFFLENET,
            "torchvision:squeezenet1_1",
            "timm:test_vit.r160_in1k",
            "timm:test_resnet",
            "timm:test_efficientnet",
            "timm:test_convnext",
            "timm:test_nfnet",
            "timm:test_byobnet",
            "timm:test_mambaout",
            "timm:test_coatnet",
            "torchvision:mobilenet_v3_small",
            "torchvision:regnet_y_400mf",
            "torchvision:resnet18",
            "torchvision:densenet121",
            "torchvision:googlenet",
            "torchvision:convnext_tiny",
            "torchvision:swin_t",
            "torchvision:vit_b_32",
        ],
    ),
)
def test_outputs_are_those_of_the_librarys_network(name, tmp_path):
    """Loaded from a file, folded, in place: the logits up to a constant, and where the head gets the mean of
    the last map, that too. Of 11 frames the last part is not full."""
    net = build(name)
    path = save(net, tmp_path / ("w.pth" if name.startswith("torchvision") else "w.safetensors"))
    classifier = Classifier(name, path)
    frames = pictures(classifier.row.side, 11)
    vectors = []  # what the last layer gets
    if name.startswith("torchvision"):
        layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
        first = {"torchvision:mobilenet_v3_small": 0}.get(name, -1)
        if layers:
            layers[first].register_forward_pre_hook(lambda _, inputs: vectors.append(inputs[0]))
        if "vit" in name:  # the class token goes to the head, the others are the map
            net.encoder.register_forward_hook(lambda *a: vectors.insert(0, a[2][:, 1:].mean(1)))
        if "squeezenet" in name:
            net.classifier.register_forward_pre_hook(lambda _, inputs: vectors.append(inputs[0].mean((2, 3))))
    logits = net(own_tensor(name, frames))
    if name.startswith("timm"):
        maps = net.forward_features(own_tensor(name, frames))
        if maps.ndim == 3:
            maps = maps[:, net.num_prefix_tokens :, None]
        vectors.append(maps.mean((1, 2) if maps.shape[-1] == net.num_features else (2, 3)))
    h, features = classifier(frames)
    assert logits.std(0).max() > 1e-2 * logits.std() > 0  # pictures differ
    exact = (logits - logits.logsumexp(1, keepdim=True)).double()
    assert torch.allclose(h.double().log(), exact, rtol=0, atol=1e-4 * max(1, logits.std()))
    assert features.shape == (11, classifier.features, 2, 2)
    if "convnext_tiny" in name:  # its head begins with a norm
        vectors = [net.avgpool(net.features(own_tensor(name, frames))).flatten(1)]
    assert torch.allclose(features.mean((2, 3)), vectors[0], rtol=1e-3, atol=1e-4 * vectors[0].abs().max())


@pytest.mark.slow
def test_real_weights_in_another_library(tmp_path):
    """Those of efficientnet_lite0 from the package index, in timm's network of the same layers, whose mean
    and deviation are half a level off."""
    net, values = (
        timm.create_model("tf_efficientnet_lite0"),
        TEACHERS["efficientnet_lite0"].weights().values(),
    )
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
    classifier = Classifier("timm:tf_efficientnet_lite0", save(net, tmp_path / "lite0.safetensors"))
    shown = [demo.frames(noun, "rises", 0)[16] for noun in ("clock", "spider_web", "crossword")]
    resized = [np.asarray(Image.fromarray(frame).resize((224, 224))) for frame in shown]
    frames = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    (h, features), (other_h, other_features) = classifier(frames), Classifier("efficientnet_lite0")(frames)
    assert torch.allclose(h, other_h, atol=0.02)
    assert other_h.max() > 0.2
    assert torch.allclose(features, other_features, atol=0.02 * other_features.max())


class Crossed(nn.Module):
    """Uses its convolutions in another order than it has them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(self.second(self.first(x))) + x).mean((2, 3))


class Residual(nn.Module):
    """Needs what went into its activation once more."""

    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x):
        x = self.first(x)
        return (self.act(x) - x).mean((2, 3))


@pytest.mark.parametrize("kind", [Crossed, Residual])
def test_network_that_cannot_be_folded_stays(kind):
    torch.manual_seed(0)
    net, x = kind().eval(), torch.rand(2, 3, 4, 4)
    if kind is Crossed:
        net.norm.running_var.fill_(3)
    expected = net(x)
    assert torch.equal(_fast(net, x)(x), expected)


@pytest.mark.parametrize(
    ("shape", "classes", "expected"),
    [
        ((2, 5, 3, 3), 1000, (2, 5, 3, 3)),
        ((2, 3, 3, 5), 1000, (2, 5, 3, 3)),
        ((2, 9, 5), 1000, (2, 5, 3, 3)),
        ((2, 12, 5), 1000, (2, 5, 3, 3)),
        ((2, 5, 3, 3), 5, None),
        ((2, 5, 1, 1), 1000, None),
        ((2, 3, 5), 1000, None),
        ((2, 5), 1000, None),
        ((2, 5, 3, 4), 1000, None),
    ],
)
def test_what_is_a_map(shape, classes, expected):
    """The first numbers are the batch; three more tokens than places are those of the class and such."""
    x = torch.arange(float(math.prod(shape))).view(shape)
    found = feature_map(x, classes)
    assert (found if found is None else tuple(found.shape)) == expected
    if len(shape) == 3 and expected:
        assert found[1, 2, 0, 1] == x[1, shape[1] - 9 + 1, 2]
    elif expected and shape[3] == 5:
        assert found[1, 4, 0, 2] == x[1, 0, 2, 4]


@pytest.mark.parametrize(
    ("name", "short", "side", "classes"),
    [  # as published on the libraries' pages
        ("torchvision:resnet18", 256, 224, 1000),
        ("torchvision:convnext_tiny", 236, 224, 1000),
        ("torchvision:inception_v3", 342, 299, 1000),
        ("torchvision:vit_h_14", 518, 518, 1000),
        ("timm:vit_tiny_patch16_224.augreg_in21k", 248, 224, 21843),
        ("timm:convnext_tiny.in12k", 235, 224, 11821),
        ("timm:vit_small_patch14_dinov2.lvd142m", 518, 518, 0),
        ("timm:vit_base_patch32_clip_224.openai", 248, 224, 0),  # its 512 outputs are no classes
    ],
)
def test_published_sizes(name, short, side, classes):
    row = row_of(name)
    assert (row.short, row.side, row.classes) == (short, side, classes)


@pytest.mark.parametrize("name", ["torchvision:resnet18", *SIZES])
def test_stored_frames_are_those_of_the_librarys_preprocessing(name, tmp_path):
    """Of a picture whose red tells the column, and whose green the row."""
    height, width = 300, 400
    y, x = np.mgrid[:height, :width]
    picture = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], -1).astype(np.uint8)
    codec.write(tmp_path / "v.mp4", np.broadcast_to(picture, (3, height, width, 3)))
    row = row_of(name)
    settings = StoreSettings(32, 95, 2, teacher_short=row.short, teacher_side=row.side)
    assert settings.name == f"frames-32px-q95-every2{SIZES.get(name, '')}"
    store = FrameStore(tmp_path, settings)
    store.add(["v.mp4"], tmp_path, workers=1)
    stored = store.images("v.mp4", np.array([0, 1]), teacher=True)[1].astype(float)
    library, _, model = name.partition(":")
    if library == "torchvision":
        transform = models.get_model_weights(model).DEFAULT.transforms()
        mean, std = transform.mean, transform.std
    else:
        config = timm.data.resolve_model_data_config(timm.create_model(model))
        transform, mean, std = timm.data.create_transform(**config), config["mean"], config["std"]
    expected = transform(Image.fromarray(picture)).permute(1, 2, 0).numpy() * std + np.array(mean)
    assert stored.shape == expected.shape
    for colour, across in ((0, 0), (1, 1)):
        ours, theirs = (frame[..., colour].mean(across) for frame in (stored, 255 * expected))
        scale, shift = np.polyfit(theirs, ours, 1)
        assert scale == pytest.approx(1, abs=0.01)
        assert shift + scale * 127 == pytest.approx(127, abs=2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [(SHUFFLENET, "sd"), (SHUFFLENET, "probe"), (FEATURES, "probe")])
def test_run(name, method, tiny, tmp_path):
    """From videos to a prediction, in folders that every file system takes."""
    p = tiny(method=method, teacher=name, teacher_weights=save(build(name), tmp_path / "w.pth"), steps=2)
    run = training.train(p)
    data = prepare.prepare(p, split=run.read_split())
    assert data.targets.folder.name.startswith("teacher-" + name.replace(":", "-"))
    video = data.rows("labelled").video[0]
    assert data.targets.path(video).exists() == (name == SHUFFLENET)
    if name == FEATURES:
        assert data.targets.features(video).shape == (4, 320, 2, 2)
        assert not clips.teacher_bars(data).axes[-1].patches  # it has nothing to say
    predict, classes = training.load_predictor(run, params.of_run(p))
    assert predict(data.rows("test").head(2), data.store).video_probs.shape == (2, len(classes))


@pytest.mark.slow
def test_other_sizes_and_classes(tiny, tmp_path):
    """A store of its own, a head for each of 21,843 classes; the teacher sees the student's view in it."""
    name = "timm:vit_tiny_patch16_224.augreg_in21k"
    p = tiny(
        method="sd", teacher=name, teacher_weights=save(build(name), tmp_path / "w.safetensors"), crop_size=32
    )
    data, method = prepare.prepare(p), methods.METHODS["sd"]
    assert data.store.folder.name.endswith("-248to224px")
    stored, asked = (
        Batches(p.but(teacher_view=view), method, data.split, data.store, data.targets)[2]["teacher"]
        for view in ("stored", "same")
    )
    assert torch.allclose(Classifier(name, p.teacher_weights)(asked)[0], stored, atol=2e-3)
    assert training.build_network(p, 14).heads["embedding"].out_features == stored.shape[1] == 21843
    assert estimate.cost(p, 10, 100).gigabytes > 10 * 100 * 2 * (21843 + 4 * 192) / 8 / 1e9


@pytest.mark.parametrize("method", ["sd", "videossl"])
def test_without_classes_no_equation_4(method, tiny):
    """Said before any video is decoded."""
    p = tiny(method=method, teacher=FEATURES)
    with pytest.raises(ParameterError, match=f"{FEATURES}' has features but no classes.*'probe'"):
        prepare.decode_index(p, None)
    assert training.build_network(p.but(method="supervised"), 3).heads.keys() == {"classes"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", "one of resnet50, .*, torchvision:<name>, timm:<name>; did you mean 'resnet50'"),
        ("convnext_tiny", "torchvision:<name>"),
        ("torchvision:", "torchvision:<name>"),
        ("timm:hf-hub:timm/resnet18", "timm:<name>"),
        ("timm:../../secret", "timm:<name>"),
        ("keras:resnet50", "timm:<name>"),
    ],
)
def test_wrong_form(name, message):
    with pytest.raises(ParameterError, match=f"teacher = '{name}': not .*{message}"):
        params.load(dataset="demo", teacher=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:convnet_tiny", "did you mean 'convnext_tiny'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no image model of this name"),
        ("torchvision:r3d_18", "no image model of this name"),
        ("timm:vit_small_patch14_dinov2.lvd142", "did you mean 'vit_small_patch14_dinov2.lvd142m'"),
    ],
)
def test_wrong_name(name, message, tiny, tmp_path):
    """Said before any video is decoded."""
    with pytest.raises(ParameterError, match=f"teacher = '{name}': .*{message}"):
        prepare.decode(tiny(teacher=name), tmp_path / "new", tmp_path, ["v.mp4"])
    assert not (tmp_path / "new").exists()


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(TeacherError, match="'timm:resnet18' needs timm: pip install timm"):
        row_of("timm:resnet18")


def test_weights_that_cannot_be_had(tmp_path, monkeypatch):
    """The message names the file or the download, and the way out."""

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    for name in (SHUFFLENET, "timm:test_vit.r160_in1k"):
        with pytest.raises(TeacherError, match=f"{name} could not be .*no route.*teacher_weights = <file>"):
            Classifier(name)
        wrong = save(nn.Linear(2, 2), tmp_path / "wrong.pth")
        for path in (wrong, tmp_path / "none.pth", tmp_path / "none.safetensors"):
            with pytest.raises(
                TeacherError, match=f"teacher_weights = .*{path.name}: not the weights of {name}"
            ):
                Classifier(name, path)
