"""The bad things that happen to a grid left running for a week, done on purpose.

``make proofs`` does each random one more often (``pytest tests/test_faults.py --times 25``) and prints what
was lost.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from support import helpers, workers
from support.helpers import MOMENTS, TINY, record, same

from videossl_core import params, prepare, runs, training
from videossl_core.data import files, frames
from videossl_core.data.frames import FrameStore, StoreSettings

pytestmark = [pytest.mark.kill, pytest.mark.slow]
LONGER = {"steps": 12, "eval_every": 4, "log_every": 3}


@pytest.mark.parametrize(
    ("method", "by"), [("videossl", signal.SIGKILL), ("mt_sd", signal.SIGKILL), ("mt_sd", signal.SIGINT)]
)
def test_killed_run_equals_uninterrupted(tiny, tmp_path, times, fault, method, by):
    """Hit at a random call of each of MOMENTS, and once more after a random time."""
    given = TINY | LONGER | {"method": method, "seed": 3}
    whole = tiny(**LONGER, method=method, seed=3, outputs=tmp_path / "whole")
    helpers.finish(helpers.train, given | {"outputs": whole.outputs}, None, by, tmp_path / "calls")
    truth = record(runs.Run(whole.run_dir))
    assert truth["checkpoint"]["step"] == 12
    lines = (line.split(" ", 1) for line in (tmp_path / "calls").read_text().splitlines())
    calls = {moment: int(n) for n, moment in lines}
    assert calls.keys() == MOMENTS.keys()
    rng = random.Random(method)
    began = 0
    for trial in range(times):
        p = tiny(**LONGER, method=method, seed=3, outputs=tmp_path / f"trial{trial}")
        # every step is saved in every second trial, else only around the evaluations
        mine = given | {"outputs": p.outputs, "checkpoint_minutes": 0 if trial % 2 else 10}
        moment = list(MOMENTS)[trial % len(MOMENTS)]
        process = helpers.start(helpers.train, mine, (moment, rng.randint(1, calls[moment])), by)
        process.join()
        assert process.exitcode == (1 if by == signal.SIGINT else -by), moment
        process = helpers.start(helpers.train, mine)
        time.sleep(rng.uniform(0.05, 0.8))
        with suppress(ProcessLookupError):  # it may be done
            os.kill(process.pid, by)
        process.join()
        run = runs.Run(p.run_dir)
        began += run.checkpoint.exists()
        helpers.finish(helpers.train, mine)
        assert same(record(run), truth), moment
        assert {path.name for path in run.folder.iterdir()} == {*runs.FILES, ".lock"}, "half-written files"
    assert began or times < 4
    how = "kill -9" if by == signal.SIGKILL else "Ctrl+C"
    fault(f"{how} of a {method} run: {', '.join(MOMENTS)}, or after a random time", 2 * times, "nothing")


def test_full_disk_spares_the_last_checkpoint(tiny, tmp_path, fault):
    given = TINY | LONGER | {"method": "sd"}
    whole, p = (tiny(**LONGER, method="sd", outputs=tmp_path / name) for name in ("whole", "full"))
    helpers.finish(helpers.train, given | {"outputs": whole.outputs})
    truth = record(runs.Run(whole.run_dir))
    size = runs.Run(whole.run_dir).checkpoint.stat().st_size
    run = runs.Run(p.run_dir)
    helpers.start(helpers.train, given | {"outputs": p.outputs}, ("changing the weights", 7)).join()
    before = run.checkpoint.read_bytes()
    for most in (size // 2, size // 10, 1000):
        process = helpers.start(helpers.train_with_small_files, given | {"outputs": p.outputs}, most)
        process.join()
        assert process.exitcode == 1
        assert run.checkpoint.read_bytes() == before
        assert not list(run.folder.glob(".partial-*"))
    helpers.finish(helpers.train, given | {"outputs": p.outputs})
    assert same(record(run), truth)
    fault("no room on the disk for a checkpoint (limit on the size of files)", 3, "nothing")


def test_full_disk_message(tmp_path, monkeypatch):
    run = runs.Run(tmp_path)
    run.write_checkpoint({"metrics": [], "log": [], "step": 1})

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = r"checkpoint.pt: could not be written.*No space left.*one before stays"
    with pytest.raises(runs.RunError, match=message):
        run.write_checkpoint({"metrics": [], "log": [], "step": 2})
    assert run.read_checkpoint()["step"] == 1
    with pytest.raises(OSError, match=r"No space left on device: .*a.txt"):
        files.write_text(tmp_path / "a.txt", "text")


def test_interrupt_before_predictions_are_written(tiny, monkeypatch):
    """The last evaluation is in memory alone then; its checkpoint must not promise a file that is missing."""
    p, original = tiny(), runs.Run.write_predictions
    presses = iter([KeyboardInterrupt])

    def press_stop(self, predictions):
        for error in presses:
            raise error
        original(self, predictions)

    monkeypatch.setattr(runs.Run, "write_predictions", press_stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(p)
    assert same(record(training.train(p)), record(training.train(p.but(variant="whole"))))


def test_killed_decoding_ends_in_the_same_store(tmp_path, times, fault):
    names = helpers.small_videos(tmp_path / "videos", [f"c{i % 3}/v{i:02d}.mp4" for i in range(24)])
    (tmp_path / "videos/c1/v00.mp4").write_text("broken")
    names.append("c1/v00.mp4")
    helpers.finish(helpers.decode_all, tmp_path / "whole", tmp_path / "videos", names)
    truth = helpers.tree(tmp_path / "whole")
    assert len(truth) == 25  # 24 videos and the table
    rng, killed = random.Random(7), 0
    for trial in range(times):
        store = tmp_path / f"store{trial}"
        call = helpers.decode_all, store, tmp_path / "videos", names
        for count in sorted(rng.sample(range(1, 22), 2)):
            killed += helpers.kill_at(count, store, *call)
        helpers.finish(*call)
        assert helpers.tree(store) == truth
    assert killed > times
    fault("kill -9 while videos are decoded, at a random one", killed, "nothing")


def test_killed_preparation_ends_in_the_same_targets(tmp_path, times, fault):
    """Rendering, decoding, and running the teacher; the table differs, as the videos' times do."""
    log = tmp_path / "log"
    helpers.finish(helpers.prepare_all, TINY | {"outputs": tmp_path / "whole"}, log)

    def made(outputs) -> dict:
        files = helpers.tree(tmp_path / outputs / "tiny/data")  # the shared one may have more
        return {name: content for name, content in files.items() if not name.endswith("store.csv")}

    truth = made("whole")
    assert sum(name.endswith(".npy") for name in truth) == 2 * 28
    rng, killed = random.Random(9), 0
    for trial in range(max(3, times // 2)):  # at least once in each of the three
        given, third = TINY | {"outputs": tmp_path / str(trial)}, len(truth) // 3
        count = third * (trial % 3) + rng.randrange(third)
        killed += helpers.kill_at(count, tmp_path / str(trial), helpers.prepare_all, given, log)
        helpers.finish(helpers.prepare_all, given, log)
        assert made(str(trial)) == truth
    assert killed > trial / 2
    fault("kill -9 while videos are rendered, decoded, or shown to the teacher", killed, "nothing")


def test_crash_or_hang_costs_one_video(tmp_path, monkeypatch, fault):
    names = [f"{what}{i}.mp4" for i in range(3) for what in ("fine", "segfault", "exit", "hang")]
    helpers.small_videos(tmp_path / "videos", names)
    monkeypatch.setattr(frames, "_try_video", workers.misbehave)
    store = FrameStore(tmp_path, StoreSettings(32, 90, 4))
    store.add(names, tmp_path / "videos", workers=3, timeout=2)
    reasons = store.table.reason
    assert sorted(reasons.index) == sorted(names)
    for i in range(3):
        assert reasons[f"fine{i}.mp4"] == ""
        assert len(store.read(f"fine{i}.mp4", np.arange(12))) == 12
        assert reasons[f"segfault{i}.mp4"] == "crash: the process ended with exit code -11"
        assert reasons[f"exit{i}.mp4"] == "crash: the process ended with exit code 3"
        assert reasons[f"hang{i}.mp4"] == "time-out: not done within 2 s"
    monkeypatch.undo()
    store.add(names, tmp_path / "videos", timeout=60)  # another limit is another chance, a crash is not
    assert sorted(store.table.index[store.table.reason != ""]) == sorted(n for n in names if n[0] in "se")
    fault("a decoder that crashes (segmentation fault, exit) or hangs", 9, "those videos, listed")


def crowd(*calls) -> list[int]:
    """Functions with their arguments, each in a process, all at once; their exit codes."""
    processes = [helpers.start(*call) for call in calls]
    for process in processes:
        process.join()
    return sorted(process.exitcode for process in processes)


def test_crowd_decodes_each_video_once(tmp_path, fault):
    names = helpers.small_videos(tmp_path / "videos", [f"v{i}.mp4" for i in range(24)])
    helpers.finish(helpers.decode_all, tmp_path / "whole", tmp_path / "videos", names)
    log = tmp_path / "decoded.txt"
    parts = (names, names[6:], names[:18])
    shared = tmp_path / "shared", tmp_path / "videos"
    assert crowd(*((helpers.decode_all, *shared, part, log) for part in parts)) == [0, 0, 0]
    assert sorted(log.read_text().split()) == sorted(names)
    assert helpers.tree(tmp_path / "shared") == helpers.tree(tmp_path / "whole")
    fault("three processes preparing one data set at once", 1, "nothing, nothing done twice")


def test_crowd_runs_the_teacher_once(tmp_path, fault):
    given = TINY | {"outputs": tmp_path / "outputs"}
    log = tmp_path / "seen.txt"
    assert crowd(*[(helpers.prepare_all, given, log)] * 2) == [0, 0]
    data = prepare.prepare(params.load(**given), with_teacher=True)
    assert len(log.read_text().split()) == 28  # the training videos, one batch of frames each
    assert len(list(data.targets.folder.rglob("*.npy"))) == 2 * 28
    what = "two processes rendering, decoding and running the teacher at once"
    fault(what, 1, "nothing, nothing done twice")


def test_crowd_trains_one_run_once(tiny, tmp_path, fault):
    given = TINY | {"steps": 40, "eval_every": 40, "outputs": tmp_path / "outputs"}
    p = tiny(steps=40, eval_every=40)
    assert crowd(*[(helpers.train, given)] * 2) == [0, 1]
    assert runs.Run(p.run_dir).finished
    fault("two processes training into one folder at once", 1, "nothing, the second is refused")


def test_script_without_main_guard(tmp_path):
    """Its workers run it again. They would wait for the folder that the script which started them holds."""
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "from videossl_core.data import files, pool\n"
        "with files.locked(Path('held')):\n"
        "    print(list(pool.map_unordered(abs, [1, 2], workers=1)))\n"
    )
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: no worker process can start")
    assert last.endswith("below if __name__ == '__main__':")
