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

from support import helpers
import numpy as np
import pandas as pd
import pytest
from support import workers
from support.helpers import MOMENTS, TINY, same, without_times

from videossl_core import params, prepare, runs
from videossl_core.data import files, frames
from videossl_core.data.frames import FrameStore, StoreSettings

SETTINGS = StoreSettings(32, 90, 4)
LONGER = {"steps": 12, "eval_every": 4, "log_every": 3}


def record(run: runs.Run) -> dict:
    """All that a run leaves: its checkpoint in full, and its tables."""
    log = pd.read_csv(run.log).drop(columns=list(helpers.TIMES))
    tables = {
        path.name: path.read_bytes() for path in (run.split, run.metrics, run.predictions_test, run.per_class)
    }
    return {"checkpoint": without_times(run.read_checkpoint()), "log": log.to_csv(), **tables}


@pytest.mark.parametrize("method", ["videossl", "mt_sd"])
def test_a_run_that_is_killed_and_started_again_equals_one_that_is_not(tiny, tmp_path, times, fault, method):
    given = TINY | LONGER | {"method": method, "seed": 3}
    whole = tiny(**LONGER, method=method, seed=3, outputs=tmp_path / "whole")
    helpers.finish(helpers.train, given | {"outputs": tmp_path / "whole"}, None, tmp_path / "calls")
    truth = record(runs.Run(whole.run_dir))
    assert truth["checkpoint"]["step"] == 12
    calls = {
        m: int(n) for n, m in (line.split(" ", 1) for line in (tmp_path / "calls").read_text().splitlines())
    }
    assert calls.keys() == MOMENTS.keys()
    rng = random.Random(method)
    began = 0
    for trial in range(times):
        # every step is saved in every second trial, else only around the evaluations
        minutes = {"checkpoint_minutes": 0 if trial % 2 else 10}
        p = tiny(**LONGER, method=method, seed=3, outputs=tmp_path / f"trial{trial}")
        mine = given | minutes | {"outputs": p.outputs}
        moment = list(MOMENTS)[trial % len(MOMENTS)]
        process = helpers.start(helpers.train, mine, (moment, rng.randint(1, calls[moment])))
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
        process = helpers.start(helpers.train, mine)  # and once more, after a random time
        time.sleep(rng.uniform(0.05, 0.8))
        process.kill()
        process.join()
        run = runs.Run(p.run_dir)
        began += run.checkpoint.exists()
        helpers.finish(helpers.train, mine)
        assert same(record(run), truth), moment
        left = {path.name for path in run.folder.iterdir()}
        assert left == {path.name for path in run.files} | {".lock"}, "half-written files stay"
    assert began or times < 4
    fault(f"kill -9 of a {method} run: {', '.join(MOMENTS)}, or after a random time", 2 * times, "nothing")


def test_a_full_disk_spares_the_last_checkpoint(tiny, tmp_path, fault):
    given = TINY | LONGER | {"method": "sd"}
    whole, p = (tiny(**LONGER, method="sd", outputs=tmp_path / name) for name in ("whole", "full"))
    helpers.finish(helpers.train, given | {"outputs": whole.outputs})
    truth = record(runs.Run(whole.run_dir))
    size = runs.Run(whole.run_dir).checkpoint.stat().st_size
    run = runs.Run(p.run_dir)
    process = helpers.start(helpers.train, given | {"outputs": p.outputs}, ("changing the weights", 7))
    process.join()
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


def test_the_message_about_a_full_disk_names_the_file_and_the_way_out(tmp_path, monkeypatch):
    run = runs.Run(tmp_path)
    run.write_checkpoint({"metrics": [], "log": [], "step": 1})

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        runs.RunError, match=r"checkpoint.pt: could not be written.*No space left.*one before stays"
    ):
        run.write_checkpoint({"metrics": [], "log": [], "step": 2})
    assert run.read_checkpoint()["step"] == 1
    with pytest.raises(OSError, match=r"No space left on device: .*a.txt"):
        files.write_text(tmp_path / "a.txt", "text")


def test_decoding_that_is_killed_and_started_again_ends_in_the_same_store(tmp_path, times, fault):
    names = helpers.small_videos(tmp_path / "videos", [f"c{i % 3}/v{i:02d}.mp4" for i in range(40)])
    (tmp_path / "videos/c1/v00.mp4").write_text("broken")
    names.append("c1/v00.mp4")
    helpers.finish(helpers.decode_all, tmp_path / "whole", tmp_path / "videos", names)
    truth = helpers.tree(tmp_path / "whole")
    assert len(truth) == 41  # 40 videos and the table
    rng = random.Random(7)
    part = 0
    for trial in range(times):
        for _ in range(2):
            process = helpers.start(helpers.decode_all, tmp_path / f"s{trial}", tmp_path / "videos", names)
            time.sleep(rng.uniform(0.4, 1.4))
            process.kill()
            process.join()
            part += 0 < len(list((tmp_path / f"s{trial}").rglob("*.frames"))) < 40
        helpers.finish(helpers.decode_all, tmp_path / f"s{trial}", tmp_path / "videos", names)
        assert helpers.tree(tmp_path / f"s{trial}") == truth
    assert part or times < 10
    fault(
        f"kill -9 while videos are decoded, at a random time ({part} with a part done)", 2 * times, "nothing"
    )


def test_preparation_that_is_killed_ends_in_the_same_targets(tmp_path, times, fault):
    """Rendering, decoding, and asking the teacher; the table differs, as the videos' times do."""
    helpers.finish(helpers.prepare_all, TINY | {"outputs": tmp_path / "whole"}, tmp_path / "log")
    whole = helpers.tree(tmp_path / "whole/tiny/data")  # the shared one may have more
    truth = {k: v for k, v in whole.items() if not k.endswith("store.csv")}
    assert sum(name.endswith(".npy") for name in truth) == 28
    rng = random.Random(9)
    trials, reached = max(2, times // 2), set()
    for trial in range(trials):
        given = TINY | {"outputs": tmp_path / str(trial)}
        process = helpers.start(helpers.prepare_all, given, tmp_path / "log")
        time.sleep(rng.uniform(0.5, 5))
        process.kill()
        process.join()
        data = tmp_path / str(trial) / "tiny/data"
        reached.add((data / "videos/demo.txt").exists() + any(data.rglob("*.npy")))
        helpers.finish(helpers.prepare_all, given, tmp_path / "log")
        assert {k: v for k, v in helpers.tree(data).items() if not k.endswith("store.csv")} == truth
    assert len(reached) > 1 or trials < 6
    fault("kill -9 while videos are rendered, decoded, or shown to the teacher", trials, "nothing")


def test_a_video_that_crashes_or_hangs_the_decoder_costs_itself_only(tmp_path, monkeypatch, fault):
    names = [f"{what}{i}.mp4" for i in range(3) for what in ("fine", "segfault", "exit", "hang")]
    helpers.small_videos(tmp_path / "videos", names)
    monkeypatch.setattr(frames, "_try_video", workers.misbehave)
    store = FrameStore(tmp_path, SETTINGS)
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


def test_two_at_once_decode_each_video_once(tmp_path, fault):
    names = helpers.small_videos(tmp_path / "videos", [f"v{i}.mp4" for i in range(24)])
    helpers.finish(helpers.decode_all, tmp_path / "whole", tmp_path / "videos", names)
    log = tmp_path / "decoded.txt"
    both = [
        helpers.start(helpers.decode_all, tmp_path / "shared", tmp_path / "videos", part, log)
        for part in (names, names[6:], names[:18])
    ]
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == sorted(names)
    assert helpers.tree(tmp_path / "shared") == helpers.tree(tmp_path / "whole")
    fault("three processes preparing one data set at once", 1, "nothing, nothing done twice")


def test_two_at_once_ask_the_teacher_once(tmp_path, fault):
    given = TINY | {"outputs": tmp_path / "outputs"}
    log = tmp_path / "asked.txt"
    both = [helpers.start(helpers.prepare_all, given, log) for _ in range(2)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    data = prepare.prepare(params.load(**given), with_teacher=True)
    assert len(log.read_text().split()) == 28  # the training videos, one batch of frames each
    assert len(list(data.targets.folder.rglob("*.npy"))) == 28
    fault(
        "two processes rendering, decoding and asking the teacher at once", 1, "nothing, nothing done twice"
    )


def test_two_processes_train_one_run(tiny, tmp_path, fault):
    given = TINY | {"steps": 40, "eval_every": 40, "outputs": tmp_path / "outputs"}
    p = tiny(steps=40, eval_every=40)
    both = [helpers.start(helpers.train, given) for _ in range(2)]
    for process in both:
        process.join()
    assert sorted(process.exitcode for process in both) == [0, 1]
    assert runs.Run(p.run_dir).finished
    fault("two processes training into one folder at once", 1, "nothing, the second is refused")


def test_a_script_that_its_own_workers_run_again_is_told_so(tmp_path):
    """They would wait for the folder that the script which started them holds."""
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "from videossl_core.data import files, pool\n"
        "with files.locked(Path('held')):\n"
        "    print(list(pool.each(abs, [1, 2], workers=1)))\n"
    )
    command = [sys.executable, "script.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "below if __name__ == '__main__':" in said.stdout
