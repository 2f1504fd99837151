"""The loop: every method trains, resumes exactly, and refuses what would make a number a lie."""

import json

import pandas as pd
import pytest
import torch

from videossl_core import methods, prepare, runs, sampling, training
from videossl_core.runs import RunError


def trained(p) -> dict:
    return training.train(p).read_checkpoint()


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_run_of_every_method_leaves_its_record(tiny, method):
    p = tiny(method=method, tau=0.5)
    run = training.train(p)
    assert run.folder == p.outputs / "tiny" / method / "50" / "seed0"
    metrics = pd.read_csv(run.metrics)
    assert list(metrics.columns) == ["step", "subset", "clip_top1", "video_top1", "videos"]
    assert list(zip(metrics.step, metrics.subset, strict=True)) == [
        (step, subset) for step in (2, 4) for subset in ("test", "unlabelled")
    ]
    assert metrics.clip_top1.between(0, 100).all()
    assert metrics.videos.tolist() == [4, 4, 14, 4]  # all test videos in the end
    log = pd.read_csv(run.log)
    assert [c for c in log.columns if c.startswith("loss_")] == [
        f"loss_{t}" for t in methods.METHODS[method].terms
    ]
    assert log.notna().drop(columns="confident_top1", errors="ignore").all(axis=None)
    facts = run.read_provenance()
    assert facts["split_sha256"] == runs.splits.split_hash(run.read_split())
    assert {"torch", "av", "python"} <= facts["versions"].keys()
    assert run.read_params()["seed"] == facts["seed"] == 0
    assert len(pd.read_csv(run.predictions_test)) == 14
    start = training.build_network(p, 14).state_dict()
    end = run.read_checkpoint()["model"]
    assert all(not torch.equal(start[k], end[k]) for k in start if k.endswith("weight"))
    network, classes = training.load_network(run, p)
    assert len(classes) == 14
    assert not network.training


def test_checkpoints_hold_nothing_that_runs_code(tiny):
    """weights_only loading refuses anything but tensors and plain containers."""
    assert torch.load(training.train(tiny()).checkpoint, weights_only=True)["step"] == 4


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


TIMES = ("seconds", "clips_per_s")


def without_times(state: dict) -> dict:
    log = [{k: v for k, v in row.items() if k not in TIMES} for row in state["log"]]
    return {k: v for k, v in state.items() if k not in TIMES} | {"log": log}


class Stopped(Exception):
    pass


@pytest.mark.parametrize("method", ["videossl", "mt_sd", "s4l"])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, method):
    def stop(row):
        if row["step"] == 3:
            raise Stopped

    whole = trained(tiny(method=method, seed=1))
    stopped = tiny(method=method, seed=1, outputs=tiny().outputs.parent / "again")
    stopped.data_dir.parent.mkdir(parents=True)
    stopped.data_dir.symlink_to(tiny().data_dir.resolve())  # the same prepared videos
    with pytest.raises(Stopped):
        training.train(stopped, on_log=stop)
    assert runs.Run(stopped.run_dir).read_checkpoint()["step"] == 2
    assert not runs.Run(stopped.run_dir).finished
    resumed = trained(stopped)
    assert same(without_times(resumed), without_times(whole))


def test_the_same_command_gives_the_same_bits(tiny):
    p = tiny()
    first = trained(p)
    assert same(without_times(trained(tiny(overwrite=True))), without_times(first))


def test_a_finished_run_is_left_alone(tiny, monkeypatch):
    run = training.train(tiny())
    before = run.checkpoint.stat().st_mtime_ns
    monkeypatch.setattr(training, "prepare", lambda *_, **__: pytest.fail("started again"))
    training.train(tiny())
    assert run.checkpoint.stat().st_mtime_ns == before


def test_other_parameters_are_refused_by_name(tiny):
    training.train(tiny())
    with pytest.raises(RunError, match=r"lr was 0.01 and is now 0.5.*overwrite"):
        training.train(tiny(lr=0.5))
    training.train(tiny(num_workers=0))  # how a run is carried out may change
    assert training.train(tiny(lr=0.5, overwrite=True)).read_params()["lr"] == 0.5


def test_resume_must_and_never(tiny):
    with pytest.raises(RunError, match="resume = must, but there is no run"):
        training.train(tiny(resume="must"))
    run = training.train(tiny())
    started = run.read_provenance()["started"], run.checkpoint.stat().st_mtime_ns
    training.train(tiny(resume="never"))
    assert (run.read_provenance()["started"], run.checkpoint.stat().st_mtime_ns) != started


def test_a_changed_split_is_refused(tiny):
    p = tiny()
    run = training.train(p)
    facts = run.read_provenance()
    facts.pop("finished")
    run.provenance.write_text(json.dumps(facts))
    split = run.read_split()
    split.loc[split.role == "unlabelled", "role"] = "labelled"  # more labels than claimed
    run.split.write_text(runs.splits.to_csv(split))
    with pytest.raises(RunError, match="was trained with split_sha256"):
        training.train(p)


def test_the_saved_split_is_never_drawn_again(tiny, monkeypatch):
    p = tiny()
    run = training.train(p)
    facts = run.read_provenance()
    facts.pop("finished")
    run.provenance.write_text(json.dumps(facts))
    monkeypatch.setattr(runs.splits, "make_split", lambda *_: pytest.fail("drawn again"))
    assert training.train(p).finished


def test_a_damaged_checkpoint_is_named(tiny):
    p = tiny()
    run = training.train(p)
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"checkpoint.pt: not a readable checkpoint"):
        run.read_checkpoint()


def test_hidden_labels_never_reach_the_weights(tiny, monkeypatch):
    """Lie about every label that the training must not see: nothing but the log may change."""
    p = tiny(method="videossl", tau=0, delta=0.1)
    honest = trained(p)
    original = sampling.Batches.__getitem__

    def lying(self, step):
        batch = original(self, step)
        return batch | {"hidden": (batch["hidden"] + 1) % 14}

    monkeypatch.setattr(sampling.Batches, "__getitem__", lying)
    liar = trained(tiny(method="videossl", tau=0, delta=0.1, overwrite=True))
    assert same(liar["model"], honest["model"])
    assert honest["log"][-1]["confident_pct"] > 0  # pseudo-labels were at work


def test_supervised_sees_no_unlabelled_video(tiny):
    p = tiny(method="supervised")
    data = prepare.prepare(p)
    batches = sampling.Batches(p, methods.METHODS["supervised"], data.split, data.store, None)
    asked = []
    data.store.read = lambda video, numbers: (
        asked.append(video) or type(data.store).read(data.store, video, numbers)
    )
    for step in range(6):
        batches[step]
    assert set(asked) == set(data.rows("labelled").video)


def test_mean_teachers_consistency_has_a_gradient(tiny):
    """The bug of others: comparing the teacher with itself. Zero at step 0 with equal views, not after."""
    p = tiny(method="mean_teacher", consistency_ramp=0, lr=0.1, mt_view="same")
    data = prepare.prepare(p)
    method = methods.METHODS["mean_teacher"]
    batch = sampling.Batches(p, method, data.split, data.store, None)[0]
    network = training.build_network(p, 14).double()
    for _ in range(30):  # batch-norm statistics of real clips
        network(batch["clips"])
    network.eval()  # equal batch-norm mode: only the weights may differ
    ema = training.averaged(network, p.ema_decay)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

    def gradient() -> float:
        network.zero_grad()
        out = training.forward(network, ema, batch, method, p)
        losses = training.losses.consistency_loss(out["classes"], out["ema_classes"])
        losses.sum().backward()
        assert all(w.grad is None for w in ema.parameters())
        return sum(w.grad.abs().sum().item() for w in network.parameters() if w.grad is not None)

    ema.update_parameters(network)
    assert gradient() == 0
    out = training.forward(network, ema, batch, method, p)
    training.losses.supervised_loss(out["classes"][:2], batch["labels"]).sum().backward()
    optimizer.step()
    ema.update_parameters(network)
    assert gradient() > 0


def test_the_average_follows_its_formula(tiny):
    network = training.build_network(tiny(), 14)
    ema = training.averaged(network, 0.6)
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
def test_rotations_are_what_the_head_is_told(tiny, rotate_on, clips, rotations):
    p = tiny(method="s4l", s4l_rotate_on=rotate_on, s4l_rotations=rotations)
    data = prepare.prepare(p)
    method = methods.METHODS["s4l"]
    batch = sampling.Batches(p, method, data.split, data.store, None)[0]

    def network(x):  # "recognises" the turn by finding the upright clip it came from
        logits = torch.zeros(len(x), 4)
        for i, clip in enumerate(x):
            for turn in range(4):
                upright = torch.rot90(clip, -turn, (2, 3))
                logits[i, turn] = float(any(torch.equal(upright, c) for c in batch["clips"]))
        return {"classes": torch.zeros(len(x), 14), "rotation": logits}

    out = training.forward(network, None, batch, method, p)
    assert out["rotation"].shape == (4 if rotations == "all" else 1, clips, 4)
    assert torch.equal(out["rotation"].argmax(-1), out["quarter_turns"])
    assert len(out["classes"]) == 4


def test_learning_rate_is_divided_by_ten():
    from videossl_core.params import Params

    rates = [training.learning_rate(step, Params()) for step in (0, 39_999, 40_000, 79_999, 80_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def test_a_loss_that_is_not_finite_stops_the_run(tiny, monkeypatch):
    def broken(self, clips):
        out = original(self, clips)
        return {k: v * float("nan") for k, v in out.items()} if self.training else out

    original = training.models.VideoNet.forward
    monkeypatch.setattr(training.models.VideoNet, "forward", broken)
    with pytest.raises(FloatingPointError, match=r"step 0: the loss is not finite \(supervised = nan"):
        training.train(tiny())


def test_finished_runs_are_found(tiny):
    p = tiny(method="sd")
    training.train(p)
    found = runs.find(p.outputs)
    assert found[["dataset", "method", "label_pct", "seed", "steps"]].values.tolist() == [
        ["tiny", "sd", 50.0, 0, 4]
    ]
    last = pd.read_csv(runs.Run(p.run_dir).metrics).query("subset == 'test'").iloc[-1]
    assert found.video_top1[0] == pytest.approx(last.video_top1, abs=0.01)
    assert runs.find(p.outputs, "other").empty
