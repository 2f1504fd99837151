"""The frozen teacher: its own preprocessing, computed once, never mistaken for another."""

import io

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from videossl_core import prepare, teacher
from videossl_core.data import demo
from videossl_core.teacher import Classifier, TeacherError


@pytest.fixture(scope="module")
def classifier():
    return Classifier("efficientnet_lite0")


def test_targets_are_the_frames_softmax(tiny, classifier):
    """Against the classifier run by hand on pixels decoded by PIL."""
    data = prepare.prepare(tiny(), with_teacher=True)
    video = data.rows("unlabelled").video[0]
    jpegs = data.store.read(video, np.arange(4), teacher=True)
    for i, jpeg in enumerate(jpegs):
        pixels = np.asarray(Image.open(io.BytesIO(jpeg))).astype(np.float32)
        x = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]
        h = classifier.net(x).softmax(-1)[0].numpy()
        assert np.allclose(data.targets.of(video, 8 * i), h, atol=2e-3)
        assert data.targets.of(video, 8 * i).sum() == pytest.approx(1, abs=1e-5)
    nearest = [data.targets.of(video, frame) for frame in (0, 3, 5, 11, 31)]
    exact = [data.targets.of(video, 8 * i) for i in (0, 0, 1, 1, 3)]
    assert np.array_equal(nearest, exact)


def test_real_imagenet_classifier(classifier):
    named = {"clock": "analog clock", "spider_web": "spider web", "crossword": "crossword puzzle"}
    for noun, expected in named.items():
        h = torch.zeros(1000)
        for seed in range(8):
            frame = Image.fromarray(demo.frames(noun, "rises", seed)[16]).resize((224, 224))
            h += classifier(torch.from_numpy(np.asarray(frame).copy()).permute(2, 0, 1)[None].float())[0] / 8
        assert teacher.IMAGENET_CLASSES[h.argmax()] == expected


def test_untaught_teacher(classifier):
    """It predicts next to nothing, and the same each time."""
    untaught = Classifier("untaught")
    assert untaught.weights_hash == Classifier("untaught").weights_hash != classifier.weights_hash
    frames = torch.randint(0, 256, (4, 3, 224, 224), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.allclose(untaught(frames).sum(1), torch.ones(4))
    # 1000 classes: 0.001 is a mere guess
    assert untaught(frames).max() < 0.002 < 0.1 < classifier(frames).max()


def test_teacher_runs_once(tiny, monkeypatch):
    prepare.prepare(tiny(), with_teacher=True)
    monkeypatch.setattr(Classifier, "forward", lambda *_: pytest.fail("ran again"))
    prepare.prepare(tiny(), with_teacher=True)


@pytest.mark.slow
def test_other_weights_are_another_folder(tiny, classifier, tmp_path):
    state = {k: v.clone() for k, v in classifier.net.state_dict().items()}
    torch.save(state, tmp_path / "same.pth")
    state["_fc.bias"] += 1e-3
    torch.save(state, tmp_path / "other.pth")

    def folder(**given):
        return prepare.prepare(tiny(**given), with_teacher=True).targets.folder

    assert folder(teacher_weights=tmp_path / "same.pth") == folder()
    assert folder(teacher_weights=tmp_path / "other.pth") != folder()


def test_resnet50_takes_a_local_weights_file(tmp_path):
    """The paper's teacher; its published weights have the same names and shapes as these random ones."""
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "r50.pth")
    h = Classifier("resnet50", tmp_path / "r50.pth")(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert h.shape == (1, 1000)
    assert h.sum().item() == pytest.approx(1, abs=1e-5)


def test_missing_weights_name_the_way_out(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(TeacherError, match=r"no route to host.*efficientnet_lite0"):
        Classifier("resnet50")
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    with pytest.raises(TeacherError, match=r"bad.pth: not the weights of"):
        Classifier("resnet50", tmp_path / "bad.pth")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(TeacherError, match=r"other.pth: not the weights of resnet50"):
        Classifier("resnet50", tmp_path / "other.pth")
