"""A run's folder: resumed exactly, refused when its data or parameters changed, never half replaced."""

import json
import signal

import pytest
import torch
from support.helpers import same, slow_after, stop_at, without_times

from videossl_core import params, prepare, runs, training
from videossl_core.data import files
from videossl_core.runs import RunError
from videossl_core.training import Trainer


def trained(p) -> dict:
    return training.train(p).read_checkpoint()


def resumed(p) -> list[int]:
    """Train; returns the steps that were left to do."""
    with runs.open(p) as run:
        return [row["step"] for row in run.record(Trainer(p, prepare.prepare(p))) if "loss" in row]


@pytest.mark.parametrize("method", slow_after(1, ["videossl", "mt_sd", "s4l"]))
def test_resumed_equals_uninterrupted(tiny, method):
    whole = trained(tiny(method=method, seed=1))
    p = tiny(method=method, seed=1, outputs=tiny().outputs.parent / "again")
    run = stop_at(p, 3, ValueError)
    assert run.read_checkpoint()["step"] == 3  # what was trained is saved when the loop is left
    assert resumed(p) == [4]
    assert same(without_times(run.read_checkpoint()), without_times(whole))


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"method": "supervised", "augment": "standard"},
        {"method": "sd", "teacher_view": "same"},
        {"method": "mt_sd", "augment": "standard", "teacher_view": "same"},
    ],
    ids=lambda given: "-".join(given.values()),
)
def test_augmented_run_resumes_too(tiny, given):
    whole = trained(tiny(**given, variant="whole"))
    plain = trained(tiny(method=given["method"], variant="plain"))
    assert not same(whole["model"], plain["model"])
    p = tiny(**given)
    stop_at(p, 3)
    assert resumed(p) == [4]
    assert same(without_times(runs.Run(p.run_dir).read_checkpoint()), without_times(whole))


@pytest.mark.slow
def test_run_from_before_a_parameter_resumes(tiny):
    """Its params.json lacks the parameter: it did what the default says."""
    p = tiny()
    whole = trained(p.but(variant="whole"))
    run = stop_at(p, 3)
    recorded = run.read_params()
    for name in ("augment", "teacher_view"):
        del recorded[name]
    run.params.write_text(json.dumps(recorded))
    with pytest.raises(runs.RunError, match="augment was 'crop' and is now 'standard'"):
        training.train(p.but(augment="standard"))
    assert resumed(p) == [4]
    assert same(without_times(run.read_checkpoint()), without_times(whole))
    assert params.of_run(p).augment == "crop"


@pytest.mark.slow
def test_interrupt_after_whole_step(tiny):
    """The stop button takes effect between two steps, and the same again goes on from there."""
    p = tiny(method="mt_sd", seed=2)
    whole = trained(p.but(variant="whole"))
    trainer = Trainer(p, prepare.prepare(p))
    original = trainer.optimizer.step

    def press_stop(*args):
        result = original(*args)
        if trainer.step_number == 2:
            signal.raise_signal(signal.SIGINT)  # before the averaged network has followed
        return result

    trainer.optimizer.step = press_stop
    with pytest.raises(KeyboardInterrupt), runs.open(p) as run:
        list(run.record(trainer))
    assert run.read_checkpoint()["step"] == 3
    assert same(without_times(trained(p)), without_times(whole))


def test_break_saves_too(tiny):
    p = tiny()
    with runs.open(p) as run:
        for _ in run.record(Trainer(p, prepare.prepare(p))):
            break
    assert run.read_checkpoint()["step"] == 1
    assert not run.finished


@pytest.mark.slow
def test_checkpoint_between_log_rows(tiny):
    """Means over the steps between two rows of the log lose no step to a resume."""
    given = {"steps": 6, "log_every": 3, "eval_every": 6, "checkpoint_minutes": 0}
    whole = trained(tiny(**given))
    p = tiny(**given, overwrite=True)
    data = prepare.prepare(p)
    with runs.open(p) as run:
        trainer = Trainer(p, data)
        for _ in run.record(trainer):
            break  # at the row of step 3
        steps = trainer.steps()
        next(steps)
        next(steps)
        run.write_checkpoint(trainer.state_dict())
    assert len(run.read_checkpoint()["window"]) == 2
    assert same(without_times(trained(p)), without_times(whole))


@pytest.mark.slow
def test_finished_run_is_left_alone(tiny, monkeypatch):
    """And its checkpoint holds nothing but tensors and plain containers."""
    run = training.train(tiny())
    before = run.checkpoint.stat().st_mtime_ns
    monkeypatch.setattr(training, "prepare", lambda *_, **__: pytest.fail("started again"))
    assert training.train(tiny()).finished
    with runs.open(tiny()) as run:
        assert list(run.record(None)) == []
    assert run.checkpoint.stat().st_mtime_ns == before
    assert torch.load(run.checkpoint, weights_only=True)["step"] == 4


@pytest.mark.slow
def test_other_parameters_are_refused(tiny):
    training.train(tiny())
    with pytest.raises(RunError, match=r"lr was 0.01 and is now 0.5.*overwrite"):
        training.train(tiny(lr=0.5))
    training.train(tiny(num_workers=0))  # how a run is carried out may change
    assert training.train(tiny(lr=0.5, overwrite=True)).read_params()["lr"] == 0.5


@pytest.mark.slow
def test_resume_must_and_never(tiny):
    with pytest.raises(RunError, match="resume = must, but there is no run"):
        training.train(tiny(resume="must"))
    run = training.train(tiny())
    started = run.read_provenance()["started"], run.checkpoint.stat().st_mtime_ns
    training.train(tiny(resume="never"))
    assert (run.read_provenance()["started"], run.checkpoint.stat().st_mtime_ns) != started


@pytest.mark.slow
def test_interrupted_overwrite_is_resumed(tiny):
    """The same command again, after a preemption, must not start over each time."""
    training.train(tiny(lr=0.5))
    p = tiny(overwrite=True)
    stop_at(p, 3)
    assert resumed(p) == [4]
    assert resumed(p) == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"overwrite": True}, {"resume": "never"}, {"lr": 0.5, "overwrite": True}])
def test_failed_start_removes_nothing(tiny, monkeypatch, given):
    run = training.train(tiny())
    before = {name: (run.folder / name).read_bytes() for name in runs.FILES}

    def refuse(*_, **__):
        raise ValueError("no video")

    monkeypatch.setattr(training, "Trainer", refuse)
    with pytest.raises(ValueError, match="no video"):
        training.train(tiny(**given))
    assert {name: (run.folder / name).read_bytes() for name in runs.FILES} == before


@pytest.mark.slow
def test_new_run_keeps_other_files(tiny):
    run = training.train(tiny())
    (run.folder / "notes.txt").write_text("mine")
    before = {path.name for path in run.folder.iterdir()}
    training.train(tiny(overwrite=True))
    assert before == {path.name for path in run.folder.iterdir()} == {*runs.FILES, "notes.txt", ".lock"}


@pytest.fixture
def unfinished(tiny) -> runs.Run:
    """A run at its last step, not marked as finished."""
    run = training.train(tiny())
    facts = run.read_provenance()
    facts.pop("finished")
    run.write_provenance(facts)
    return run


def test_changed_split_is_refused(tiny, unfinished):
    split = unfinished.read_split()
    split.loc[split.role == "unlabelled", "role"] = "labelled"  # more labels than claimed
    unfinished.split.write_text(runs.splits.to_csv(split))
    with pytest.raises(RunError, match=r"another split.*14 videos changed.*role was labelled and is now unl"):
        training.train(tiny())


@pytest.mark.slow
def test_other_draw_is_refused(tiny, unfinished, monkeypatch):
    p, split = tiny(), unfinished.read_split()
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
    assert [r["step"] for r in unfinished.read_provenance()["resumed"]] == [4]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    slow_after(
        1,
        [
            (
                "classes",
                [f"c{i}" for i in range(14)],
                "class 0 = c0, the data and machine now give clock_falls",
            ),
            ("teacher", "teacher-resnet50-0123456789ab", "teacher = teacher-resnet50-0123456789ab, the data"),
            ("videos_sha256", "0" * 64, "videos_sha256 = 000"),
            ("split_sha256", "0" * 64, "split_sha256 = 000"),
        ],
    ),
)
def test_checkpoint_of_other_data_is_refused(tiny, unfinished, name, value, message):
    torch.save(unfinished.read_checkpoint() | {name: value}, unfinished.checkpoint)
    with pytest.raises(RunError, match=message):
        training.train(tiny())


def test_damaged_checkpoint_is_named(tmp_path):
    run = runs.Run(tmp_path)
    run.write_checkpoint({"step": 1, "log": [], "metrics": [], "model": {"w": torch.ones(1000)}})
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"checkpoint.pt: not a readable checkpoint"):
        run.read_checkpoint()


def test_one_process_per_run(tiny):
    p = tiny()
    with files.locked(p.run_dir), pytest.raises(files.Busy, match="another process works here now"):
        training.train(p)
    assert training.train(p).finished
