"""Two processes that train together train what one trains: same batches, losses as computed by hand."""

import subprocess
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from support import helpers
from support.ranks import both, by_hand, torchrun, train, words

from videossl_core import batches, distributed, evaluation, methods, prepare, runs, training
from videossl_core.distributed import Ranks

pytestmark = pytest.mark.slow
GIVEN = {"steps": 6, "batch_size": 8, "eval_every": 3, "eval_videos": 5, "log_every": 1, "lr": 0.02}


@pytest.mark.parametrize("method", ["videossl", "s4l", "supervised"])
def test_two_processes_equal_hand_computation(tiny, method):
    given = GIVEN | {"method": method, "tau": 0.3, "delta": 0.08}
    p = tiny(**given, outputs=tiny().outputs.parent / "two")
    network, means = by_hand(p)
    both(train, words(p, given))
    run = runs.Run(p.run_dir)
    log, metrics = pd.read_csv(run.log), pd.read_csv(run.metrics)
    np.testing.assert_allclose(log.loss, means, rtol=2e-3)
    for name, weight in run.read_checkpoint()["model"].items():
        torch.testing.assert_close(weight, network.state_dict()[name], rtol=2e-3, atol=2e-4, msg=name)
    assert run.read_provenance()["processes"] == 2
    assert metrics.videos.tolist() == [5, 5, 14, 5]
    # all processes predicted with the statistics that are saved, and all predictions are in their places
    trained, classes = training.load_network(run, p)
    data = prepare.prepare(p)
    table = evaluation.predict(trained, p, data.rows("test"), classes, data.store, "cpu").table
    recorded = runs.read_table(run.predictions_test)
    assert list(recorded.video) == list(table.video)
    np.testing.assert_allclose(recorded.video_confidence, table.video_confidence, atol=1e-5)


def test_batch_that_cannot_be_shared(tiny):
    p = tiny(batch_size=6)
    data = prepare.prepare(p)
    with pytest.raises(ValueError, match="its 3 labelled clips cannot be shared by 2 processes"):
        batches.Batches(p, methods.METHODS[p.method], data.split, data.store, data.targets, Ranks(0, 2))


@pytest.mark.kill
def test_lost_process_ends_the_run_and_it_resumes(tiny, tmp_path, fault):
    given = {"steps": 40, "batch_size": 8, "eval_every": 20, "checkpoint_minutes": 0, "log_every": 2}
    p = tiny(**given)
    process = subprocess.Popen(torchrun(p, given), stderr=subprocess.PIPE, text=True)
    run = runs.Run(p.run_dir)
    while not run.log.exists():
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "videossl_core" in child.cmdline()]
    assert len(workers) == 2
    workers[1].kill()
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert not any(worker.is_running() for worker in workers)
    assert not run.finished
    subprocess.run(torchrun(p, given), check=True, capture_output=True, timeout=300)
    assert run.finished
    assert run.read_provenance()["resumed"][0]["step"] >= 2
    whole = tiny(**given, outputs=tmp_path / "whole")
    both(train, words(whole, given))
    for name in ("log", "metrics"):
        tables = [pd.read_csv(getattr(runs.Run(q.run_dir), name)) for q in (p, whole)]
        untimed = [table.drop(columns=list(helpers.TIMES), errors="ignore") for table in tables]
        pd.testing.assert_frame_equal(*untimed)
    fault("kill -9 of one of two processes that train together", 1, "nothing")


def meet(rank: int, folder) -> None:
    with distributed.joined("cpu") as ranks:
        assert ranks.mean(torch.tensor([float(rank), 1.0])).tolist() == [0.5, 1.0]
        assert ranks.mean(torch.tensor(float("nan") if rank else 0.0)).isnan()
        assert ranks.broadcast("first" if ranks.first else "other") == "first"
        assert ranks.gather(rank) == [0, 1]
        (folder / str(rank)).touch()


def test_what_processes_share(tmp_path):
    both(meet, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
