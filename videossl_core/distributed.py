"""Training by several processes, on one machine or many, as ``torchrun`` starts them.

Every process takes its share of each batch, so that the batch, its halves and the schedule stay those of one
process. Batch norm runs over the clips of all processes on GPUs, and over each process's own on CPUs.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

gc.freeze()  # torch's own objects stay: the collector need not go through them at every import after it


@dataclass(frozen=True)
class Ranks:
    """This process among all that train one run. ``first`` is the one that writes and shows."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes of each value; not finite if any is not."""
        if self.count == 1:
            return values
        total = values.double().to("cpu" if dist.get_backend() == "gloo" else "cuda")
        dist.all_reduce(total)
        return total / self.count

    def gather(self, value: Any) -> list:
        """The value of every process, in order of rank."""
        if self.count == 1:
            return [value]
        values: list = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first process's value."""
        return self.gather(value)[0]

    def share_statistics(self, network: nn.Module) -> None:
        """Take the first process's batch-norm statistics, the ones that are saved; on CPUs they differ."""
        if self.count > 1:
            for buffer in network.buffers():
                if buffer.is_floating_point():  # what counts steps is the same, and may lie on the CPU
                    dist.broadcast(buffer, 0)

    def wrap(self, network: nn.Module, sync_batch_norm: bool, device: str) -> nn.Module:
        """The network for the forward pass, whose backward pass averages gradients over the processes."""
        if self.count == 1:
            return network
        ids = [torch.device(device)] if device.startswith("cuda") else None
        if sync_batch_norm and ids:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # keeps the parameters themselves
        return nn.parallel.DistributedDataParallel(network, ids, gradient_as_bucket_view=True)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Meet the other processes, where ``torchrun`` has started this one among several."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Ranks()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    gpus = torch.cuda.device_count() if device.startswith("cuda") else 0
    # NCCL refuses two processes on one GPU
    backend = "nccl" if gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", 1)) else "gloo"
    # a day: one process may decode a data set while the others wait; torchrun notices a lost one
    dist.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
