"""Two processes that train together train what one trains: same batches, losses as computed by hand."""

import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from support import helpers
from support.helpers import TINY

from videossl_core import __main__, batches, distributed, evaluation, methods, prepare, runs, training
from videossl_core.distributed import Ranks

pytestmark = pytest.mark.slow
GIVEN = {"steps": 6, "batch_size": 8, "eval_every": 3, "eval_videos": 5, "log_every": 1, "lr": 0.02}


PORT = str(20_000 + os.getpid() % 20_000)


def words(p, given: dict) -> list[str]:
    return [w for k, v in (TINY | given | {"outputs": p.outputs}).items() for w in ("-p", k, str(v))]


def torchrun(p, given: dict) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", PORT]
    return [*command, "-m", "videossl_core", *words(p, given)]


def both(function, *args) -> None:
    """Run it in two processes as torchrun starts them, but with torch imported already."""
    processes = [helpers.start(_ranked, rank, PORT, function, *args) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0


def _ranked(rank: int, port: str, function, *args) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    torch.set_num_threads(1)
    function(rank, *args)


def train(_rank: int, command: list[str]) -> None:
    sys.argv[1:] = command
    __main__.main()


def by_hand(p) -> tuple[torch.nn.Module, list[float]]:
    """What DDP is to do, in one process: each share through a network with batch-norm statistics of its own,
    gradients averaged, one update. Returns the first network, and the loss of each step."""
    data, method = prepare.prepare(p), methods.METHODS[p.method]
    networks = [training.build_network(p, 14) for _ in range(2)]
    optimizer = torch.optim.SGD(networks[0].parameters(), p.lr, p.momentum, weight_decay=p.weight_decay)
    inputs = (p, method, data.split, data.store, data.targets)
    shares = [batches.Batches(*inputs, Ranks(rank, 2)) for rank in range(2)]
    means = []
    for step in range(p.steps):
        losses = []
        for network, share in zip(networks, shares, strict=True):
            batch = share[step]
            out = methods.forward(network, None, batch, method, p)
            losses.append(methods.total_loss(method, out, batch, step, p)[0])
            network.zero_grad()
            losses[-1].backward()
        for mine, other in zip(*(network.parameters() for network in networks), strict=True):
            mine.grad = (mine.grad + other.grad) / 2
        optimizer.step()
        with torch.no_grad():
            for mine, other in zip(*(network.parameters() for network in networks), strict=True):
                other.copy_(mine)
        means.append(sum(loss.item() for loss in losses) / 2)
    return networks[0], means


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
