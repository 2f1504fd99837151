"""A model to take along: the file gives the run's probabilities where nothing of the project is imported."""

import json
import re
import subprocess
import sys

import nbformat
import numpy as np
import onnxruntime
import papermill
import pytest
import torch
import torch.nn.functional as F
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from support.helpers import TINY
from support.videos import INTRA, encode, marked, noise

from videossl_core import export, params, prepare, runs, training
from videossl_core.data import codec, files
from videossl_core.paths import ROOT

SCRIPT = ROOT / "videossl_lab/classify.py"
# Runs a file where these modules cannot be imported, neither from the folder nor from the environment.
ALONE = """
import runpy, sys
_, absent, path, *words = sys.argv
sys.modules |= dict.fromkeys(absent.split())
sys.argv = [path, *words]
runpy.run_path(path, run_name="__main__")
loaded = {name.split(".")[0] for name, module in sys.modules.items() if module}
assert not loaded & set(absent.split()), loaded
"""


def alone(absent: str, path, *words, cwd=None) -> str:
    command = [sys.executable, "-I", "-c", ALONE, absent, path, *words]
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def classified(model, *videos) -> list[dict]:
    """The lines that classify.py prints."""
    out = alone("videossl_core videossl_lab", SCRIPT, model, *videos, cwd=model.parent)
    return [json.loads(line) for line in out.splitlines()]


def frames_of(path, turn: int = 0, **given) -> torch.Tensor:
    """(T, H, W, 3) uint8"""
    pictures = [np.rot90(frame.to_ndarray(format="rgb24"), turn) for frame in codec.Video(path, **given)]
    return torch.from_numpy(np.stack(pictures))


# ---- How frames are resized


def test_resized_by_hand():
    """A half is the mean of four pixels, a double is bilinear, the same size is the same; then the centre."""
    video = torch.randint(
        0, 256, (2, 8, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels = video.permute(0, 3, 1, 2).double()
    half = pixels.unflatten(2, (4, 2)).unflatten(4, (6, 2)).mean((3, 5))
    assert export.resized(video, 4, 6, 4) == pytest.approx(half[..., 1:5].numpy(), abs=1e-4)
    double = F.interpolate(pixels, scale_factor=2, mode="bilinear")
    assert export.resized(video, 16, 24, 10) == pytest.approx(double[..., 3:13, 7:17].numpy(), abs=1e-4)
    assert export.resized(video, 8, 12, 8) == pytest.approx(pixels[..., 2:10].numpy(), abs=1e-4)


@pytest.mark.parametrize("size", [(144, 144), (241, 317), (61, 33), (500, 300)])
def test_resized_as_the_store_does(size):
    """FFmpeg's own filter, on grey pictures: one level at most, for FFmpeg computes with integers."""
    grey = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    frame = VideoFrame.from_ndarray(grey, format="gray")
    expected = VideoReformatter().reformat(frame, 136, 136, "gray", None, None, "AREA").to_ndarray()
    video = torch.from_numpy(grey)[None, :, :, None].expand(-1, -1, -1, 3)
    assert export.resized(video, 136, 136, 112)[0, 0] == pytest.approx(expected[12:124, 12:124], abs=1)


# ---- Is a module the run?


@pytest.fixture
def trained(tiny):
    def train(**given):
        p = tiny(**given)
        training.train(p)
        return p

    return train


METHODS = [
    {"method": "mt_sd"},
    {"method": "s4l", "last_clip": "pad", "clip_frames": 10},
    {"method": "videossl_plus", "clips": "spread", "clip_frames": 4, "last_clip": "pad"},
    {"method": "probe"},
    {"method": "probe_motion"},
    {"method": "probe_motion", "probe_classifier": "knn"},
]


@pytest.mark.slow
@pytest.mark.parametrize("given", METHODS, ids=lambda given: " ".join(map(str, given.values())))
def test_module_is_the_run(trained, given):
    """Given the stored pictures, at the size at which nothing is resized, it predicts what the run does."""
    p = trained(**given)
    data = prepare.prepare(p, split=runs.Run(p.run_dir).read_split())
    rows, store = data.rows("test").iloc[:5], data.store
    predict, classes = training.load_predictor(runs.Run(p.run_dir), p)
    expected = predict(rows, store).video_probs
    model, about = export.portable(p)
    assert about["classes"] == classes
    seen = p.method.startswith("probe")
    for video, probs in zip(rows.video, expected, strict=True):
        count = int(store.table.frames[video])
        pictures = store.images(video, np.arange(-(-count // p.teacher_stride) if seen else count), seen)
        # of 256 pixels the teacher's frame is the central 224
        pictures = np.pad(pictures, [(0, 0), (16, 16), (16, 16), (0, 0)]) if seen else pictures
        got = model(torch.from_numpy(pictures)).numpy()
        assert got == pytest.approx(probs, abs=2e-3 if seen else 1e-5)  # features are kept in float16


@pytest.mark.slow
def test_spread_clips_in_a_file(trained, tmp_path):
    p = trained(method="supervised", clips="spread")
    export.write(p, tmp_path)
    model, about = export.portable(p)
    assert about["frames"] == export.MANY
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 7, 8, 33, 50):
        video = torch.from_numpy(np.stack(noise(count)))
        assert loaded(video).numpy() == pytest.approx(model(video).numpy(), abs=1e-6)


@pytest.mark.slow
def test_number_format_of_the_run(trained):
    """A run in bf16, some layers not, is exported in fp32: the same bits as without."""
    p = trained(method="supervised")
    run = runs.Run(p.run_dir)
    video = torch.from_numpy(np.stack(noise(20)))
    expected = export.portable(p)[0](video)
    kept = run.read_checkpoint()
    layers = ["backbone.0", "heads.classes"]
    torch.save(kept | {"precision": {"dtype": "bf16", "fp32_layers": layers}}, run.checkpoint)
    assert torch.equal(export.portable(p)[0](video), expected)


def test_unfinished_run(tiny):
    with pytest.raises(runs.RunError, match="is not finished: train it"):
        export.portable(tiny())


# ---- The files


SIZES = [(1, 60, 80), (7, 17, 31), (8, 90, 41), (9, 32, 32), (20, 144, 96)]
"""Fewer and more frames than a clip of eight, smaller than the crop, odd, portrait."""


@pytest.fixture(scope="module", params=["sd", "probe_motion"])
def exported(request, prepared, tmp_path_factory):
    """A finished run's parameters and the folder of its two files."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "tiny").mkdir()
    (folder / "tiny/data").symlink_to(prepared / "tiny/data")
    p = params.load(**TINY, outputs=folder, method=request.param)
    training.train(p)
    export.write(p, folder / "made", onnx=True)
    return p, folder / "made"


@pytest.mark.slow
def test_files_take_any_length_and_size(exported):
    p, folder = exported
    module, about = export.portable(p)
    loaded = torch.export.load(folder / "model.pt2").module()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for size in SIZES:
        generator = torch.Generator().manual_seed(size[0])
        video = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)
        probs = loaded(video)
        assert probs.shape == (14,)
        assert probs.sum().item() == pytest.approx(1, abs=1e-5)
        assert probs == pytest.approx(module(video).numpy(), abs=1e-5)
        assert session.run(None, {"video": video.numpy()})[0] == pytest.approx(probs.numpy(), abs=1e-4)
    written = json.loads((folder / "model.json").read_text())
    for name, sha256 in written.pop("sha256").items():
        assert files.sha256_of(folder / name) == sha256
        assert str(ROOT).encode() not in (folder / name).read_bytes()
    assert written == about
    assert json.loads(session.get_modelmeta().custom_metadata_map["about"]) == about
    metrics = runs.read_table(runs.Run(p.run_dir).metrics)
    assert about["test"]["video_top1"] == metrics[metrics.subset == "test"].video_top1.iloc[-1]


@pytest.mark.slow
def test_clips_of_a_file(exported):
    """Fewer frames than a clip are looped, a rest is dropped: by the run's network and frame numbers."""
    p, folder = exported
    if p.method != "sd":
        pytest.skip("has no clips")
    network, _ = training.load_network(runs.Run(p.run_dir), p)
    loaded = torch.export.load(folder / "model.pt2").module()
    video = torch.randint(
        0, 256, (20, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    clips = {1: [[0] * 8], 7: [[0, 1, 2, 3, 4, 5, 6, 0]], 9: [range(8)], 20: [range(8), range(8, 16)]}
    for count, numbers in clips.items():
        cut = torch.stack([video[list(n), 4:28, 4:28] for n in numbers]).permute(0, 4, 1, 2, 3)
        with torch.no_grad():
            expected = network(cut)["classes"].softmax(-1).mean(0)
        assert loaded(video[:count]) == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.slow
def test_script(exported, tmp_path):
    """Where nothing of the project is imported: real videos, one turned by a phone, one of another size."""
    p, folder = exported
    assert len(SCRIPT.read_text().splitlines()) <= 25
    model, about = export.portable(p)
    real = min((p.data_dir / "videos/test").rglob("*.mp4"))
    turned = marked(tmp_path / "turned.mp4", noise(20, 64, 96), (0, 1, -1, 0))
    odd = encode(tmp_path / "odd.mkv", noise(300, 90, 62), **INTRA)
    lines = classified(folder / "model.pt2", real, turned, odd)
    assert [line["video"] for line in lines] == [str(real), str(turned), str(odd)]
    size, step, least = (about[name] for name in ("frames", "stride", "least"))
    for line, path, turn in zip(lines, (real, turned, odd), (0, -1, 0), strict=True):
        parts = [part for part in frames_of(path, turn)[::step].split(size)]
        parts = [part for i, part in enumerate(parts) if len(part) >= least or i == 0]
        expected = torch.stack([model(part) for part in parts]).mean(0).tolist()
        assert list(line["probs"].values()) == sorted(line["probs"].values(), reverse=True)
        got = [line["probs"][name] for name in about["classes"]]
        assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [12.5, 40])
def test_script_obeys_frame_rate_and_stride(exported, tmp_path, rate):
    """It takes the frames that the store takes, but for the last picture, which it takes once."""
    p, folder = exported
    program = torch.export.load(folder / "model.pt2")
    model, about = export.portable(p)
    about |= {"fps": rate, "stride": 2}
    torch.export.save(program, tmp_path / "model.pt2", extra_files={"about": json.dumps(about)})
    times = [round(1000 * i / 30) for i in range(50)]
    path = encode(tmp_path / "v.mkv", noise(50, 64, 96), times=times, rate=30, **INTRA)
    (line,) = classified(tmp_path / "model.pt2", path)
    stored = frames_of(path, fps=rate)
    last = int(times[-1] / 1000 * rate + 0.5)
    assert len(stored) - last in (1, 2)
    parts = stored[: last + 1 : 2].split(about["frames"])
    parts = [part for i, part in enumerate(parts) if len(part) >= about["least"] or i == 0]
    expected = torch.stack([model(part) for part in parts]).mean(0).tolist()
    assert [line["probs"][name] for name in about["classes"]] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_example_without_pytorch(exported, tmp_path):
    """The lines of docs/use.md, as they stand there, beside a model.onnx."""
    p, folder = exported
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/use.md").read_text(), re.S)[1]
    (tmp_path / "example.py").write_text(code)
    out = alone("torch videossl_core videossl_lab", tmp_path / "example.py", cwd=folder)
    model, about = export.portable(p)
    probs = model(torch.zeros(about["frames"], 240, 320, 3, dtype=torch.uint8))
    assert out.split() == [about["classes"][probs.argmax()], f"{probs.max():.3f}"]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "largest"), [("mean_teacher", 0.05), ("probe_motion", 0.5)])
def test_notebook(project, method, largest):
    """A layer fitted to two videos a class is the more sensitive to what JPEG does; of its file the ONNX is
    compared above."""
    onnx = method == "mean_teacher"
    given = {"dataset": "tiny", "label_pct": 50, "method": method, "seed": 3}
    out = project / "outputs/export.ipynb"
    papermill.execute_notebook(project / "notebooks/train.ipynb", out, given, progress_bar=False)
    given["onnx"] = onnx
    papermill.execute_notebook(project / "notebooks/export.ipynb", out, given, progress_bar=False)
    cells = nbformat.read(out, 4).cells
    text = "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))
    videos, most = re.search(r"(\d+) videos: probabilities differ by ([\d.]+) at most", text).groups()
    assert int(videos) == 14
    assert float(most) < largest
    if onnx:
        assert float(re.search(r"model.onnx differs from model.pt2 by (\S+)", text)[1]) < 1e-4
    folder = project / f"outputs/tiny/export/{method}-50-seed3"
    names = {"model.pt2", "model.json", "classify.py"} | ({"model.onnx"} if onnx else set())
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "classify.py").read_text() == SCRIPT.read_text()
