"""The frozen teacher: its own preprocessing, computed once, never mistaken for another."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from videossl_core import methods, prepare, sampling, teacher
from videossl_core.batches import Batches
from videossl_core.data import codec, demo
from videossl_core.data.frames import FrameStore, StoreSettings
from videossl_core.image_classifiers import TEACHERS, TeacherError
from videossl_core.sampling import View
from videossl_core.teacher import Classifier
from videossl_lab import clips


@pytest.fixture(scope="module")
def classifier():
    return Classifier("efficientnet_lite0")


def plain(name: str, state: dict | None = None) -> torch.nn.Module:
    """The network as its authors gave it."""
    net = TEACHERS[name].build().eval()
    net.load_state_dict(state or TEACHERS[name].weights())
    return net.requires_grad_(False)


def test_targets_are_the_frames_softmax(tiny):
    """Against the network run by hand on pixels decoded by PIL."""
    net = plain("efficientnet_lite0")
    data = prepare.prepare(tiny(), with_teacher=True)
    video = data.rows("unlabelled").video[0]
    jpegs = data.store.read(video, np.arange(4), teacher=True)
    for i, jpeg in enumerate(jpegs):
        pixels = np.asarray(Image.open(io.BytesIO(jpeg))).astype(np.float32)
        x = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]
        h = net(x).softmax(-1)[0].numpy()
        assert np.allclose(data.targets.of(video, 8 * i), h, atol=2e-3)
        assert data.targets.of(video, 8 * i).sum() == pytest.approx(1, abs=1e-5)
    nearest = [data.targets.of(video, frame) for frame in (0, 3, 5, 11, 31)]
    exact = [data.targets.of(video, 8 * i) for i in (0, 0, 1, 1, 3)]
    assert np.array_equal(nearest, exact)


@pytest.mark.parametrize(
    ("view", "size", "box"),
    [
        # 240 x 320 is resized to 256 x 341; the teacher's frame begins at row 16 and column 58
        (View(0, 0, 48, 48), (240, 320), (0, 0, 224, 224)),
        (View(12, 24, 24, 24), (240, 320), (64 - 16, 170 - 58, 128, 224 - 112)),  # its right third is cut off
        (View(12, 12, 24, 24), (240, 320), (48, 85 - 58, 128, 171)),
        (View(24, 12, 24, 24), (320, 240), (170 - 58, 64 - 16, 224 - 112, 128)),  # upright
        # 100 x 1000 is resized to 256 x 2560, of which the teacher sees columns 1168 to 1391
        (View(0, 0, 48, 12), (100, 1000), (0, 0, 224, 28)),  # columns 0 to 639
        (View(0, 36, 48, 12), (100, 1000), (0, 196, 224, 28)),  # columns 1920 to 2559
        (View(0, 12, 48, 12), (100, 1000), (0, 0, 224, 112)),  # columns 640 to 1279
    ],
)
def test_box_in_the_teachers_frame(view, size, box):
    """By hand."""
    for flip in (False, True):
        coloured = View(view.top, view.left, view.height, view.width, flip, (1.2, 0.8, 1.0))
        assert teacher.same_view(coloured, StoreSettings(48, 90, 8), *size) == View(*box, flip)


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("size", [(240, 320), (320, 240), (256, 256)])
def test_both_see_the_same_part(tmp_path, size, along):
    """In a picture whose red grows along one direction and whose green falls, so that what resizing does to
    all levels cancels out: a level is 1.3 pixels of 320."""
    grows = (255 * np.mgrid[: size[0], : size[1]][along] / size[along]).astype(np.uint8)
    picture = np.stack([grows, 255 - grows, np.full_like(grows, 128)], -1)
    codec.write(tmp_path / "v.mp4", np.broadcast_to(picture, (5, *size, 3)))
    store = FrameStore(tmp_path / "store", StoreSettings(96, 95, 4))
    store.add(["v.mp4"], tmp_path, workers=1)
    height, width = store.table.loc["v.mp4", ["height", "width"]]
    assert (height, width) == size
    small = sampling.read_clip(store, "v.mp4", np.array([4]))
    large = sampling.read_clip(store, "v.mp4", np.array([1]), teacher=True)
    for view in (View(20, 22, 50, 40), View(30, 30, 44, 40, True), View(18, 40, 60, 33)):
        theirs = teacher.same_view(view, store.settings, height, width)
        seen = [sampling.cut_view(*of, 224).float() for of in ((small, view), (large, theirs))]
        red, green, _ = seen[0] - seen[1]
        assert (red - green).abs().max() / 2 < 6
        assert (red - green).mean().abs() / 2 < 1


@pytest.mark.slow
def test_same_view_of_all_is_the_stored_target(tiny, classifier):
    """The student sees whole frames, so the teacher is asked about its own; on disk they are float16."""
    p = tiny(method="sd", crop_size=32)
    data, method = prepare.prepare(p), methods.METHODS["sd"]
    stored, asked = (
        Batches(p.but(teacher_view=view), method, data.split, data.store, data.targets)[2]["teacher"]
        for view in ("stored", "same")
    )
    assert asked.dtype == torch.uint8
    assert torch.allclose(classifier(asked)[0], stored, atol=2e-3)
    p = tiny(method="sd", crop_size=16, teacher_view="same")
    part = Batches(p, method, data.split, data.store, data.targets)[2]["teacher"]
    assert (classifier(part)[0] - stored).abs().max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", TEACHERS)
def test_fast_network_is_the_plain_one(name, tmp_path):
    """Folded, in place and in another memory format, against the plain network in float64, with statistics of
    batch norm as after training; 11 frames are two parts, the last not full."""
    torch.manual_seed(0)
    state = TEACHERS[name].build().state_dict() if name == "resnet50" else TEACHERS[name].weights()
    if name != "efficientnet_lite0":
        for key, value in state.items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif key.endswith(("running_mean", "bn3.bias")):
                value.normal_(0, 0.2)
    if name == "resnet50":
        state["fc.weight"] /= 10  # random, it would be sure of one class
    torch.save(state, tmp_path / "weights.pth")
    fast, row = Classifier(name, tmp_path / "weights.pth"), TEACHERS[name]
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fast.modules())
    frames = torch.randint(0, 256, (11, 3, 56, 56), dtype=torch.uint8)
    frames = torch.nn.functional.interpolate(frames, 224)  # as natural frames have them: areas
    mean, std = (torch.tensor(v, dtype=torch.double).view(3, 1, 1) for v in (row.mean, row.std))
    exact_net, pooled = plain(name, state).double(), []
    pool = exact_net.avgpool if name == "resnet50" else exact_net._avg_pooling
    pool.register_forward_hook(lambda _, inputs, out: pooled.append(out))
    exact = exact_net((frames / 255.0 - mean) / std).softmax(-1)
    h, features = fast(frames)
    assert features.shape == (11, 2048 if name == "resnet50" else 1280, 2, 2)
    assert torch.allclose(features.double().mean((2, 3)), pooled[0].flatten(1), rtol=1e-4, atol=1e-5)
    assert h.dtype == torch.float32
    assert exact.max() < 0.9
    assert torch.allclose(h.double(), exact, rtol=5e-5, atol=1e-7)
    assert torch.equal(h.argmax(1), exact.argmax(1))


@pytest.mark.parametrize("side", [2, 5, 7, 8])
def test_quarters(side):
    """Weights by hand: a middle row or column counts half in both quarters."""
    maps = torch.rand(3, 4, side, side, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    first = torch.tensor([1.0] * (side // 2) + [0.5] * (side % 2) + [0.0] * (side // 2), dtype=torch.double)
    weights = torch.stack([first, first.flip(0)]) / (side / 2)
    expected = torch.einsum("nfhw,ah,bw->nfab", maps, weights, weights)
    assert torch.allclose(teacher.quarters(maps), expected)
    assert torch.allclose(expected.mean((2, 3)), maps.mean((2, 3)))


@pytest.mark.slow
def test_targets_made_before_there_were_features(tiny, tmp_path, monkeypatch):
    """They stay usable; only who asks for features has the video seen again, and gets the same softmax."""
    once = prepare.prepare(p := tiny(), with_teacher=True)
    videos = list(once.split.video[once.split.role != "test"])[:3]
    store = without_targets(once.store, tmp_path)
    targets = teacher.build_targets(p, store, videos, "cpu")
    whole = files_of(targets)
    made = targets.path(videos[0]).stat().st_mtime_ns
    for video in videos:
        targets.path(video, features=True).unlink()
    seen, look = [], Classifier.look
    monkeypatch.setattr(
        Classifier, "look", lambda self, store, v, n: seen.append(v) or look(self, store, v, n)
    )
    teacher.build_targets(p, store, videos, "cpu")
    assert not seen
    teacher.build_targets(p, store, videos, "cpu", features=True)
    assert sorted(seen) == videos
    assert files_of(targets) == whole
    assert targets.path(videos[0]).stat().st_mtime_ns == made  # the softmax on record stays
    assert targets.features(videos[0]).shape == (4, 1280, 2, 2)


def without_targets(store: FrameStore, folder: Path) -> FrameStore:
    """A copy of the store that no teacher has seen."""
    shutil.copytree(store.folder, folder / store.folder.name, ignore=shutil.ignore_patterns("teacher-*"))
    return FrameStore(folder, store.settings)


def files_of(targets: teacher.Targets) -> dict[str, bytes]:
    return {p.relative_to(targets.folder).as_posix(): p.read_bytes() for p in targets.folder.rglob("*.npy")}


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_files(tiny, tmp_path):
    """Bit for bit, in any order; what trains afterwards has as many threads as before."""
    once = prepare.prepare(p := tiny(), with_teacher=True)
    videos = list(once.split.video[once.split.role != "test"])
    for threads, order in ((1, videos), (3, videos[::-1])):
        store = without_targets(once.store, tmp_path / str(threads))
        torch.set_num_threads(threads)
        try:
            targets = teacher.build_targets(p, store, order, "cpu")
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        assert 2 * len(videos) == len(files_of(targets)) > 20
        assert files_of(targets).items() <= files_of(once.targets).items()  # the shared one has test videos


@pytest.mark.slow
def test_answer_that_is_not_finite_stops(tiny, tmp_path, monkeypatch):
    """It names the video; what other videos have got is whole, and the next call goes on from there."""
    once = prepare.prepare(p := tiny(), with_teacher=True)
    videos = list(once.split.video[once.split.role != "test"])[:5]
    store, look = without_targets(once.store, tmp_path), Classifier.look

    def spoilt(self, store, video, numbers):
        h, features = look(self, store, video, numbers)
        return h * (np.nan if video == videos[2] else 1), features

    monkeypatch.setattr(Classifier, "look", spoilt)
    with pytest.raises(TeacherError, match=rf"{videos[2]}: .* is not finite"):
        teacher.build_targets(p, store, videos, "cpu")
    monkeypatch.setattr(Classifier, "look", look)
    targets = teacher.build_targets(p, store, videos, "cpu")
    assert len(files_of(targets)) == 10
    assert files_of(targets).items() <= files_of(once.targets).items()


@pytest.mark.slow
def test_real_imagenet_classifier(classifier):
    named = {"clock": "analog clock", "spider_web": "spider web", "crossword": "crossword puzzle"}
    for noun, expected in named.items():
        h = torch.zeros(1000)
        for seed in range(8):
            frame = Image.fromarray(demo.frames(noun, "rises", seed)[16]).resize((224, 224))
            h += classifier(torch.from_numpy(np.asarray(frame).copy()).permute(2, 0, 1)[None])[0][0] / 8
        assert clips.teacher_classes(1000)[h.argmax()] == expected


@pytest.mark.slow
def test_untaught_teacher(classifier):
    """It predicts next to nothing, and the same each time."""
    untaught = Classifier("untaught")
    assert untaught.weights_hash == Classifier("untaught").weights_hash != classifier.weights_hash
    frames = torch.randint(0, 256, (4, 3, 224, 224), generator=torch.Generator().manual_seed(0)).byte()
    h = untaught(frames)[0]
    assert torch.allclose(h.sum(1), torch.ones(4))
    # 1000 classes: 0.001 is a mere guess
    assert h.max() < 0.002 < 0.1 < classifier(frames)[0].max()


def test_teacher_runs_once(tiny, monkeypatch):
    prepare.prepare(tiny(), with_teacher=True)
    monkeypatch.setattr(Classifier, "look", lambda *_: pytest.fail("ran again"))
    prepare.prepare(tiny(), with_teacher=True)


@pytest.mark.slow
def test_other_weights_are_another_folder(tiny, tmp_path):
    state = TEACHERS["efficientnet_lite0"].weights()
    torch.save(state, tmp_path / "same.pth")
    state["_fc.bias"] += 1e-3
    torch.save(state, tmp_path / "other.pth")

    def folder(**given):
        return prepare.prepare(tiny(**given), with_teacher=True).targets.folder

    assert folder(teacher_weights=tmp_path / "same.pth") == folder()
    assert folder(teacher_weights=tmp_path / "other.pth") != folder()


@pytest.mark.slow
def test_resnet50_takes_a_local_weights_file(tmp_path):
    """The paper's teacher; its published weights have the same names and shapes as these random ones."""
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "r50.pth")
    h, features = Classifier("resnet50", tmp_path / "r50.pth")(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert h.shape == (1, 1000)
    assert features.shape == (1, 2048, 2, 2)
    assert h.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
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
