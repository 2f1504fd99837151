"""A run's folder: resumed exactly, refused when its data or parameters changed, never half replaced."""

import signal

import pytest
import torch
from support.helpers import same, without_times

from videossl_core import prepare, runs, training
from videossl_core.runs import RunError
from videossl_core.training import Trainer


def trained(p) -> dict:
    return training.train(p).read_checkpoint()


class Stopped(Exception):
    pass


def stop_at(p, step: int) -> runs.Run:
    """Train until the row of this step, then leave the loop by an error."""

    def train() -> None:
        with runs.open(p) as run:
            for row in run.record(Trainer(p, prepare.prepare(p))):
                if row["step"] == step:
                    raise Stopped

    with pytest.raises(Stopped):
        train()
    assert not runs.Run(p.run_dir).finished
    return runs.Run(p.run_dir)


@pytest.mark.parametrize("method", ["videossl", "mt_sd", "s4l"])
def test_resumed_equals_uninterrupted(tiny, method):
    whole = trained(tiny(method=method, seed=1))
    p = tiny(method=method, seed=1, outputs=tiny().outputs.parent / "again")
    run = stop_at(p, 3)
    assert run.read_checkpoint()["step"] == 3  # what was trained is saved when the loop is left
    steps = []
    with runs.open(p) as run:
        assert run.status == "resumed"
        steps = [row["step"] for row in run.record(Trainer(p, prepare.prepare(p))) if "loss" in row]
    assert steps == [4]
    assert same(without_times(run.read_checkpoint()), without_times(whole))


def test_interrupt_ends_after_a_whole_step(tiny):
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


def test_finished_run_is_left_alone(tiny, monkeypatch):
    run = training.train(tiny())
    before = run.checkpoint.stat().st_mtime_ns
    monkeypatch.setattr(training, "prepare", lambda *_, **__: pytest.fail("started again"))
    assert training.train(tiny()).finished
    with runs.open(tiny()) as run:
        assert list(run.record(None)) == []
    assert run.checkpoint.stat().st_mtime_ns == before


def test_checkpoint_holds_no_code(tiny):
    """weights_only loading refuses anything but tensors and plain containers."""
    assert torch.load(training.train(tiny()).checkpoint, weights_only=True)["step"] == 4


def test_other_parameters_are_refused(tiny):
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


def test_interrupted_overwrite_is_resumed(tiny):
    """The same command again, after a preemption, must not start over each time."""
    training.train(tiny(lr=0.5))
    p = tiny(overwrite=True)
    stop_at(p, 3)
    for expected in ([4], [1, 2, 3, 4]):
        with runs.open(p) as run:
            rows = list(run.record(Trainer(p, prepare.prepare(p))))
        assert [row["step"] for row in rows if "loss" in row] == expected


@pytest.mark.parametrize("given", [{"overwrite": True}, {"resume": "never"}, {"lr": 0.5, "overwrite": True}])
def test_what_cannot_start_removes_nothing(tiny, monkeypatch, given):
    run = training.train(tiny())
    before = {name: (run.folder / name).read_bytes() for name in runs.FILES}

    def refuse(*_, **__):
        raise ValueError("no video")

    monkeypatch.setattr(training, "Trainer", refuse)
    with pytest.raises(ValueError, match="no video"):
        training.train(tiny(**given))
    assert {name: (run.folder / name).read_bytes() for name in runs.FILES} == before


def test_new_run_replaces_its_own_files_only(tiny):
    run = training.train(tiny())
    (run.folder / "notes.txt").write_text("mine")
    assert {path.name for path in run.folder.iterdir()} == {*runs.FILES, "notes.txt", ".lock"}
    training.train(tiny(overwrite=True))
    assert {path.name for path in run.folder.iterdir()} == {*runs.FILES, "notes.txt", ".lock"}


def unfinished(run: runs.Run) -> None:
    facts = run.read_provenance()
    facts.pop("finished")
    run.write_provenance(facts)


def test_changed_split_is_refused(tiny):
    p = tiny()
    run = training.train(p)
    unfinished(run)
    split = run.read_split()
    split.loc[split.role == "unlabelled", "role"] = "labelled"  # more labels than claimed
    run.split.write_text(runs.splits.to_csv(split))
    with pytest.raises(RunError, match=r"another split.*14 videos changed.*role was labelled and is now unl"):
        training.train(p)


def test_other_draw_is_refused_not_followed(tiny, monkeypatch):
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
    ("name", "value", "message"),
    [
        ("classes", [f"c{i}" for i in range(14)], "class 0 = c0, the data now give clock_falls"),
        ("teacher", "teacher-resnet50-0123456789ab", "teacher = teacher-resnet50-0123456789ab, the data now"),
        ("videos_sha256", "0" * 64, "videos_sha256 = 000"),
        ("split_sha256", "0" * 64, "split_sha256 = 000"),
    ],
)
def test_checkpoint_of_other_data_is_refused(tiny, name, value, message):
    p = tiny()
    run = training.train(p)
    unfinished(run)
    torch.save(run.read_checkpoint() | {name: value}, run.checkpoint)
    with pytest.raises(RunError, match=message):
        training.train(p)


def test_damaged_checkpoint_is_named(tiny):
    run = training.train(tiny())
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"checkpoint.pt: not a readable checkpoint"):
        run.read_checkpoint()


def test_two_processes_never_train_one_run(tiny):
    p = tiny()
    with (
        runs.exclusively(p.run_dir),
        pytest.raises(RunError, match="another process trains this run now"),
    ):
        training.train(p)
    assert training.train(p).finished
