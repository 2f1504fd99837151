"""A finished run on files it has never seen: the same predictions as evaluation, and bad files named."""

import shutil

import numpy as np
import pandas as pd
import pytest
from support.helpers import TINY
from support.videos import INTRA, encode

from videossl_core import evaluation, params, predict, prepare, runs, training
from videossl_core.data import codec
from videossl_core.params import ParameterError
from videossl_lab import films, plots, predicted


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("trained")
    (outputs / "tiny").mkdir()
    (outputs / "tiny/data").symlink_to(prepared / "tiny/data")
    p = params.load(**TINY, outputs=outputs)
    training.train(p)
    return p


@pytest.fixture
def folder(trained, tmp_path):
    """Three test videos at two depths, and three files that cannot be used."""
    tests = sorted((trained.data_dir / "videos/test").rglob("*.mp4"))
    for source, name in zip(tests[:3], ("a.mp4", "deep/b, c.mp4", "ü.MP4"), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / name)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(tests[0].read_bytes()[:2000])
    codec.write(tmp_path / "short.mp4", np.zeros((5, 32, 32, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("no video")
    return tmp_path


def test_file_is_predicted_as_evaluated(trained, folder):
    data = prepare.prepare(trained, with_teacher=False)
    network, classes = training.load_network(runs.Run(trained.run_dir), trained)
    rows = data.rows("test")
    expected = evaluation.predict(network, trained, rows, classes, data.store, "cpu")
    names = [f"p_{c}" for c in classes]
    for i, name in enumerate(("a.mp4", "deep/b, c.mp4", "ü.MP4")):
        table = predict.predict_files(trained, folder / name).table
        (row,) = table.itertuples()
        assert table[names].to_numpy()[0] == pytest.approx(expected.video_probs[i], abs=1e-6)
        assert row.predicted == expected.table.video_pred[i]
        first, second = np.sort(expected.video_probs[i])[::-1][:2]
        assert row.margin == pytest.approx(first - second, abs=1e-6)


def test_folder_with_unusable_videos(trained, folder):
    predictions = predict.predict_files(trained, folder)
    table = predictions.table.set_index("video")
    assert set(table.index) == {"a.mp4", "deep/b, c.mp4", "ü.MP4", "empty.mp4", "cut.mp4", "short.mp4"}
    assert table.loc["short.mp4", "reason"].startswith("shorter than a clip: 5 of 8 frames. ")
    assert all(table.reason[["empty.mp4", "cut.mp4"]] != "")
    good = table[table.reason == ""]
    assert list(good.margin) == sorted(good.margin)
    assert list(table.index[:3]) == list(good.index)  # the uncertain first, the unusable last
    predictions.write(folder / "into/table.csv")
    back = pd.read_csv(folder / "into/table.csv", keep_default_na=False)
    columns = "video predicted confidence margin disagreement clips reason"
    assert list(back.columns[:7]) == columns.split()
    assert list(back.video) == list(table.index)
    assert list(back.clips) == ["4", "4", "4", "", "", ""]
    assert back.confidence.map(len).max() <= len("0.1234")
    html = predicted.show_along(predictions).data
    assert html.count("<video") == html.count("<img alt=") == 3
    assert "short.mp4" not in html


def test_clips_along_a_video(trained, folder):
    """32 frames at 25 per second are four clips of eight; their mean is the video's prediction."""
    predictions = predict.predict_files(trained, folder / "a.mp4")
    clips, names = predictions.clips, [f"p_{c}" for c in predictions.classes]
    of_video = predictions.table[names].to_numpy()[0]
    assert list(clips.start) == pytest.approx([0, 0.32, 0.64, 0.96], abs=1e-3)
    assert list(clips.end) == pytest.approx([0.32, 0.64, 0.96, 1.28], abs=1e-3)
    assert clips[names].mean().to_numpy() == pytest.approx(of_video)
    differs = clips[names].to_numpy().argmax(1) != of_video.argmax()
    assert predictions.table.disagreement[0] == np.mean(differs)
    figure = predicted.confidences(predictions, "a.mp4")
    assert "4 clips of a.mp4" in plots.alt(figure)
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert np.sum(heights, axis=0) == pytest.approx(np.ones(4))  # the classes of a clip fill its bar


def test_nothing_to_predict(trained, tmp_path):
    with pytest.raises(ParameterError, match="no such file or folder"):
        predict.predict_files(trained, tmp_path / "nowhere")
    with pytest.raises(ParameterError, match="no video in this folder"):
        predict.predict_files(trained, tmp_path)
    (tmp_path / "bad.avi").write_bytes(b"RIFF")
    predictions = predict.predict_files(trained, tmp_path)
    assert len(predictions.table) == 1
    assert "no video to show" in predicted.show_along(predictions).data
    assert predictions.table.predicted.isna().all()
    with pytest.raises(runs.RunError, match="train it first"):
        predict.predict_files(trained.but(seed=99), tmp_path / "bad.avi")


@pytest.mark.slow
def test_frame_rate_of_the_run(tmp_path):
    """With ``fps`` a camera of twice the rate gets the same answer; a run keeps the rate it began with."""
    p = params.load(**TINY, outputs=tmp_path / "out", fps=25)
    training.train(p)
    source = min((p.data_dir / "videos/test").rglob("*.mp4"))
    pictures = [frame.to_ndarray(format="rgb24") for frame in codec.Video(source)]
    times = range(0, 20 * 2 * len(pictures), 20)
    encode(tmp_path / "slow.mkv", pictures, times=times[::2], **INTRA)
    encode(tmp_path / "fast.mkv", np.repeat(pictures, 2, 0), times=times, rate=50, **INTRA)
    slow, fast = (predict.predict_files(p, tmp_path / name).table for name in ("slow.mkv", "fast.mkv"))
    columns = ["confidence", "margin", "clips"]
    assert fast[columns].to_numpy() == pytest.approx(slow[columns].to_numpy())
    assert fast.predicted[0] == slow.predicted[0]
    with pytest.raises(runs.RunError, match="fps"):
        training.train(p.but(fps=30, steps=p.steps))


def test_spans_of_a_film(tmp_path):
    """Neighbouring clips of one class are one span, and the same class later is another."""
    starts = np.arange(6) * 0.5
    likely = ["a", "a", "b", "a", "a", "b"]
    high = np.array([0.6, 0.8, 0.7, 0.9, 0.5, 0.6])
    p_a = np.where(np.array(likely) == "a", high, 1 - high)
    clips = pd.DataFrame({"video": ["v"] * 4 + ["w"] * 2, "start": starts, "end": starts + 0.5})
    clips = clips.assign(p_a=p_a, p_b=1 - p_a)
    predictions = predict.VideoPredictions(pd.DataFrame(), clips, ["a", "b"], tmp_path, None)
    spans = predictions.spans()
    assert list(spans.video) == ["v", "v", "v", "w", "w"]
    assert list(spans.predicted) == ["a", "b", "a", "a", "b"]
    assert list(spans.start) == [0, 1, 1.5, 2, 2.5]
    assert list(spans.end) == [1, 1.5, 2, 2.5, 3]
    assert list(spans.confidence) == pytest.approx([0.7, 0.7, 0.9, 0.5, 0.6])


@pytest.mark.slow
def test_long_film(trained, tmp_path):
    """Two videos, one after the other fifty times: spans of its parts, and a picture of few bars."""
    tests = sorted((trained.data_dir / "videos/test").rglob("*.mp4"))
    parts = [[f.to_ndarray(format="rgb24") for f in codec.Video(path)] for path in (tests[0], tests[-1])]
    codec.write(tmp_path / "film.mp4", (frame for _ in range(50) for part in parts for frame in part))
    predictions = predict.predict_files(trained, tmp_path / "film.mp4")
    assert len(predictions.clips) == 50 * 2 * 4
    predictions.write(tmp_path / "film.csv")
    spans = pd.read_csv(tmp_path / "film_spans.csv")
    assert spans.start[0] == 0
    assert list(spans.start[1:]) == pytest.approx(list(spans.end[:-1]))
    assert spans.end.iloc[-1] == pytest.approx(100 * 32 / 25, rel=0.001)
    figure = predicted.confidences(predictions, "film.mp4")
    assert len(figure.axes[0].containers[0]) == 200
    assert "Each bar is the mean of 2" in plots.alt(figure)


@pytest.mark.slow
def test_what_a_browser_gets(folder, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (300, 90, 640, 3), dtype=np.uint8)
    codec.write(tmp_path / "wide.mp4", frames, qp=40)
    (tmp_path / "made.mp4").write_bytes(films.for_browser(tmp_path / "wide.mp4"))
    made = list(codec.Video(tmp_path / "made.mp4"))
    assert (made[0].width, made[0].height) == (320, 44)
    assert len(made) == pytest.approx(250, abs=2)  # ten seconds
    assert made[-1].time == pytest.approx(10, abs=0.1)
    with pytest.raises(codec.VideoError):
        films.for_browser(folder / "empty.mp4")
