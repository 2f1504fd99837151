"""Labels on disk, suggestions, the widget without a browser, and the training on these labels."""

import csv
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from support.helpers import TINY, same, small_videos

from benchmarks.labels import needed, simulate
from videossl_core import params, predict, prepare, teacher, training
from videossl_core.data import datasets, labels, splits
from videossl_core.data.datasets import DatasetError
from videossl_core.data.labels import LabelError
from videossl_core.linear import STRENGTH
from videossl_lab import clips
from videossl_lab.annotate import gain
from videossl_lab.annotate.labels import Labels
from videossl_lab.annotate.suggest import Learner
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
        ("video|label|split\n", "labels.csv line 1: must be video,label,split"),
        ("video,label,split\na.mp4,walks\n", "line 2: .*2 cells instead of 3"),
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


def blobs(
    classes: int, n: int, spread: float = 1.0, size: int = 8
) -> tuple[list[str], np.ndarray, list[str]]:
    """Names, features and classes of videos; those of a class lie together."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    x = 3 * np.eye(classes, size)[labels] + spread * rng.normal(size=(n, size))
    return [f"{i}.mp4" for i in range(n)], x.astype(np.float32), [f"c{label}" for label in labels]


def logistic(x: np.ndarray, labels: list[str]) -> LogisticRegression:
    """The layer as its loss is written, on the features as they are; with two classes each has weights of its
    own, which is the same as twice the strength."""
    strength = STRENGTH * (1 + (len(set(labels)) == 2))
    return LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(x.astype(float), labels)


def test_guesses_are_those_of_a_logistic_regression():
    """On the training labels alone; nothing is guessed before the second class has one."""
    videos, x, true = blobs(3, 60)
    learner = Learner(videos, x, ["c0", "c1", "c2", "unused"])
    rows = {videos[0]: ("c0", "train"), videos[1]: ("c1", "test"), "gone.mp4": ("c2", "train")}
    learner.learn(rows)
    assert (learner.guess(videos[5]), learner.sure(rows, 0.1), learner.curve) == ([], 0, [])
    rows |= {videos[i]: (true[i], "test" if i % 4 == 3 else "train") for i in range(2, 24)}
    learner.learn(rows)
    train = [i for i in range(24) if rows[videos[i]][1] == "train"]
    fitted = logistic(x[train], [true[i] for i in train])
    expected = pd.DataFrame(fitted.predict_proba(x), videos, fitted.classes_)
    for video in videos:
        guess = dict(learner.guess(video))
        assert guess.pop("unused") == 0
        assert guess == pytest.approx(expected.loc[video].to_dict(), abs=0.02)
        assert list(guess.values()) == sorted(guess.values(), reverse=True)
    sure = expected[~expected.index.isin(rows)].max(axis=1) >= 0.9
    assert learner.sure(rows, 0.9) == sure.sum()


@pytest.mark.slow
def test_curve_by_hand():
    """Accuracy of each fifth by a fit on the others. Videos of one source, which differ in nothing, are left
    out together; after a restart and after an undo the curve is the same."""
    videos, x, true = blobs(3, 48, spread=2.5)
    videos[4:8], x[4:8] = [f"v_walk_g01_c{i:02d}.mp4" for i in range(4)], x[4]
    learner = Learner(videos, x, ["c0", "c1", "c2"])
    rows: dict = {}
    curves = []
    for i in range(23):
        rows[videos[i]] = (true[i], "train")
        learner.learn(rows)
        curves.append(learner.curve)
    source = [4 if 4 <= i < 8 else i for i in range(23)]
    fold = [sorted(set(source)).index(number) % 5 for number in source]
    for n, accuracy in curves[-1]:
        right = 0
        for k in range(5):
            known, out = ([i for i in range(n) if (fold[i] == k) is left_out] for left_out in (False, True))
            if out:
                right += (
                    logistic(x[known], [true[i] for i in known]).predict(x[out]) == np.array(true)[out]
                ).sum()
        assert accuracy == pytest.approx(100 * right / n)
    assert [n for n, _ in curves[-1]] == [5, 10, 15, 20, 23]
    restarted = Learner(videos, x, ["c0", "c1", "c2"])
    restarted.learn(rows)
    assert restarted.curve == curves[-1]
    learner.learn(dict(list(rows.items())[:-1]))
    assert learner.curve == curves[-2]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_held_out_labels_teach_nothing(data):
    """Whatever class they have, guesses, curve and the next suggestion are the same bits."""
    videos, x, true = blobs(3, 30)
    order = data.draw(st.permutations(range(30)))[: data.draw(st.integers(2, 25))]
    splits_ = data.draw(st.lists(st.sampled_from(["train", "test"]), min_size=30, max_size=30))
    outcomes = []
    for other in (0, data.draw(st.integers(1, 2))):
        labels_ = {i: true[i] if splits_[i] == "train" else f"c{(i + other) % 3}" for i in order}
        learner = Learner(videos, x, ["c0", "c1", "c2"])
        rows = {videos[i]: (label, splits_[i]) for i, label in labels_.items()}
        learner.learn(rows)
        guesses = [learner.guess(video) for video in videos]
        outcomes.append((guesses, learner.curve, learner.suggest(rows), learner.sure(rows, 0.9)))
    assert outcomes[0] == outcomes[1]


def test_suggest_by_margin_and_class():
    """Uncertain videos and those of rare classes come first."""
    learner = Learner(list("abcd"), np.eye(4, dtype=np.float32), ["cat", "dog", "owl"])

    def first(*probs, rows=None):
        learner.probs, learner.count = np.array(probs), np.array([4, 2, 0])
        return learner.suggest(rows or {})

    cat, dog, owl = [0.9, 0.1, 0], [0.1, 0.9, 0], [0.1, 0, 0.9]
    assert first(cat, [0.6, 0.4, 0], cat, cat) == "b"  # the least certain
    assert first(cat, dog, owl, cat) == "c"  # the class without labels
    assert first([0.55, 0.45, 0], [0.01, 0.99, 0], cat, [0.01, 0, 0.99]) == "a"  # rare, but not in doubt
    assert first([0.55, 0.45, 0], cat, dog, cat, rows={"a": ("cat", "test")}) == "c"
    assert first(cat, cat, cat, cat, rows=dict.fromkeys("abcd", ("", "skip"))) == ""
    assert learner.why("a") == "the next guess would be dog, 10 %"


def test_suggest_before_two_classes():
    """Diverse videos come first, but no oddity."""
    rng = np.random.default_rng(0)
    x = np.repeat([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [6, 6, 1], axis=0) + 0.1 * rng.normal(size=(13, 3))
    learner = Learner([f"{i:02d}" for i in range(13)], x.astype(np.float32), ["a", "b"])
    first = learner.suggest({})
    assert learner.why(first) == "a typical video to begin with"
    rows = {first: ("a", "train")}
    learner.learn(rows)
    second = learner.suggest(rows)
    assert {int(first) // 6, int(second) // 6} == {0, 1}  # one of each crowd; the loner is not among them
    assert learner.why(second) == "unlike those seen so far"


@pytest.mark.slow
def test_simulated_labelling():
    """Both orders begin alike; accuracy and sure guesses at the end by hand."""
    videos, x, true = blobs(3, 40, spread=2.0)
    role = ["test" if i % 4 == 0 else "labelled" for i in range(40)]
    split = pd.DataFrame({"video": videos, "class_name": true, "role": role})
    learner = Learner(videos, x, ["c0", "c1", "c2"])
    first, other = (simulate(learner, split, how, 5, 12) for how in ("random", "suggested"))
    assert list(first.labels) == list(other.labels) == [*range(1, 13)]
    assert first.top1[0] == other.top1[0]
    known = np.random.default_rng(5).permutation([i for i in range(40) if i % 4])[:12]
    fitted = logistic(x[known], [true[i] for i in known])
    right = fitted.predict(x) == np.array(true)
    sure = (fitted.predict_proba(x).max(1) >= 0.95) & (np.arange(40) % 4 > 0) & ~np.isin(np.arange(40), known)
    last = first.iloc[-1]
    assert last.top1 == 100 * right[::4].mean()
    assert [last.sure, last.sure_right] == [sure.sum(), (sure & right).sum()]
    both = pd.concat([first.assign(top1=80.0), other.assign(top1=[89.9] * 11 + [90])])
    assert needed(both)[5].to_dict() == {"random": np.inf, "suggested": 12}


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
    teacher.build_targets(p, store, list(store.table.index), "cpu", features=True)
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


def label(widget: Annotator, count: int) -> None:
    """Give so many clips their true class."""
    for _ in range(count):
        widget.press("label", widget.state["video"], true(widget.state["video"]))


@pytest.mark.slow
def test_press_by_press(own):
    """What is shown after each press is what the labels so far teach; undo and a restart bring it back."""
    desk = Desk(own)
    assert len(desk.videos) == 18
    widget = Annotator(desk)
    assert desk.labels.lacking().startswith("Label videos of at least two classes first: 0 of 3")
    assert (widget.state["guess"], widget.state["curve"]) == ([], [])
    shown = []
    for _ in range(12):
        shown.append(widget.state)
        assert len(widget.clip) > 1000
        video = widget.state["video"]
        widget.press("label", video, true(video))
        widget.press("label", video, "envelope")  # a second press meant for the same clip changes nothing
        assert labels.read(own.lists)[video][0] == true(video)
    assert (len(desk.labels.rows), widget.state["left"]) == (12, 6)
    name, probability = widget.state["guess"][0]
    assert name in own.classes
    assert 1 / 3 <= probability <= 1
    assert 0 <= widget.state["sure"] <= 6
    trained = sum(split == "train" for _, split in desk.labels.rows.values())
    assert widget.state["curve"][-1][0] == trained
    last = widget.state["video"]
    for before in shown[:8:-1]:  # what was taken back is shown as it was
        widget.press("undo")
        keys = ("video", "why", "guess", "counts", "curve", "left", "sure")
        assert [widget.state[key] for key in keys] == [before[key] for key in keys]
    label(widget, 3)
    assert widget.state["video"] == last
    widget.press("skip", last)
    assert desk.labels.rows[last] == ("", "skip")
    again = Annotator(Desk(own))  # after a restart
    for key in ("counts", "curve", "left", "sure"):
        assert again.state[key] == widget.state[key]
    assert again.state["left"] == 5
    assert np.array_equal(again.desk.learner.probs, desk.learner.probs)


@pytest.mark.slow
def test_predictions_without_a_network(own, monkeypatch):
    """From the labels to the classes of the rest, by the frozen teacher alone, as often as labels change; a
    label for every video leaves nothing to sort, which is no error."""
    monkeypatch.setattr(training, "Trainer", None)
    desk = Desk(own)
    widget = Annotator(desk)
    label(widget, 12)
    for left in (6, 5, 0):
        run = gain.train(desk.p, ["probe"])["probe"]
        predictions = predict.predict_unlabelled(desk.p.but(method="probe"))
        predictions.write(desk.predictions)
        assert len(pd.read_csv(desk.predictions)) == left
        assert set(predictions.table.video) == set(desk.videos) - set(desk.labels.rows)
        held_out = {v for v, (_, split) in desk.labels.rows.items() if split == "test"}
        assert set(pd.read_csv(run.predictions_test).video) == held_out
        label(widget, 1 if left == 6 else left)
    assert not (own.outputs / "mine" / "videossl").exists()


@pytest.mark.slow
def test_first_click_to_gain(own):
    """Label with the widget, train all three, compare, predict the rest, and once more with a new label."""
    desk = Desk(own)
    widget = Annotator(desk)
    label(widget, 12)
    skipped = widget.state["video"]
    widget.press("skip", skipped)
    trained = gain.train(desk.p)
    assert [*trained] == ["probe", "supervised", "videossl"]
    table, gains = gain.compare_runs(trained)
    held_out = {v for v, (_, split) in desk.labels.rows.items() if split == "test"}
    for run in trained.values():
        assert set(pd.read_csv(run.predictions_test).video) == held_out
    assert [*gains] == [("probe", "supervised"), ("probe", "videossl"), ("supervised", "videossl")]
    for (first, last), difference in gains.items():
        assert difference.videos == len(held_out) == table.held_out.iloc[0]
        assert difference.points == pytest.approx(table.video_top1[last] - table.video_top1[first])
    split = trained["videossl"].read_split()
    assert skipped not in set(split.video)
    assert (split.role == "labelled").sum() == 12 - len(held_out)
    unlabelled = split[split.role == "unlabelled"]
    assert unlabelled[["label", "class_name"]].value_counts().to_dict() == {(-1, ""): 5}
    log, metrics = (pd.read_csv(f) for f in (trained["videossl"].log, trained["videossl"].metrics))
    assert log.confident_top1.isna().all()
    assert set(metrics.subset) == {"test"}  # nothing is claimed of videos whose class nobody knows

    for method in trained:
        predictions = predict.predict_unlabelled(desk.p.but(method=method))
        assert set(predictions.table.video) == set(unlabelled.video)

    checkpoint = trained["videossl"].checkpoint
    before = checkpoint.read_bytes()
    gain.train(desk.p)
    assert checkpoint.read_bytes() == before  # nothing changed, nothing done
    label(widget, 1)
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
    assert all(run.finished for run in trained.values())
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_last_video_and_first_undo(own):
    """With a label for every video there is no clip to show."""
    desk = Desk(own)
    widget = Annotator(desk)
    widget.press("undo")
    assert widget.state["message"] == "nothing to take back"
    label(widget, 18)
    assert (len(desk.labels.rows), widget.clip, widget.state["left"]) == (18, b"", 0)
    assert (widget.state["guess"], widget.state["sure"]) == ([], 0)
    widget.press("undo")
    assert widget.state["left"] == 1
    assert desk.labels.lacking() == ""


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


def compared(**right: str) -> gain.Gains:
    """The gains of methods of which each gets the videos right that its string has a 1 for."""
    outcomes = {name: np.array([*map(int, text)], bool) for name, text in right.items()}
    return {(a, b): paired_gain(outcomes[a], outcomes[b]) for a, b in combinations(outcomes, 2)}


def test_which_to_use():
    """Few videos cannot tell, and the cheapest is to be used; a dearer one must have won beyond doubt."""
    same_, worse, better = "1101011010", "0101011010", "1111011010"
    for probe, supervised, videossl in ((same_,) * 3, (same_, worse, better), (same_, better, better)):
        best, why = gain.choose(compared(probe=probe, supervised=supervised, videossl=videossl))
        assert best == "probe"
        assert why.startswith(
            "Use probe: these 10 held-out videos cannot tell it from supervised and videossl;"
        )
    best, why = gain.choose(compared(probe="01" * 20, supervised="10" * 20, videossl="1" * 40))
    assert best == "videossl"
    assert why == "Use videossl: these 40 held-out videos show that it is better than probe and supervised."
    best, why = gain.choose(compared(probe="1" * 40, supervised="01" * 20, videossl="1" * 39 + "0"))
    assert best == "probe"
    assert (
        "show that it is better than supervised; these 40 held-out videos cannot tell it from videossl" in why
    )
    best, why = gain.choose(compared(probe="0" * 40, supervised="1" * 39 + "0", videossl="1" * 40))
    assert best == "supervised"  # not shown to be worse than the dearer one
    assert why.endswith("better than probe; these 40 held-out videos cannot tell it from videossl.")
    best, why = gain.choose(compared(probe="1" * 20, supervised="0" * 20))
    assert why == "Use probe: these 20 held-out videos show that it is better than supervised."
