"""Labels on disk, suggestions, the widget without a browser, and the training on these labels."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.helpers import TINY, same, small_videos

from videossl_core import params, predict, prepare, teacher, training
from videossl_core.data import datasets, labels, splits
from videossl_core.data.datasets import DatasetError
from videossl_core.data.labels import LabelError
from videossl_lab import clips
from videossl_lab.annotate import gain
from videossl_lab.annotate.labels import Labels
from videossl_lab.annotate.suggest import Likeness, suggest
from videossl_lab.annotate.widget import Annotator, Desk
from videossl_lab.claims import paired_gain

CLASSES = ["walks", "runs, fast", "ü"]
VIDEOS = ["a.mp4", "b/c d.avi", 'e,f".mkv', "ü.mp4"]


named = st.tuples(st.sampled_from(["set", "edit"]), st.sampled_from(VIDEOS), st.sampled_from(CLASSES))
skips = st.tuples(st.just("skip"), st.sampled_from(VIDEOS))
clicks = named | skips | st.tuples(st.sampled_from(["undo", "restart"]))


@settings(max_examples=80, deadline=None)
@given(st.lists(clicks, max_size=25))
def test_labels_match_model(tmp_path_factory, sequence):
    """Any sequence of clicks, restarts and edits is what the file says. The model: a list of lines, and the
    states that clicks left behind since the last restart or edit."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    desk, now, before = Labels(path, CLASSES), [], []
    for action, *args in sequence:
        kept = [row for row in now if not args or row[0] != args[0]]
        if action in ("set", "skip"):
            before.append(now)
            now = [*kept, [args[0], args[1] if action == "set" else ""]]
            getattr(desk, action)(*args)
        elif action == "undo":
            now = before.pop() if before else now[:-1]
            desk.undo()
        elif action == "restart":
            desk, before = Labels(path, CLASSES), []
        elif action == "edit":  # by hand, the split left empty
            text = path.read_text(encoding="utf-8") if path.exists() else ",".join(labels.COLUMNS)
            rows = [row for row in csv.reader(text.splitlines()) if row[0] != args[0]]
            with open(path, "w", encoding="utf-8", newline="") as f:
                csv.writer(f).writerows([*rows, [*args, ""]])
            now, before = [*kept, args], []
        assert [[v, label] for v, (label, _) in labels.read(path, CLASSES).items()] == now
        assert desk.reread() == labels.read(path, CLASSES)
    for name in CLASSES:
        assert sum(desk.counts()[name]) == sum(label == name for _, label in now)


def test_held_out_share(tmp_path):
    """Every fourth video of a class is held out and stays so."""
    desk = Labels(tmp_path / "labels.csv", ["a", "b"])
    held_out: set[str] = set()
    for i in range(40):
        desk.set(f"{i}.mp4", "ab"[i % 3 == 0])
        now = {v for v, (_, split) in desk.rows.items() if split == "test"}
        assert held_out <= now
        held_out = now
    for train, test in desk.counts().values():
        assert abs(test - (train + test) / 4) <= 0.5
    first = [split for label, split in desk.rows.values() if label == "b"][:6]
    assert first == ["train", "test", "train", "train", "train", "test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video;label;split\n", "labels.csv line 1: must be video,label,split"),
        ("video,label,split\na.mp4,walks\n", "line 2: 2 cells instead of 3"),
        ("video,label,split\na.mp4,walks,\n\na.mp4,ü,train\n", "line 4: 'a.mp4' stands in line 2 too"),
        ("video,label,split\na.mp4,wlaks,train\n", "line 2: 'wlaks' is not one of .*did you mean 'walks'"),
        ("video,label,split\na.mp4,,train\n", "line 2: needs a video, a label"),
        ("video,label,split\na.mp4,walks,val\n", "line 2: needs .*train, test, skip or nothing"),
        ("video,label,split\n,walks,train\n", "line 2: needs a video"),
        ('video,label,split\n"a.mp4,walks,train\n', "line 2: not readable as CSV"),
    ],
)
def test_wrong_line_is_named(tmp_path, text, message):
    """And nothing is lost: the file stays as it is."""
    path = tmp_path / "labels.csv"
    desk = Labels(path, CLASSES)
    desk.set("b.mp4", "walks")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabelError, match=message):
        labels.read(path, CLASSES)
    with pytest.raises(LabelError, match=message):
        desk.set("c.mp4", "walks")
    assert path.read_text(encoding="utf-8") == text


def test_spreadsheet_quirks(tmp_path):
    """A byte-order mark, other line ends, blanks and empty lines are fine; another encoding is refused."""
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffvideo,label,split\r\nü.mp4, walks ,\r\n,,\r\nb.mp4,,skip\r\n".encode())
    assert labels.read(path, CLASSES) == {"ü.mp4": ("walks", "train"), "b.mp4": ("", "skip")}
    path.write_bytes("video,label,split\nü.mp4,x,\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels.csv: not a text file"):
        labels.read(path)


def test_suggest_after_training():
    """Uncertain videos and those of rare classes come first."""
    videos = ["a", "b", "c", "d"]
    rows = {"x": ("cat", "train"), "y": ("cat", "train"), "z": ("dog", "train")}
    features = Likeness.of(np.full((4, 2), 0.5))

    def first(margins, predicted, rows=rows):
        table = pd.DataFrame({"margin": margins, "predicted": predicted}, index=videos[: len(margins)])
        return suggest(videos, features, rows, ["cat", "dog", "owl"], table)[0]

    assert first([0.9, 0.2, 0.5, 0.8], ["cat"] * 4) == "b"  # the least certain
    assert first([0.5, 0.5, 0.5, 0.5], ["cat", "dog", "owl", "cat"]) == "c"  # the class without labels
    assert first([0.2, 0.99, 0.9, 0.9], ["cat", "owl", "dog", "cat"]) == "a"  # rare, but not in doubt
    assert first([0.2, 0.9, 0.9, 0.9], ["cat"] * 4, rows | {"a": ("cat", "test")}) != "a"
    assert first([0.2, 0.9, 0.9], ["cat"] * 3) == "d"  # new since the training
    assert suggest(videos, features, dict.fromkeys(videos, ("", "skip")), ["cat"], None) == ("", "")


def test_suggest_before_training():
    """Diverse videos come first, but no oddity."""
    groups = [[0.9, 0.1, 0, 0]] * 5 + [[0, 0.1, 0.9, 0]] * 5 + [[0, 0, 0, 1.0]]
    videos = [f"{i:02d}" for i in range(11)]
    features, rows, chosen = Likeness.of(np.array(groups)), {}, []
    for _ in range(3):
        video, _ = suggest(videos, features, rows, ["a", "b"])
        rows[video] = ("a" if int(video) < 5 else "b", "train")
        chosen.append(int(video))
    assert {c // 5 for c in chosen[:2]} == {0, 1}  # one of each crowd; the loner is not among the first
    assert suggest(videos, features, rows, ["a", "b"])[0] not in rows


@pytest.fixture(scope="module")
def flat(prepared, tmp_path_factory) -> Path:
    """18 of the tiny demo's videos in one folder, decoded and seen by the teacher."""
    folder = tmp_path_factory.mktemp("flat")
    (folder / "videos").mkdir()
    for name in ("clock", "daisy", "envelope"):
        for video in (prepared / "tiny/data/videos").rglob(f"{name}_*.mp4"):
            shutil.copy(video, folder / "videos" / video.name)
    p = params.load(**TINY | {"outputs": folder})
    store, _ = prepare.decode(p, p.data_dir, folder / "videos", datasets.videos_below(folder / "videos"))
    teacher.build_targets(p, store, list(store.table.index), "cpu")
    return folder


@pytest.fixture
def own(flat, tmp_path):
    """Parameters of that folder without any label yet; the CSV and the runs are this test's own."""
    given = TINY | {"dataset": "mine", "source": "annotated", "root": flat / "videos", "label_pct": 100}
    given |= {"outputs": tmp_path / "outputs", "lists": tmp_path / "labels.csv"}
    for name in ("mine", "known"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "data").symlink_to(flat / "tiny/data")
    return params.load(**given, classes=["clock", "daisy", "envelope"])


def true(video: str) -> str:
    return video.rsplit("_", 2)[0]


@pytest.mark.slow
def test_first_click_to_gain(own):
    """Label with the widget, restart it, train, compare, predict the rest, and once more with a new label."""
    desk = Desk(own)
    assert len(desk.videos) == 18
    widget = Annotator(desk)
    assert desk.labels.lacking(desk.videos).startswith("Label videos of at least two classes first: 0 of 3")
    for _ in range(12):
        assert len(widget.clip) > 1000
        video = widget.state["video"]
        widget.press("label", video, true(video))
        widget.press("label", video, "envelope")  # a second press meant for the same clip changes nothing
        assert labels.read(own.lists)[video][0] == true(video)
    assert (len(desk.labels.rows), widget.state["left"]) == (12, 6)
    last = widget.state["video"]
    widget.press("undo")
    assert (len(desk.labels.rows), widget.state["left"]) == (11, 7)
    widget.press("label", widget.state["video"], true(widget.state["video"]))
    widget.press("skip", widget.state["video"])
    assert desk.labels.rows[last] == ("", "skip")
    again = Annotator(Desk(own))  # after a restart
    assert again.state["counts"] == widget.state["counts"]
    assert again.state["left"] == 5

    desk.labels.reread()
    assert desk.labels.lacking(desk.videos) == ""
    trained = gain.train(desk.p)
    table, difference = gain.compare_runs(trained)
    held_out = {v for v, (_, split) in desk.labels.rows.items() if split == "test"}
    assert set(pd.read_csv(trained["videossl"].predictions_test).video) == held_out
    assert difference.videos == len(held_out) == table.held_out.iloc[0]
    assert difference.points == pytest.approx(table.video_top1["videossl"] - table.video_top1["supervised"])
    split = trained["videossl"].read_split()
    assert last not in set(split.video)  # skipped
    assert (split.role == "labelled").sum() == 12 - len(held_out)
    unlabelled = split[split.role == "unlabelled"]
    assert unlabelled[["label", "class_name"]].value_counts().to_dict() == {(-1, ""): 5}
    log, metrics = (pd.read_csv(f) for f in (trained["videossl"].log, trained["videossl"].metrics))
    assert log.confident_top1.isna().all()
    assert set(metrics.subset) == {"test"}  # nothing is claimed of videos whose class nobody knows

    predictions = predict.predict_unlabelled(desk.p)
    assert set(predictions.table.video) == set(unlabelled.video)
    predictions.write(desk.predictions)
    video, why = desk.suggest()
    assert video in set(unlabelled.video)
    assert re.search(r"taken for \w+, margin 0\.\d\d", why)

    checkpoint = trained["videossl"].checkpoint
    before = checkpoint.read_bytes()
    gain.train(desk.p)
    assert checkpoint.read_bytes() == before  # nothing changed, nothing done
    again.press("label", again.state["video"], true(again.state["video"]))
    trained = gain.train(desk.p)  # one label more: trained again
    assert (trained["videossl"].read_split().role == "unlabelled").sum() == 4


@pytest.mark.slow
def test_interrupted_training_with_new_labels(own, monkeypatch):
    """It resumes with the new labels, and the finished runs of the old ones are not mistaken for theirs."""
    desk = Labels(own.lists, own.classes)
    for video in datasets.videos_below(own.root)[:14]:
        desk.set(video, true(video))
    gain.train(own)
    desk.undo()
    step = training.Trainer.step

    def interrupted(self, batch):
        if self.step_number == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gain.train(own)
    trained = gain.train(own)
    assert [run.finished for run in trained.values()] == [True, True]
    assert trained["supervised"].read_provenance()["resumed"][0]["step"] == 3
    for run in trained.values():
        assert len(run.read_split()[lambda t: t.role != "unlabelled"]) == 13


@pytest.mark.slow
def test_unknown_classes_never_used(own, tmp_path):
    """The weights are the same bits whether the index knows the classes of the unlabelled videos or not."""
    desk = Labels(own.lists, own.classes)
    videos = datasets.videos_below(own.root)
    for video in videos[::2]:
        desk.set(video, true(video))
    unknown = training.train(own)
    held_out = {v for v, (_, split) in desk.rows.items() if split == "test"}
    table = pd.DataFrame({"video": videos, "label": [true(v) for v in videos]})
    table["split"] = ["test" if v in held_out else "train" for v in videos]
    table.to_csv(tmp_path / "known.csv", index=False)
    labelled = [f"{v}*{own.classes.index(c)}" for v, (c, _) in desk.rows.items() if v not in held_out]
    (tmp_path / "labelled.lst").write_text("\n".join(labelled))
    lists = {"label_draw": "list", "label_list": tmp_path / "labelled.lst", "lists": tmp_path / "known.csv"}
    known = training.train(own.but(source="csv", dataset="known", **lists))
    assert list(known.read_split().role) == list(unknown.read_split().role)
    mine, theirs = (torch.load(r.checkpoint, weights_only=True)["model"] for r in (unknown, known))
    assert (known.read_split().label >= 0).all()
    assert same(mine, theirs)


def test_annotated_index(tmp_path):
    root = tmp_path / "v"
    small_videos(root, ["x/a.mp4", "b.mp4", "c.mp4", "d.mp4"])
    given, file = {"dataset": "some", "source": "annotated", "root": root}, root / "labels.csv"
    with pytest.raises(DatasetError, match=r"labels.csv: no labelled video yet"):
        datasets.read_index(params.load(**given))
    file.write_text("video,label,split\nx/a.mp4,up,train\n")
    with pytest.raises(DatasetError, match=r"labels.csv: no held-out video yet"):
        datasets.read_index(params.load(**given))
    file.write_text("video,label,split\nx/a.mp4,up,train\nd.mp4,down,test\nc.mp4,,skip\n")
    index = datasets.read_index(params.load(**given))
    assert index.classes == ["down", "up"]
    rows = [["b.mp4", "", -1, "train"], ["d.mp4", "down", 0, "test"], ["x/a.mp4", "up", 1, "train"]]
    assert index.table.values.tolist() == rows
    split = splits.make_split(params.load(**given, label_pct=100), index)
    roles = {"b.mp4": "unlabelled", "d.mp4": "test", "x/a.mp4": "labelled"}
    assert dict(zip(split.video, split.role, strict=True)) == roles
    pd.testing.assert_frame_equal(splits.from_csv(splits.to_csv(split)), split, check_dtype=False)
    table = clips.role_table(split, index.classes)
    assert table.loc["(unknown)", "unlabelled"] == 1
    assert table.loc["all"].sum() == 3
    with pytest.raises(LabelError, match=r"line 2: 'up' is not one of the classes down, left"):
        datasets.read_index(params.load(**given, classes="down,left"))
    file.unlink()
    with pytest.raises(params.ParameterError, match="classes = None: name those"):
        Desk(params.load(**TINY | given))


def test_wrong_hand_edit_is_shown(own):
    """And once it is mended, the same press works."""
    widget, file = Annotator(Desk(own)), own.lists
    video = widget.state["video"]
    file.write_text("video,label,split\nx.mp4,clokc,\n")
    widget.press("label", video, "clock")
    assert "labels.csv line 2: 'clokc' is not one of" in widget.state["problem"]
    assert widget.state["video"] == video  # still the same question
    file.write_text("video,label,split\nx.mp4,clock,\n")
    widget.press("label", video, "clock")
    assert widget.state["problem"] == ""
    assert list(labels.read(file)) == ["x.mp4", video]


def test_last_video_and_first_undo(own):
    """With a label for every video there is nothing left for VideoSSL to learn from."""
    desk = Desk(own)
    widget = Annotator(desk)
    widget.press("undo")
    assert widget.state["message"] == "nothing to take back"
    for _ in range(18):
        widget.press("label", widget.state["video"], true(widget.state["video"]))
    assert (len(desk.labels.rows), widget.clip, widget.state["left"]) == (18, b"", 0)
    assert desk.labels.lacking(desk.videos).startswith("Every video has a label")
    widget.press("undo")
    assert widget.state["left"] == 1
    assert desk.labels.lacking(desk.videos) == ""


def test_gain_interval_coverage():
    """Simulated: about 95 of 100 intervals hold the true difference, with few videos too."""
    rng = np.random.default_rng(0)
    for n, chances in ((8, [0.4, 0.1, 0.5]), (30, [0.3, 0.05, 0.65]), (100, [0.1, 0.1, 0.8])):
        true_gain, covered = 100 * (chances[0] - chances[1]), 0
        for _ in range(1000):
            kind = rng.choice(["last", "first", "both"], n, p=chances)
            estimate = paired_gain(kind != "last", kind != "first")
            assert estimate.low <= estimate.points <= estimate.high
            covered += estimate.low <= true_gain <= estimate.high
        assert covered >= 930
    few = paired_gain(np.array([True, False]), np.array([True, True]))
    assert (few.won, few.lost, few.points) == (1, 0, 50)
    assert few.low < 0  # two videos prove nothing
