"""The loop: every method trains, and nothing that would make a number a lie reaches the weights."""

import itertools
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from support.helpers import NETWORKS, record, same, slow_after, stop_at, without_times

from videossl_core import batches, losses, methods, models, params, predict, prepare, runs, training
from videossl_core.data import splits
from videossl_core.teacher import Classifier
from videossl_core.training import Trainer

EVALUATIONS = [(step, subset) for step in (2, 4) for subset in ("test", "unlabelled")]


def trained(p) -> dict:
    return training.train(p).read_checkpoint()


@pytest.mark.parametrize("method", slow_after(2, NETWORKS))
def test_record_of_every_network(tiny, method):
    p = tiny(method=method, tau=0.5)
    run = training.train(p)
    assert run.folder == p.outputs / "tiny" / method / "50" / "seed0"
    metrics = pd.read_csv(run.metrics)
    assert list(metrics.columns) == ["step", "subset", "clip_top1", "video_top1", "videos"]
    assert list(zip(metrics.step, metrics.subset, strict=True)) == EVALUATIONS
    assert metrics.clip_top1.between(0, 100).all()
    assert metrics.videos.tolist() == [4, 4, 14, 4]  # all test videos in the end
    log = pd.read_csv(run.log)
    terms = [f"loss_{t}" for t in methods.METHODS[method].terms]
    assert [c for c in log.columns if c.startswith("loss_")] == terms
    assert log.notna().drop(columns="confident_top1", errors="ignore").all(axis=None)
    facts = run.read_provenance()
    assert facts["split_sha256"] == runs.splits.split_hash(run.read_split())
    assert {"torch", "av", "python", "pillow", "simplejpeg"} <= facts["versions"].keys()
    assert facts["cpu"] == torch.backends.cpu.get_cpu_capability()
    assert run.read_params()["seed"] == facts["seed"] == 0
    assert len(pd.read_csv(run.predictions_test)) == 14
    start = training.build_network(p, 14).state_dict()
    end = run.read_checkpoint()["model"]
    assert all(not torch.equal(start[k], end[k]) for k in start if k.endswith("weight"))
    network, classes = training.load_network(run, p)
    assert len(classes) == 14
    assert not network.training


@pytest.mark.slow
def test_trainer_alone_writes_nothing(tiny):
    """Iterating yields the rows of log.csv and metrics.csv; files are the run's business."""
    p = tiny()
    trainer = Trainer(p, prepare.prepare(p))
    before = sorted(p.outputs.rglob("*"))
    rows = list(trainer)
    assert sorted(p.outputs.rglob("*")) == before
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [(row["step"], row["subset"]) for row in rows if "subset" in row] == EVALUATIONS
    assert rows == sorted(trainer.log + trainer.metrics, key=lambda row: row["step"])
    assert len(trainer.test_predictions.table) == 14
    assert list(trainer) == []  # it is at its end


@pytest.mark.slow
def test_teacher_is_asked_about_the_view(tiny):
    """The logged loss is equation 4 with the answers to the batch's pictures; the teacher is no part of what
    trains, and is asked only where a method distils."""
    p = tiny(method="sd", teacher_view="same", augment="standard")
    data = prepare.prepare(p)
    trainer = Trainer(p, data)
    batch = trainer.batches[0]
    batch.pop("step")
    h = Classifier(p.teacher)(batch["teacher"])[0].clone()
    q = training.build_network(p, 14)(batch["clips"])["embedding"].softmax(-1)
    values = trainer.step(batch)
    assert values["loss_distil"].item() == pytest.approx(-(h * q.log()).sum(-1).mean().item(), rel=1e-5)
    other = trainer.step({n: v for n, v in trainer.batches[1].items() if n != "step"})
    assert other["loss_distil"] != values["loss_distil"]
    assert all(w.grad is None and not w.requires_grad for w in trainer.teacher.parameters())
    for given in ({"method": "supervised"}, {"teacher_view": "stored"}):
        assert Trainer(p.but(**given), data).teacher is None


@pytest.mark.slow
def test_same_command_same_bits(tiny):
    """And with ``deterministic`` nearly the default's."""
    weights = []
    for p in (tiny(), tiny(variant="deterministic", deterministic=True)):
        first = trained(p)
        assert same(without_times(trained(p.but(overwrite=True))), without_times(first))
        assert not torch.are_deterministic_algorithms_enabled()
        weights.append(first["model"])
    torch.testing.assert_close(*weights, rtol=0.05, atol=1e-3)


@pytest.mark.slow
def test_hidden_labels_reach_no_weight(tiny, monkeypatch):
    """Lie about every label that the training must not see: nothing but the log may change."""
    p = tiny(method="videossl", tau=0, delta=0.1)
    honest = trained(p)
    original = batches.Batches.__getitem__

    def lying(self, step):
        batch = original(self, step)
        return batch | {"hidden": (batch["hidden"] + 1) % 14}

    monkeypatch.setattr(batches.Batches, "__getitem__", lying)
    liar = trained(p.but(overwrite=True))
    assert same(liar["model"], honest["model"])
    assert honest["log"][-1]["confident_pct"] > 0  # pseudo-labels were at work


def test_supervised_reads_labelled_only(tiny):
    p = tiny(method="supervised")
    data = prepare.prepare(p)
    data.store.images = Mock(wraps=data.store.images)
    made = batches.Batches(p, methods.METHODS["supervised"], data.split, data.store, None)
    for step in range(6):
        made[step]
    read = {call.args[0] for call in data.store.images.call_args_list}
    assert read == set(data.rows("labelled").video)


@pytest.mark.slow
def test_consistency_has_a_gradient(tiny):
    """The bug of others: comparing the teacher with itself. Zero at step 0 with equal views, not after."""
    p = tiny(method="mean_teacher", consistency_ramp=0, lr=0.1, mt_view="same")
    data, method = prepare.prepare(p), methods.METHODS["mean_teacher"]
    batch = batches.Batches(p, method, data.split, data.store, None)[0]
    network = training.build_network(p, 14).double()
    for _ in range(30):  # batch-norm statistics of real clips
        network(batch["clips"])
    network.eval()  # equal batch-norm mode: only the weights may differ
    ema = models.averaged(network, p.ema_decay)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

    def gradient() -> float:
        network.zero_grad()
        out = methods.forward(network, ema, batch, method, p)
        losses.consistency_loss(out["classes"], out["ema_classes"]).sum().backward()
        assert all(w.grad is None for w in ema.parameters())
        return sum(w.grad.abs().sum().item() for w in network.parameters() if w.grad is not None)

    ema.update_parameters(network)
    assert gradient() == 0
    out = methods.forward(network, ema, batch, method, p)
    losses.supervised_loss(out["classes"][:2], batch["labels"]).sum().backward()
    optimizer.step()
    ema.update_parameters(network)
    assert gradient() > 0


def test_average_follows_its_formula(tiny):
    network = training.build_network(tiny(), 14)
    ema = models.averaged(network, 0.6)
    name = "heads.classes.bias"
    expected = None
    for n in range(6):
        with torch.no_grad():
            network.heads["classes"].bias.fill_(float(n))
            network.backbone[1].running_mean.fill_(float(n))
        ema.update_parameters(network)
        decay = min(0.6, 1 - 1 / (n + 1))
        expected = float(n) if n == 0 else decay * expected + (1 - decay) * n
        assert ema.module.state_dict()[name][0].item() == pytest.approx(expected, rel=1e-6)
        assert ema.module.backbone[1].running_mean[0].item() == n  # buffers are copied, not averaged


@pytest.mark.parametrize(("rotate_on", "clips"), [("both", 4), ("unlabelled", 2)])
@pytest.mark.parametrize("rotations", ["all", "one"])
def test_rotation_targets(tiny, rotate_on, clips, rotations):
    """What the rotation head is trained to answer is the turn that each clip was shown at."""
    p = tiny(method="s4l", s4l_rotate_on=rotate_on, s4l_rotations=rotations)
    data, method = prepare.prepare(p), methods.METHODS["s4l"]
    batch = batches.Batches(p, method, data.split, data.store, None)[0]

    def network(x):  # "recognises" the turn by finding the upright clip it came from
        logits = torch.zeros(len(x), 4)
        for (i, clip), turn in itertools.product(enumerate(x), range(4)):
            upright = torch.rot90(clip, -turn, (2, 3))
            logits[i, turn] = float(any(torch.equal(upright, c) for c in batch["clips"]))
        return {"classes": torch.zeros(len(x), 14), "rotation": logits}

    out = methods.forward(network, None, batch, method, p)
    logits, turns = methods.rotations(out, batch, p)
    assert logits.shape == (4 if rotations == "all" else 1, clips, 4)
    assert torch.equal(logits.argmax(-1), turns)
    assert len(out["classes"]) == 4


def test_learning_rate():
    rates = [training.learning_rate(step, params.Params()) for step in (0, 39_999, 40_000, 79_999, 80_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def fails_at_third_step(p, network, match):
    """The run must end after its checkpoint of step 2, which stays."""
    with pytest.raises(FloatingPointError, match=match), runs.open(p) as run:
        list(run.record(Trainer(p, prepare.prepare(p), network=network)))
    kept = run.read_checkpoint()
    assert kept["step"] == 2
    assert all(w.isfinite().all() for w in kept["model"].values())


def at_third_call(value: float):
    """A hook that multiplies what it is given by this at the third call."""
    calls = itertools.count(1)
    return lambda tensor: tensor * value if next(calls) == 3 else tensor


@pytest.mark.slow
def test_loss_not_finite(tiny):
    p = tiny()
    network, spoil = training.build_network(p, 14), at_third_call(float("nan"))
    network.heads["embedding"].register_forward_hook(lambda m, x, y: spoil(y) if m.training else y)
    message = r"step 2: the loss is not finite \(supervised = [\d.]+, pseudo = [\d.]+, distil = nan"
    fails_at_third_step(p, network, message)
    whole = trained(p.but(outputs=tiny(outputs=p.outputs.parent / "whole").outputs))
    assert same(without_times(trained(p)), without_times(whole))  # nothing of the accident is left behind


def test_gradient_not_finite(tiny):
    p = tiny()
    network = training.build_network(p, 14)
    network.backbone[4].body[0].weight.register_hook(at_third_call(float("inf")))
    fails_at_third_step(p, network, r"step 2: the gradient of backbone\.4\.body\.0\.weight is not finite")


@pytest.mark.slow
def test_weight_not_finite(tiny, monkeypatch):
    original, calls = torch.optim.SGD.step, itertools.count(1)

    def broken(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if next(calls) == 4:
            self.param_groups[0]["params"][-1].data[0] = float("inf")

    monkeypatch.setattr(torch.optim.SGD, "step", broken)
    fails_at_third_step(tiny(), None, r"after step 4: the weight heads\.embedding\.bias is not finite")


def test_prediction_not_finite(tiny):
    p = tiny()
    network = training.build_network(p, 14)
    network.heads["classes"].register_forward_hook(lambda m, x, y: y if m.training else y * float("nan"))
    with pytest.raises(FloatingPointError, match=r"mp4: the network's prediction is not finite"):
        list(Trainer(p, prepare.prepare(p), network=network))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "mean_teacher"])
def test_best_weights_are_kept(tiny, method, monkeypatch):
    """With keep = best the test videos are those of the evaluation with the best val videos, here the first;
    the last weights stay in the checkpoint, and held-out labels reach no weight."""
    given = {"method": method, "label_pct": 90, "label_draw": "uniform", "val_pct": 50}
    last = training.train(tiny(**given, variant="last"))
    after_two = stop_at(tiny(**given, variant="two"), 2).read_checkpoint()
    top1, keep = iter([50.0, 25.0]), Trainer._keep_best
    monkeypatch.setattr(Trainer, "_keep_best", lambda self, net, _: keep(self, net, next(top1)))
    p = tiny(**given, keep="best")
    run = training.train(p)
    rows = [(step, subset) for step in (2, 4) for subset in ("val", "test", "unlabelled")]
    metrics = pd.read_csv(run.metrics)
    assert list(zip(metrics.step, metrics.subset, strict=True)) == rows
    checkpoint = run.read_checkpoint()
    assert same(checkpoint["model"], last.read_checkpoint()["model"])
    assert run.read_provenance()["kept_step"] == checkpoint["best"]["step"] == 2
    assert same(checkpoint["best"]["weights"], after_two["ema" if method == "mean_teacher" else "model"])
    assert run.predictions_test.read_bytes() != last.predictions_test.read_bytes()
    predict, _ = training.load_predictor(run, p)
    data = prepare.prepare(p, with_teacher=False)
    again = predict(data.rows("test"), data.store).table
    assert again.to_csv(index=False) == run.predictions_test.read_text()
    # resumed after its first evaluation, it has the same record
    monkeypatch.setattr(Trainer, "_keep_best", keep)
    runs_of = [tiny(**given, keep="best", variant=name) for name in ("whole", "parts")]
    whole = training.train(runs_of[0])
    stop_at(runs_of[1], 2)
    assert same(record(training.train(runs_of[1])), record(whole))


def test_no_video_to_choose_by(tiny):
    with pytest.raises(splits.SplitError, match="no class has enough labelled videos"):
        prepare.prepare(tiny(method="supervised", val_pct=50))
    with pytest.raises(params.ParameterError, match="keep = 'best' needs val_pct"):
        tiny(keep="best")


@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_balanced_classes(tiny, balance):
    """Three videos of one class and one of another: as many clips of each, or weights 2/3 and 2 whose sum a
    video is the same."""
    p = tiny(method="supervised", batch_size=8, class_balance=balance)
    data = prepare.prepare(p, with_teacher=False)
    split = data.split[data.split.label.isin([0, 1])].copy()
    split["role"] = "unlabelled"
    first, second = (split.index[split.label == label] for label in (0, 1))
    split.loc[[*first[:3], second[0]], "role"] = "labelled"
    reader = batches.Batches(p, methods.METHODS["supervised"], split, data.store, None)
    batch = reader[0]
    count = torch.bincount(batch["labels"]).tolist()
    logits = torch.randn(8, 14, generator=torch.Generator().manual_seed(0))
    loss = methods.TERMS["supervised"].loss({"classes": logits}, batch, p).double()
    each = -logits.double().log_softmax(-1)[torch.arange(8), batch["labels"]]
    if balance == "sampler":
        assert count == [4, 4]
        assert "label_weights" not in batch
        torch.testing.assert_close(loss, each, rtol=1e-6, atol=0)
    else:
        assert count == [6, 2]
        weights = torch.tensor([2 / 3, 2.0], dtype=torch.float64)[batch["labels"]]
        torch.testing.assert_close(loss, each * weights, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_spread_clips_train_and_predict(tiny):
    """The one clip of a video of 8 to 15 frames is spread over it; with a second one the two are averaged."""
    p = tiny(method="videossl", clips="spread", clip_frames=4, tau=0.5)
    run = training.train(p)
    found = predict.predict_files(p, p.videos_dir)
    frames = found.store.table.frames[found.clips.video]
    seconds = (frames / found.store.table.fps[found.clips.video]).to_numpy()
    assert (found.clips.start == 0).all()
    assert found.clips.end.to_numpy() == pytest.approx(seconds)
    assert (found.clips.groupby("video").size() == found.store.table.frames // 4).all()
    recorded = pd.read_csv(run.predictions_test).set_index("video").video_pred
    assert (found.table.set_index("video").predicted[recorded.index] == recorded).all()


@pytest.mark.parametrize("method", slow_after(2, NETWORKS))
def test_gpu_never_waits_for_a_step(tiny, monkeypatch, method):
    """PyTorch's meta device has shapes and no numbers: what asks for one, for which a GPU would have to be
    waited for, is an error. Only a row of the log asks."""
    p = tiny(method=method, tau=0, s4l_rotations="one", log_every=3)
    data = prepare.prepare(p)
    monkeypatch.setattr(training, "device", lambda p: "meta")
    trainer = Trainer(p, data)
    trainer.look_every = p.log_every
    steps = batches.prefetch(batches.loader(trainer.batches, p, "cpu", sampler=range(4)), "meta")
    for batch in itertools.islice(steps, 2):
        batch.pop("step")
        assert all(value.is_meta for value in trainer.step(batch).values())
    assert len(trainer.unseen) == 2
    batch = next(steps)
    batch.pop("step")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        trainer.step(batch)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["videossl", "mt_sd"])
def test_looking_seldom_changes_nothing(tiny, monkeypatch, method):
    """Fetched for rows of the log alone, as on a GPU: the same record, also when interrupted in between."""
    usual = record(training.train(tiny(method=method, tau=0.5, log_every=3, steps=5)))
    p = tiny(method=method, tau=0.5, log_every=3, steps=5, variant="seldom", checkpoint_minutes=0)
    make = Trainer.__init__

    def seldom(self, *args, **kwargs):
        make(self, *args, **kwargs)
        self.look_every = self.p.log_every

    monkeypatch.setattr(Trainer, "__init__", seldom)
    for stop in (1, 4):
        with runs.open(p) as run:
            trainer = Trainer(p, prepare.prepare(p))
            rows = run.record(trainer)
            while trainer.step_number < stop:
                next(rows)
    assert same(record(training.train(p)), usual)


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0, 10])
def test_not_finite_where_nobody_looked(tiny, minutes):
    """A checkpoint looks first, so that none holds it, and the error names the step."""
    p = tiny(log_every=4, eval_every=4, checkpoint_minutes=minutes)
    trainer, spoil = Trainer(p, prepare.prepare(p)), at_third_call(float("nan"))
    trainer.look_every = 4
    hook = lambda m, x, y: spoil(y) if m.training else y  # noqa: E731
    trainer.network.heads["embedding"].register_forward_hook(hook)
    with pytest.raises(FloatingPointError, match="step 2: the loss is not finite"), runs.open(p) as run:
        list(run.record(trainer))
    assert run.checkpoint.exists() == (minutes == 0)
    if minutes == 0:
        kept = run.read_checkpoint()
        assert kept["step"] == 2
        assert all(w.isfinite().all() for w in kept["model"].values())
