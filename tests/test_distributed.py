"""Two processes train what one trains: same batches, losses, metrics; losing one ends the run cleanly."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from helpers import TINY
from torch import nn

from videossl_core import distributed, evaluation, prepare, runs, training

GIVEN = {"steps": 6, "batch_size": 8, "eval_every": 3, "eval_videos": 5, "log_every": 1, "lr": 0.02}


def tables(run: runs.Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    log = pd.read_csv(run.log)
    return log[[c for c in log if c.startswith(("loss", "confident_pct"))]], pd.read_csv(run.metrics)


@pytest.mark.parametrize("method", ["videossl", "mt_sd", "s4l", "supervised"])
def test_two_processes_give_the_losses_of_one(tiny, method):
    given = GIVEN | {"method": method, "tau": 0.3, "delta": 0.08}
    log, metrics = tables(training.train(tiny(**given)))
    seen = []
    p = tiny(**given, num_processes=2, outputs=tiny().outputs.parent / "two")
    run = training.train(p, on_eval=lambda log, metrics: seen.append(len(metrics)))
    log2, metrics2 = tables(run)
    assert log2.shape == log.shape
    np.testing.assert_allclose(log2[:4], log[:4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log2, log, rtol=3e-2)  # rounding grows from step to step, as in any training
    counts = ["step", "subset", "videos"]
    assert metrics2[counts].equals(metrics[counts])
    assert np.abs(metrics2.clip_top1 - metrics.clip_top1).max() < 21  # a near tie may fall the other way
    assert run.read_provenance()["processes"] == 2
    assert len(pd.read_csv(run.predictions_test)) == 14  # shared by two processes, all in their places
    assert seen[-1] == 4
    one = runs.Run(tiny(**given).run_dir)
    both = [r.read_checkpoint()["model"] for r in (one, run)]
    for name, weight in both[0].items():
        if name.endswith("weight"):
            alike = torch.cosine_similarity(both[1][name].flatten(), weight.flatten(), dim=0)
            assert alike > 0.999, name


def test_without_synchronised_batch_norm_it_is_another_run(tiny):
    given = GIVEN | {"method": "supervised", "steps": 3}
    one = runs.Run(training.train(tiny(**given)).folder).read_checkpoint()["model"]
    p = tiny(**given, num_processes=2, sync_batch_norm=False, outputs=tiny().outputs.parent / "two")
    run = training.train(p)
    two = run.read_checkpoint()["model"]
    assert not torch.allclose(one["backbone.0.weight"], two["backbone.0.weight"], rtol=5e-3, atol=5e-4)
    network, classes = training.load_network(
        run, p
    )  # both processes were asked with the statistics that are saved
    data = prepare.prepare(p)
    said = evaluation.predict(network, p, data.rows("test"), classes, data.store, "cpu").table
    told = runs.read_table(run.predictions_test)
    np.testing.assert_allclose(said.video_confidence, told.video_confidence, atol=1e-5)


def test_a_batch_that_cannot_be_shared_is_refused(tiny):
    with pytest.raises(distributed.LostProcess, match="its 3 labelled clips cannot be shared by 2 processes"):
        training.train(tiny(batch_size=6, num_processes=2))


def test_a_lost_process_ends_the_run_and_the_same_command_goes_on(tiny, tmp_path, fault):
    given = {"steps": 40, "batch_size": 8, "eval_every": 20, "checkpoint_minutes": 0, "log_every": 2}
    p = tiny(**given, num_processes=2)
    words = [w for k, v in (TINY | given | {"outputs": p.outputs}).items() for w in ("-p", k, str(v))]
    command = [sys.executable, "-m", "videossl_core", *words, "-p", "num_processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    run = runs.Run(p.run_dir)
    while not run.log.exists():
        assert process.poll() is None
        time.sleep(0.05)
    workers = [
        c
        for c in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(c.cmdline())
    ]
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ended with exit code -9" in said
    assert "The same command goes on from the last checkpoint" in said
    assert not any(worker.is_running() for worker in workers)
    assert not run.finished
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert run.finished
    assert run.read_provenance()["resumed"][0]["step"] >= 2
    whole = training.train(tiny(**given, num_processes=2, outputs=tmp_path / "whole"))
    for one, other in zip(tables(run), tables(whole), strict=True):
        pd.testing.assert_frame_equal(one, other)
    fault("kill -9 of one of two processes that train together", 1, "nothing")


def test_torchrun_starts_it_too(tiny):
    p = tiny(**GIVEN)
    words = [w for k, v in (TINY | GIVEN | {"outputs": p.outputs}).items() for w in ("-p", k, str(v))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "videossl_core"]
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert runs.Run(p.run_dir).read_provenance()["processes"] == 2


def synced(rank: int, port: int, folder) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with distributed.joined("cpu") as ranks:
        torch.manual_seed(0)
        layer = distributed.SyncBatchNorm3d(3)
        x = torch.load(folder / "x.pt")[rank::2].requires_grad_()
        y = layer(x)
        (y * torch.load(folder / "g.pt")[rank::2]).sum().backward()
        found = (y.detach(), x.grad, layer.weight.grad, layer.running_mean, layer.running_var)
        assert ranks.mean({"a": float(rank)}) == {"a": 0.5}
        assert np.isnan(ranks.mean({"a": float("nan") if rank else 0.0})["a"])
        assert ranks.told("first" if ranks.first else "other") == "first"
        torch.save(found, folder / f"{rank}.pt")


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(tmp_path):
    import helpers

    x, g = torch.randn(6, 3, 2, 4, 4) * 3 + 1, torch.randn(6, 3, 2, 4, 4)
    torch.save(x, tmp_path / "x.pt")
    torch.save(g, tmp_path / "g.pt")
    port = 20_000 + os.getpid() % 20_000
    both = [helpers.start(synced, rank, port, tmp_path) for rank in range(2)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    layer, whole = nn.BatchNorm3d(3), x.clone().requires_grad_()
    y = layer(whole)
    (y * g).sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank, (y2, dx, _, mean, var) in enumerate(parts):
        torch.testing.assert_close(y2, y[rank::2].detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dx, whole.grad[rank::2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean, layer.running_mean)
        torch.testing.assert_close(var, layer.running_var)
    torch.testing.assert_close(parts[0][2] + parts[1][2], layer.weight.grad, rtol=1e-4, atol=1e-4)
