"""The loop: every method trains, resumes exactly, and refuses what would make a number a lie."""

import pandas as pd
import pytest
import torch
from helpers import same, without_times

from videossl_core import losses, methods, models, prepare, runs, sampling, training
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
    assert facts["cpu"] == torch.backends.cpu.get_cpu_capability()
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


class Stopped(Exception):
    pass


@pytest.mark.parametrize("method", ["videossl", "mt_sd", "s4l"])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, method):
    def stop(row):
        if row["step"] == 3:
            raise Stopped

    whole = trained(tiny(method=method, seed=1))
    stopped = tiny(method=method, seed=1, outputs=tiny().outputs.parent / "again")
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


def test_deterministic_runs_are_the_same_bits_and_nearly_the_default(tiny):
    strict = tiny(deterministic=True)
    first = trained(strict)
    assert not torch.are_deterministic_algorithms_enabled()
    assert same(without_times(trained(tiny(deterministic=True, overwrite=True))), without_times(first))
    usual = trained(tiny(overwrite=True))
    for name, weight in usual["model"].items():
        assert torch.allclose(weight, first["model"][name], rtol=0.05, atol=1e-3), name


def test_a_finished_run_is_left_alone(tiny, monkeypatch):
    run = training.train(tiny())
    before = run.checkpoint.stat().st_mtime_ns
    monkeypatch.setattr(training, "prepare", lambda *_, **__: pytest.fail("started again"))
    training.train(tiny())
    assert run.checkpoint.stat().st_mtime_ns == before


def test_what_two_methods_must_share_is_in_their_settings(tiny):
    for given in ({"method": "sd"}, {}, {"variant": "lr", "lr": 0.5}, {"variant": "T", "T": 1}):
        training.train(tiny(**{"method": "supervised"} | given))
    found = runs.find(tiny().outputs, variants=True)
    found = found.set_index(found.method + found.variant).settings
    assert found["supervised"] == found["sd"] == found["supervisedT"]
    assert found["supervisedlr"] != found["supervised"]


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
    unfinished(run)
    split = run.read_split()
    split.loc[split.role == "unlabelled", "role"] = "labelled"  # more labels than claimed
    run.split.write_text(runs.splits.to_csv(split))
    with pytest.raises(RunError, match=r"another split.*14 videos changed.*role was labelled and is now unl"):
        training.train(p)


def unfinished(run):
    facts = run.read_provenance()
    facts.pop("finished")
    run.write_provenance(facts)


def test_a_draw_that_comes_out_otherwise_is_refused_not_followed(tiny, monkeypatch):
    p = tiny()
    run = training.train(p)
    unfinished(run)
    split = run.read_split()
    swapped = split.assign(role=split.role.replace({"labelled": "unlabelled", "unlabelled": "labelled"}))
    monkeypatch.setattr(prepare.splits, "make_split", lambda *_: swapped)
    with pytest.raises(RunError, match=r"28 videos changed, such as train/.*mp4, whose role was"):
        training.train(p)
    fewer = split[1:]
    monkeypatch.setattr(prepare.splits, "make_split", lambda *_: fewer)
    with pytest.raises(RunError, match=f"1 videos are gone, such as {split.video[0]}"):
        training.train(p)
    monkeypatch.undo()
    assert training.train(p).finished
    assert [r["step"] for r in run.read_provenance()["resumed"]] == [4]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("classes", [f"c{i}" for i in range(14)], "class 0 = c0, the data now give clock_falls"),
        ("teacher", "teacher-resnet50-0123456789ab", "teacher = teacher-resnet50-0123456789ab, the data now"),
        ("videos_sha256", "0" * 64, "videos_sha256 = 000"),
        ("split_sha256", "0" * 64, "split_sha256 = 000"),
    ],
)
def test_a_checkpoint_of_other_data_is_refused(tiny, name, value, said):
    p = tiny()
    run = training.train(p)
    unfinished(run)
    torch.save(run.read_checkpoint() | {name: value}, run.checkpoint)
    with pytest.raises(RunError, match=said):
        training.train(p)


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
    data.store.images = lambda video, numbers: (
        asked.append(video) or type(data.store).images(data.store, video, numbers)
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


def test_the_average_follows_its_formula(tiny):
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

    out = methods.forward(network, None, batch, method, p)
    assert out["rotation"].shape == (4 if rotations == "all" else 1, clips, 4)
    assert torch.equal(out["rotation"].argmax(-1), out["quarter_turns"])
    assert len(out["classes"]) == 4


def test_learning_rate_is_divided_by_ten():
    from videossl_core.params import Params

    rates = [training.learning_rate(step, Params()) for step in (0, 39_999, 40_000, 79_999, 80_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def stops_at_three(tiny, match):
    """The run must end after its checkpoint of step 2, which stays."""
    p = tiny()
    with pytest.raises(FloatingPointError, match=match):
        training.train(p)
    kept = runs.Run(p.run_dir).read_checkpoint()
    assert kept["step"] == 2
    assert all(w.isfinite().all() for w in kept["model"].values())
    return p


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_part(tiny, monkeypatch):
    original = methods.total_loss

    def broken(method, out, step, p):
        return original(
            method, out | {"embedding": out["embedding"] * (float("nan") if step == 2 else 1)}, step, p
        )

    monkeypatch.setattr(training.methods, "total_loss", broken)
    p = stops_at_three(
        tiny, r"step 2: the loss is not finite \(supervised = [\d.]+, pseudo = [\d.]+, distil = nan"
    )
    monkeypatch.undo()
    whole = trained(tiny(outputs=p.outputs.parent / "whole"))  # nothing of the accident is left behind
    assert same(without_times(trained(p)), without_times(whole))


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_parameter(tiny, monkeypatch):
    original = training.build_network

    def broken(p, classes):
        network, calls = original(p, classes), []
        poison = lambda g: calls.append(1) or (g * float("inf") if len(calls) == 3 else g)  # noqa: E731
        network.backbone[4].body[0].weight.register_hook(poison)
        return network

    monkeypatch.setattr(training, "build_network", broken)
    stops_at_three(tiny, r"step 2: the gradient of backbone\.4\.body\.0\.weight is not finite")


def test_a_weight_that_is_not_finite_is_never_saved(tiny, monkeypatch):
    original = torch.optim.SGD.step

    def broken(self, *args, **kwargs):
        original(self, *args, **kwargs)
        broken.steps += 1
        if broken.steps == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][-1][0] = float("inf")

    broken.steps = 0
    monkeypatch.setattr(torch.optim.SGD, "step", broken)
    stops_at_three(tiny, r"after step 4: the weights of heads\.embedding\.bias are not finite")


def test_an_answer_that_is_not_finite_stops_the_evaluation(tiny, monkeypatch):
    def broken(self, clips):
        out = original(self, clips)
        return out if self.training else {k: v * float("nan") for k, v in out.items()}

    original = training.models.VideoNet.forward
    monkeypatch.setattr(training.models.VideoNet, "forward", broken)
    with pytest.raises(FloatingPointError, match=r"mp4: what the network says of it is not finite"):
        training.train(tiny())


def test_overwriting_that_was_interrupted_goes_on(tiny):
    """The same command again, after a preemption, must not begin anew each time."""

    def stop(row):
        if row["step"] == 3:
            raise Stopped

    run = training.train(tiny(lr=0.5))
    with pytest.raises(Stopped):
        training.train(tiny(overwrite=True), on_log=stop)
    assert not run.finished
    steps = []
    training.train(tiny(overwrite=True), on_log=lambda row: steps.append(row["step"]))
    assert steps == [3, 4]
    steps.clear()
    training.train(tiny(overwrite=True), on_log=lambda row: steps.append(row["step"]))
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("given", [{"overwrite": True}, {"resume": "never"}, {"lr": 0.5, "overwrite": True}])
def test_what_cannot_begin_removes_nothing(tiny, monkeypatch, given):
    run = training.train(tiny())
    before = {path: path.read_bytes() for path in run.files}

    def refuse(*_):
        raise ValueError("no video")

    monkeypatch.setattr(training, "Batches", refuse)
    with pytest.raises(ValueError, match="no video"):
        training.train(tiny(**given))
    assert {path: path.read_bytes() for path in run.files} == before


def test_a_checkpoint_between_two_rows_of_the_log_loses_no_step_of_their_means(tiny):
    def stop(row):
        if row["step"] == 6:
            raise Stopped

    given = {"steps": 6, "log_every": 3, "eval_every": 6, "checkpoint_minutes": 0}
    whole = trained(tiny(**given))
    p = tiny(**given, overwrite=True)
    with pytest.raises(Stopped):
        training.train(p, on_log=stop)
    assert runs.Run(p.run_dir).read_checkpoint()["window"]["steps"] == 2
    assert same(without_times(trained(p)), without_times(whole))


def test_two_processes_never_train_one_run(tiny):
    p = tiny()
    with (
        runs.alone(runs.Run(p.run_dir)),
        pytest.raises(RunError, match="another process trains this run now"),
    ):
        training.train(p)
    assert training.train(p).finished


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
    again = tiny(method="sd", T=1, variant="T=1")  # beside the run with the usual parameters
    training.train(again)
    assert runs.find(p.outputs).variant.tolist() == [""]
    assert sorted(runs.find(p.outputs, variants=True).variant) == ["", "T=1"]
