"""Two processes that train one run together, and what they are to make, computed by hand in one."""

import os
import sys

import torch

from support import helpers
from support.helpers import TINY
from videossl_core import __main__, batches, methods, prepare, training
from videossl_core.distributed import Ranks

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
