"""A linear layer on the frozen teacher's features: against other optimisers, and as a run like any other."""

from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from support.helpers import same, slow_after

from videossl_core import evaluation, linear, params, predict, prepare, probe, runs, training
from videossl_core.data import demo
from videossl_core.linear import Linear, Neighbours, Scale


def blobs(classes: int, n: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(classes, size))[labels] + rng.normal(size=(n, size)), labels


def by_hand(x: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> np.ndarray:
    """Probabilities of a softmax regression in float64, by BFGS on its loss and gradient as they stand."""

    def loss(flat):
        w, b = flat[: classes * x.shape[1]].reshape(classes, -1), flat[classes * x.shape[1] :]
        logits = x @ w.T + b
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        residual = np.exp(log_p) - np.eye(classes)[labels]
        value = -strength * log_p[np.arange(len(x)), labels].sum() + (w**2).sum() / 2
        return value, np.concatenate([(strength * residual.T @ x + w).ravel(), strength * residual.sum(0)])

    start = np.zeros(classes * (x.shape[1] + 1))
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 10_000}).x
    w, b = found[: classes * x.shape[1]].reshape(classes, -1), found[classes * x.shape[1] :]
    exp = np.exp(x @ w.T + b)
    return exp / exp.sum(1, keepdims=True)


@pytest.mark.parametrize(("classes", "n", "size"), [(3, 40, 5), (3, 9, 20), (2, 10, 6)])
@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_linear_is_softmax_regression(classes, n, size, strength):
    """Whether there are more videos than features or fewer, which the fit treats otherwise."""
    x, labels = blobs(classes, n, size)
    expected = by_hand(x, labels, classes, strength)
    assert np.allclose(Linear.fit(x, labels, classes, strength).probs(x), expected, atol=2e-3)


def test_class_without_label():
    """It is never predicted; with one class labelled there is nothing else to predict."""
    x, labels = blobs(3, 30, 4)
    probs = Linear.fit(x, labels * 2, 6, 1.0).probs(x)
    assert (probs[:, [1, 3, 5]] == 0).all()
    assert np.allclose(probs[:, [0, 2, 4]], Linear.fit(x, labels, 3, 1.0).probs(x))
    assert (Linear.fit(x, np.full(30, 1), 3, 1.0).probs(x) == [0, 1, 0]).all()
    assert np.allclose(Neighbours.fit(x, labels * 2, 6).probs(x).sum(1), 1)


def test_one_label_a_class():
    """Is no cause for a warning, which scikit-learn gives from 21 videos on."""
    x, labels = blobs(25, 25, 40)
    assert (Linear.fit(x, labels, 25, 10.0).probs(x).argmax(1) == labels).all()


def test_features_by_hand():
    """Five frames: the middle one counts in the mean alone. One frame has no motion."""
    quarters = np.arange(5 * 2 * 4, dtype=float).reshape(5, 2, 2, 2) ** 2
    mean = quarters.sum((0, 2, 3)) / 20
    motion = (quarters[3] + quarters[4]) / 2 - (quarters[0] + quarters[1]) / 2
    assert np.allclose(probe.features(quarters, "mean"), mean)
    assert np.allclose(probe.features(quarters, "mean_and_motion"), [*mean, *motion.ravel()])
    assert (probe.features(quarters[:1], "mean_and_motion")[2:] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 30), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(0, 99))
def test_scale_lets_each_kind_count_alike(n, sizes, seed):
    """Each has length 1 in every video, in the direction of the standardised features."""
    x = np.random.default_rng(seed).normal(5, np.arange(1, sum(sizes) + 1), (n, sum(sizes)))
    standard = (x - x.mean(0)) / x.std(0)
    scaled, first = Scale.of(x, sizes)(x), sizes[0]
    for part, whole in ((scaled[:, :first], standard[:, :first]), (scaled[:, first:], standard[:, first:])):
        lengths = np.linalg.norm(whole, axis=1)
        assert np.allclose(part * lengths[:, None], whole)
        assert np.allclose((part**2).sum(1), 1)
    assert (Scale.of(np.ones((3, 2)), (2,))(np.ones((1, 2))) == 0).all()


def test_neighbours_by_hand():
    x, labels = blobs(3, 40, 5)
    other, _ = blobs(3, 4, 5, seed=1)
    fitted = Neighbours.fit(x, labels, 3)
    for row, probs in zip(other, fitted.probs(other), strict=True):
        cosine = [a @ row / np.sqrt((a @ a) * (row @ row)) for a in x]
        votes = np.zeros(3)
        for i in sorted(range(40), key=lambda i: -cosine[i])[:20]:
            votes[labels[i]] += np.exp(cosine[i] / 0.07)
        assert np.allclose(probs, votes / votes.sum())


def test_cross_validation_keeps_sources_together():
    """Twins with random labels: a fit that has seen the other twin would be right."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(60, 200)), 2, axis=0)
    labels, twins = np.repeat(rng.integers(0, 2, 60), 2), np.repeat(np.arange(60), 2)

    def right(sources):
        return (linear.cross_validated(x, labels, sources, 2, 100.0).argmax(1) == labels).mean()

    assert right(twins) < 0.65
    assert right(np.arange(120)) > 0.85


def test_strength_is_chosen_where_labels_allow():
    x, labels = blobs(3, 60, 5)
    rows = linear.choose_strength(x, labels, np.arange(60), 3)
    assert sorted(row["strength"] for row in rows) == list(linear.STRENGTHS)
    assert rows[0]["loss"] == min(row["loss"] for row in rows)
    few = [linear.choose_strength(x[:n], labels[:n], np.arange(n), 3) for n in (3, 5)]
    assert few == [[{"strength": linear.STRENGTH}]] * 2
    assert len(linear.choose_strength(x[:6], labels[:6], np.arange(6), 3)) == len(linear.STRENGTHS)


@pytest.mark.parametrize(
    ("length", "start", "expected"),
    [(17, 0, [0, 1, 2]), (16, 4, [1, 2]), (9, 8, [1, 2]), (8, 4, [0, 1]), (8, 7, [1, 2]), (2, 25, [2, 3])],
)
def test_frames_of_a_clip(tiny, length, start, expected):
    """The teacher saw frames 0, 8, 16 and 24. A short clip has but one or none: the two nearest then."""
    fitted = probe.Probe(tiny(method="probe", clip_frames=length), [], None, None)
    assert fitted._of_clip(4, start) == expected
    assert fitted._of_clip(1, 0) == [0]


@pytest.mark.parametrize(
    "given",
    slow_after(
        1,
        [
            {"method": "probe_motion", "label_pct": 100},  # two of each class: the strength is chosen
            {"method": "probe", "probe_classifier": "knn"},
            {"method": "probe"},
        ],
    ),
)
def test_run_like_any_other(tiny, given):
    """The same files; a new process predicts what is on record; again, there is nothing to do."""
    p = tiny(**given)
    run = training.train(p)
    assert run.finished
    assert {path.name for path in run.folder.iterdir()} == {*runs.FILES, ".lock"}
    metrics = pd.read_csv(run.metrics)
    assert metrics.subset.tolist() == (["test", "unlabelled"] if p.label_pct < 100 else ["test"])
    assert len(pd.read_csv(run.log)) == (1 if p.label_pct < 100 else len(linear.STRENGTHS))
    recorded = runs.read_table(run.predictions_test)
    assert metrics.video_top1[0] == pytest.approx(100 * recorded.video_right.mean())
    data = prepare.prepare(p, split=run.read_split())
    assert list(recorded.video) == list(data.rows("test").video)
    model, classes = training.load_predictor(run, p)
    again = model(data.rows("test"), data.store, every_clip=True)
    assert isinstance(again, evaluation.Predictions)
    pd.testing.assert_frame_equal(recorded, again.table, check_dtype=False)
    assert again.every_clip.shape == (14 * 4, len(classes))  # 32 frames are four clips
    before = run.checkpoint.read_bytes()
    assert training.train(p).finished
    assert run.checkpoint.read_bytes() == before


@pytest.mark.parametrize("where", slow_after(1, ["fit", "predict"]))
def test_interrupted_fit_leaves_no_half(tiny, monkeypatch, where):
    """The next start does all of it."""
    p = tiny(method="probe")
    with monkeypatch.context() as patch:
        owner = probe if where == "fit" else probe.Probe
        patch.setattr(owner, where, Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            training.train(p)
    assert not runs.Run(p.run_dir).finished
    run = training.train(p)
    assert run.finished
    assert len(runs.read_table(run.predictions_test)) == 14
    assert len(pd.read_csv(run.metrics)) == 2


def test_hidden_labels_have_no_say(tiny, monkeypatch):
    """With other labels of test and unlabelled videos, the same fit."""
    p = tiny(method="probe_motion")
    data = prepare.prepare(p)
    fitted, rows = probe.fit(p, data)
    hidden = data.split.role != "labelled"
    data.split.loc[hidden, "label"] = (data.split.label[hidden] + 1) % 14
    other, other_rows = probe.fit(p, data)
    assert same(fitted.state_dict(), other.state_dict())
    assert rows == other_rows


@pytest.mark.slow
def test_probe_predicts_other_videos(tiny):
    """Files outside of the data set; per clip and per video."""
    p = tiny(method="probe_motion")
    training.train(p)
    predictions = predict.predict_files(p, p.data_dir / "videos/test")
    recorded = runs.read_table(runs.Run(p.run_dir).predictions_test).set_index("video").video_pred
    table = predictions.table.set_index("video")
    assert table.predicted.to_dict() == {name.removeprefix("test/"): c for name, c in recorded.items()}
    assert len(predictions.clips) == 4 * len(table)


@pytest.mark.slow
def test_features_can_be_named(tiny):
    """``probe_features`` goes before the method's own, and stands in params.json."""
    named, own = tiny(method="probe", probe_features="mean_and_motion"), tiny(method="probe_motion")
    checkpoints = [training.train(p).read_checkpoint()["model"] for p in (named, own)]
    assert same(*checkpoints)
    assert runs.Run(named.run_dir).read_params()["probe_features"] == "mean_and_motion"
    with pytest.raises(params.ParameterError, match=r"probe_features = 'motion' is not one of"):
        tiny(probe_features="motion")
    with pytest.raises(ValueError, match=r"method = 'probe' has no network.*make_trainer"):
        training.Trainer(own.but(method="probe"), prepare.prepare(own))


@pytest.mark.slow
def test_still_frames_know_the_noun_but_not_the_verb(tmp_path):
    """A smaller demo with two labelled videos a class: the frozen features' mean names what is there and not
    where it goes; how the quarters change says that too."""
    given = {"dataset": "demo", "outputs": tmp_path, "demo_per_class": 9, "label_pct": 34}
    for method, whole in (("probe", False), ("probe_motion", True)):
        p = params.load(method=method, **given)
        table = runs.read_table(training.train(p).predictions_test)
        true, predicted = (
            names.str.rsplit("_", n=1, expand=True) for names in (table.class_name, table.video_pred)
        )
        noun, verb = ((true[i] == predicted[i]).mean() for i in (0, 1))
        assert set(true[0]) == set(demo.NOUNS)
        assert noun > 0.95
        assert (verb > 0.95) == whole
        assert whole or verb < 0.65
    assert (runs.Run(p.run_dir).read_split().role == "labelled").sum() == 28
