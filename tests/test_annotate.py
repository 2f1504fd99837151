"""Labels on disk, suggestions, the widget without a browser, and that nobody peeks at unknown classes."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TINY, same, small_videos
from hypothesis import given, settings
from hypothesis import strategies as st

from videossl_core import classify, params, prepare, teacher, training
from videossl_core.data import datasets, labels, splits
from videossl_core.data.datasets import DatasetError
from videossl_core.data.labels import LabelError, Labels
from videossl_core.evaluation import paired_gain
from videossl_core.views import annotate, show
from videossl_core.views.annotate import Annotator, Desk, Likeness, suggest

CLASSES = ["walks", "runs, fast", "ü"]
VIDEOS = ["a.mp4", "b/c d.avi", 'e,f".mkv', "ü.mp4"]


def lines(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.reader(f))[1:]


clicks = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(VIDEOS), st.sampled_from(CLASSES)),
    st.tuples(st.just("skip"), st.sampled_from(VIDEOS)),
    st.tuples(st.just("undo")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("edit"), st.sampled_from(VIDEOS), st.sampled_from(CLASSES)),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(clicks, max_size=25))
def test_any_sequence_of_clicks_restarts_and_edits_is_what_the_file_says(tmp_path_factory, sequence):
    """The model: a list of lines, and the states that clicks left behind since the last restart or edit."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    desk, now, before = Labels(path, CLASSES), [], []
    for what, *given_ in sequence:
        kept = [row for row in now if not given_ or row[0] != given_[0]]
        if what in ("set", "skip"):
            before.append(now)
            now = [*kept, [given_[0], given_[1] if what == "set" else ""]]
            getattr(desk, what)(*given_)
        elif what == "undo":
            now = before.pop() if before else now[:-1]
            desk.undo()
        elif what == "restart":
            desk, before = Labels(path, CLASSES), []
        elif what == "edit":  # by hand, the split left empty
            was = lines(path) if path.exists() else []
            rows = [row for row in was if row[0] != given_[0]] + [[*given_, ""]]
            with open(path, "w", encoding="utf-8", newline="") as f:
                csv.writer(f).writerows([labels.COLUMNS, *rows])
            now, before = [*kept, given_], []
        assert [[v, label] for v, (label, _) in labels.read(path, CLASSES).items()] == now
        assert desk.reread() == labels.read(path, CLASSES)
    counts = desk.counts()
    for name in CLASSES:
        assert sum(counts[name]) == sum(label == name for _, label in now)


def test_every_fourth_of_a_class_is_held_out_and_stays_so(tmp_path):
    desk = Labels(tmp_path / "labels.csv", ["a", "b"])
    held_out: set[str] = set()
    for i in range(40):
        desk.set(f"{i}.mp4", "ab"[i % 3 == 0])
        now = {v for v, (_, split) in desk.rows.items() if split == "test"}
        assert held_out <= now
        held_out = now
    for train, test in desk.counts().values():
        assert abs(test - (train + test) / 4) <= 0.5
    assert [split for label, split in desk.rows.values() if label == "b"][:6] == [
        "train", "test", "train", "train", "train", "test",
    ]  # fmt: skip


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
def test_a_wrong_line_is_named_and_nothing_is_lost(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    desk = Labels(path, CLASSES)
    desk.set("b.mp4", "walks")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabelError, match=message):
        labels.read(path, CLASSES)
    with pytest.raises(LabelError, match=message):
        desk.set("c.mp4", "walks")
    assert path.read_text(encoding="utf-8") == text


def test_what_a_spreadsheet_does_to_the_file_is_fine(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffvideo,label,split\r\nü.mp4, walks ,\r\n,,\r\nb.mp4,,skip\r\n".encode())
    assert labels.read(path, CLASSES) == {"ü.mp4": ("walks", "train"), "b.mp4": ("", "skip")}
    path.write_bytes("video,label,split\nü.mp4,x,\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels.csv: not a text file"):
        labels.read(path)


def test_the_uncertain_and_the_rare_come_first():
    videos = ["a", "b", "c", "d"]
    rows = {"x": ("cat", "train"), "y": ("cat", "train"), "z": ("dog", "train")}
    features = Likeness.of(np.full((4, 2), 0.5))

    def first(margins, predicted, rows=rows):
        said = pd.DataFrame({"margin": margins, "predicted": predicted}, index=videos[: len(margins)])
        return suggest(videos, features, rows, ["cat", "dog", "owl"], said)[0]

    assert first([0.9, 0.2, 0.5, 0.8], ["cat"] * 4) == "b"  # the least certain
    assert first([0.5, 0.5, 0.5, 0.5], ["cat", "dog", "owl", "cat"]) == "c"  # the class without labels
    assert first([0.2, 0.99, 0.9, 0.9], ["cat", "owl", "dog", "cat"]) == "a"  # rare, but not in doubt
    assert first([0.2, 0.9, 0.9, 0.9], ["cat"] * 4, rows | {"a": ("cat", "test")}) != "a"
    assert first([0.2, 0.9, 0.9], ["cat"] * 3) == "d"  # new since the training
    assert suggest(videos, features, dict.fromkeys(videos, ("", "skip")), ["cat"], None) == ("", "")


def test_before_any_training_it_is_what_is_unlike_the_others_but_no_oddity():
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
    for name in ("mine", "told"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "data").symlink_to(flat / "tiny/data")
    return params.load(**given, classes=["clock", "daisy", "envelope"])


def true(video: str) -> str:
    return video.rsplit("_", 2)[0]


def test_from_the_first_click_to_the_gain(own):
    desk = Desk(own)
    assert len(desk.videos) == 18
    widget = Annotator(desk)
    assert desk.labels.lacking().startswith("Label videos of at least two classes first: 0 of 3")
    sizes = [len(widget.clip)]
    for _ in range(12):
        video = widget.state["video"]
        widget.press("label", video, true(video))
        widget.press("label", video, "envelope")  # a second press meant for the same clip changes nothing
        assert labels.read(own.lists)[video][0] == true(video)
        sizes.append(len(widget.clip))
    assert min(sizes) > 1000  # a clip each time
    assert len(desk.labels.rows) == 12
    assert widget.state["left"] == 6
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
    assert desk.lacking() == ""
    made = annotate.train(desk.p)
    table, gain = annotate.worth(made)
    held_out = {v for v, (_, split) in desk.labels.rows.items() if split == "test"}
    assert set(pd.read_csv(made["videossl"].predictions_test).video) == held_out
    assert gain.videos == len(held_out) == table.held_out.iloc[0]
    assert gain.points == pytest.approx(table.video_top1["videossl"] - table.video_top1["supervised"])
    split = made["videossl"].read_split()
    assert last not in set(split.video)  # skipped
    assert (split.role == "labelled").sum() == 12 - len(held_out)
    unlabelled = split[split.role == "unlabelled"]
    assert len(unlabelled) == 5
    assert set(unlabelled.label) == {-1}
    assert set(unlabelled.class_name) == {""}
    log, metrics = (pd.read_csv(f) for f in (made["videossl"].log, made["videossl"].metrics))
    assert log.confident_top1.isna().all()
    assert set(metrics.subset) == {"test"}  # nothing is claimed of videos whose class nobody knows

    answers = classify.rest(desk.p)
    assert set(answers.table.video) == set(unlabelled.video)
    answers.write(desk.predictions)
    video, why = desk.suggest()
    assert video in set(unlabelled.video)
    assert re.search(r"taken for \w+, margin 0\.\d\d", why)

    checkpoint = made["videossl"].checkpoint
    before = checkpoint.read_bytes()
    annotate.train(desk.p)
    assert checkpoint.read_bytes() == before  # nothing changed, nothing done
    again.press("label", again.state["video"], true(again.state["video"]))
    made = annotate.train(desk.p)  # one label more: made anew
    assert (made["videossl"].read_split().role == "unlabelled").sum() == 4


def test_an_interrupted_training_with_new_labels_is_not_mistaken_for_the_old_one(own, monkeypatch):
    desk = Labels(own.lists, own.classes)
    for video in datasets.videos_below(own.root)[:14]:
        desk.set(video, true(video))
    annotate.train(own)
    desk.undo()
    real = training._Training.step

    def stop(self, step, batch):
        if step == 3:
            raise KeyboardInterrupt
        real(self, step, batch)

    monkeypatch.setattr(training._Training, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        annotate.train(own)
    monkeypatch.undo()
    made = annotate.train(own)
    assert [run.finished for run in made.values()] == [True, True]
    assert made["supervised"].read_provenance()["resumed"][0]["step"] == 2  # went on, not anew
    for run in made.values():
        assert len(run.read_split()[lambda t: t.role != "unlabelled"]) == 13


def test_nobody_peeks_at_classes_that_are_not_told(own, tmp_path):
    """The weights are the same bits whether the index knows the classes of the unlabelled videos or not."""
    desk = Labels(own.lists, own.classes)
    videos = datasets.videos_below(own.root)
    for video in videos[::2]:
        desk.set(video, true(video))
    unknown = training.train(own)
    told = pd.DataFrame(
        [(v, true(v), "test" if desk.rows.get(v, ("", ""))[1] == "test" else "train") for v in videos],
        columns=["video", "label", "split"],
    )
    told.to_csv(tmp_path / "told.csv", index=False)
    labelled = [f"{v}*{own.classes.index(c)}" for v, (c, split) in desk.rows.items() if split == "train"]
    (tmp_path / "labelled.lst").write_text("\n".join(labelled))
    lists = {"label_draw": "list", "label_list": tmp_path / "labelled.lst", "lists": tmp_path / "told.csv"}
    known_run = training.train(own.model_copy(update={"source": "csv", "dataset": "told"} | lists))
    assert list(known_run.read_split().role) == list(unknown.read_split().role)
    mine, theirs = (torch.load(r.checkpoint, weights_only=True)["model"] for r in (unknown, known_run))
    assert (known_run.read_split().label >= 0).all()
    assert same(mine, theirs)


def test_an_index_of_annotated_videos(tmp_path):
    root = tmp_path / "v"
    small_videos(root, ["x/a.mp4", "b.mp4", "c.mp4", "d.mp4"])
    given = {"dataset": "some", "source": "annotated", "root": root}
    with pytest.raises(DatasetError, match=r"labels.csv: no labelled video yet"):
        datasets.read_index(params.load(**given))
    (root / "labels.csv").write_text("video,label,split\nx/a.mp4,up,train\n")
    with pytest.raises(DatasetError, match=r"labels.csv: no held-out video yet"):
        datasets.read_index(params.load(**given))
    (root / "labels.csv").write_text("video,label,split\nx/a.mp4,up,train\nd.mp4,down,test\nc.mp4,,skip\n")
    index = datasets.read_index(params.load(**given))
    assert index.classes == ["down", "up"]
    assert index.table.values.tolist() == [
        ["b.mp4", "", -1, "train"], ["d.mp4", "down", 0, "test"], ["x/a.mp4", "up", 1, "train"],
    ]  # fmt: skip
    split = splits.make_split(params.load(**given, label_pct=100), index)
    assert dict(zip(split.video, split.role, strict=True)) == {
        "b.mp4": "unlabelled", "d.mp4": "test", "x/a.mp4": "labelled",
    }  # fmt: skip
    pd.testing.assert_frame_equal(splits.from_csv(splits.to_csv(split)), split, check_dtype=False)
    table = show.role_table(split, index.classes)
    assert table.loc["(unknown)", "unlabelled"] == 1
    assert table.loc["all"].sum() == 3
    with pytest.raises(LabelError, match=r"line 2: 'up' is not one of the classes down, left"):
        datasets.read_index(params.load(**given, classes="down,left"))
    (root / "labels.csv").unlink()
    with pytest.raises(params.ParameterError, match="classes = None: name those"):
        Desk(params.load(**TINY | given))


def test_a_hand_edit_that_goes_wrong_is_shown_and_mended(own):
    widget = Annotator(Desk(own))
    video = widget.state["video"]
    file = own.lists
    file.write_text("video,label,split\nx.mp4,clokc,\n")
    widget.press("label", video, "clock")
    assert "labels.csv line 2: 'clokc' is not one of" in widget.state["problem"]
    assert widget.state["video"] == video  # still the same question
    file.write_text("video,label,split\nx.mp4,clock,\n")
    widget.press("label", video, "clock")
    assert widget.state["problem"] == ""
    assert list(labels.read(file)) == ["x.mp4", video]


def test_the_last_video_and_nothing_to_take_back(own):
    widget = Annotator(Desk(own))
    widget.press("undo")
    assert widget.state["said"] == "nothing to take back"
    for _ in range(18):
        widget.press("skip", widget.state["video"])
    assert (widget.state["video"], widget.clip, widget.state["left"]) == ("", b"", 0)
    widget.press("undo")
    assert widget.state["left"] == 1


def test_a_label_for_every_video_leaves_nothing_to_learn_from(own):
    desk = Desk(own)
    for video in desk.videos:
        desk.labels.set(video, true(video))
    assert desk.labels.lacking() == ""
    assert desk.lacking().startswith("Every video has a label")
    desk.labels.undo()
    assert desk.lacking() == ""


def test_the_interval_of_a_gain_covers_the_truth():
    """Simulated: about 95 of 100 intervals hold the true difference, with few videos too."""
    rng = np.random.default_rng(0)
    for n, chances in ((8, [0.4, 0.1, 0.5]), (30, [0.3, 0.05, 0.65]), (100, [0.1, 0.1, 0.8])):
        true_gain, covered = 100 * (chances[0] - chances[1]), 0
        for _ in range(1000):
            kind = rng.choice(3, n, p=chances)
            both = kind == 2
            gain = paired_gain((kind == 1) | both, (kind == 0) | both)
            assert gain.low <= gain.points <= gain.high
            covered += gain.low <= true_gain <= gain.high
        assert covered >= 930
    few = paired_gain(np.array([True, False]), np.array([True, True]))
    assert (few.won, few.lost, few.points) == (1, 0, 50)
    assert few.low < 0  # two videos prove nothing
