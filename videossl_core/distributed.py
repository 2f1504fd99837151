"""Training by several processes, on one machine or many: who am I, means over all, and how they are started.

Every process takes its share of each batch, so that the batch, its halves and the schedule stay those of one
process. PyTorch's own engine does the work (DDP, torchrun).
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

if TYPE_CHECKING:
    from videossl_core.params import Params


class LostProcess(RuntimeError):
    """One of the processes ended; the others were stopped and the last checkpoint stays."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that train one run. ``first`` is the one that writes and shows."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Mean over the processes of each value; not finite if any is not."""
        if self.count == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        total = total if dist.get_backend() == "gloo" else total.cuda()
        dist.all_reduce(total)
        return dict(zip(values, (total / self.count).tolist(), strict=True))

    def gather(self, value: Any) -> list:
        """The value of every process, in order of rank."""
        if self.count == 1:
            return [value]
        found = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def told(self, value: Any) -> Any:
        """The first process's value."""
        return self.gather(value)[0]

    def check_shares(self, halves: dict[str, int]) -> None:
        """Raises ValueError if a part of the batch cannot be shared out evenly."""
        for name, clips in halves.items():
            if clips % self.count:
                raise ValueError(
                    f"batch_size: its {clips} {name} clips cannot be shared by {self.count} processes; "
                    "take a multiple"
                )

    def share_statistics(self, network: nn.Module) -> None:
        """Take the first process's batch-norm statistics, which are saved: without ``sync_batch_norm`` each
        process has its own."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, network: nn.Module, sync_batch_norm: bool, device: str) -> nn.Module:
        """The network for the forward pass, whose backward pass averages gradients over the processes."""
        if self.count == 1:
            return network
        if sync_batch_norm and device.startswith("cuda"):
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # keeps the parameters themselves
        elif sync_batch_norm:
            for m in network.modules():
                if isinstance(m, nn.BatchNorm3d):
                    m.__class__ = SyncBatchNorm3d
        ids = [torch.device(device)] if device.startswith("cuda") else None
        return nn.parallel.DistributedDataParallel(network, ids, gradient_as_bucket_view=True)


class _Sum(torch.autograd.Function):
    """Sum over the processes; what each does with it comes back as a sum too."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return _Sum.forward(ctx, g)


class SyncBatchNorm3d(nn.BatchNorm3d):
    """Statistics over the clips of all processes, where PyTorch's SyncBatchNorm, for GPUs only, cannot be."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, wide = (0, 2, 3, 4), x.float()
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _Sum.apply(wide.sum(dims)) / count
        centred = wide - mean.view(1, -1, 1, 1, 1)
        var = _Sum.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = (self.weight * (var + self.eps).rsqrt()).view(1, -1, 1, 1, 1)
        return (centred * scale + self.bias.view(1, -1, 1, 1, 1)).to(x.dtype)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Meet the other processes, where torchrun or ``launch`` has started this one among several."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Ranks()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    # a day: one process may decode a data set while the others wait; a lost one is noticed by the launcher
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(days=1))
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def inside() -> bool:
    """Has torchrun or ``launch`` started this process?"""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def launch(function: Callable, p: "Params", meanwhile: Callable[[], None], *more) -> None:
    """Run ``function`` of a module on the parameters and ``more`` in ``p.num_processes`` processes here.

    Args:
        meanwhile: called every second while they work, to show how far they are.

    Raises:
        LostProcess: one of them ended early, with its error; the others have been stopped.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=p.num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",  # a fork of a notebook's kernel, with its threads, would hang
        run_id=f"{p.dataset}-{p.method}-{p.seed}",
    )
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            meanwhile()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        elastic_launch(config, function)(p.model_dump(mode="json"), *more)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise LostProcess(
            f"process {rank} of {p.num_processes} ended with exit code {failure.exitcode}: "
            f"{failure.message}\nThe others were stopped. The same command goes on from the last checkpoint"
        ) from None
    finally:
        over.set()
        watcher.join()
