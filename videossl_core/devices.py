"""Where a run computes: the device, its name, the same bits each time, and a stop button that waits."""

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from videossl_core.params import Bookkeeping, ParameterError, Params


def device(p: Bookkeeping) -> str:
    """``auto``: the GPU where there is one; each of several processes has its own. If PyTorch cannot use the
    one that is asked for it is a ParameterError; ``auto`` warns of that, with the reason."""
    name, (usable, reason) = p.device, (False, "") if p.device in ("cpu", "mps") else _cuda()
    if name.startswith("cuda") and not usable:
        raise ParameterError(f"device = {name!r}: PyTorch cannot use a GPU here. {reason}")
    if reason:
        warnings.warn(f"NO GPU: this machine has one, but the CPU will do all work. {reason}", stacklevel=1)
    if name == "auto":
        name = "cuda" if usable else "mps" if torch.backends.mps.is_available() else "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


@cache  # PyTorch says the reason once
def _cuda() -> tuple[bool, str]:
    """Can PyTorch use a GPU? If not, but there is one: why."""
    with warnings.catch_warnings(record=True, action="always") as said:
        usable = torch.cuda.is_available()
    if not torch.backends.cuda.is_built() and Path("/dev/nvidia0").exists():
        return False, "PyTorch was installed without CUDA: docs/installing.md"
    return usable, "" if usable else " ".join(str(warning.message) for warning in said)


@contextmanager
def reproducible(strictly: bool, one_shape: bool = False) -> Iterator[None]:
    """With ``strictly``, PyTorch takes algorithms that give the same bits each time, or raises an error.
    A CPU does so anyway. Otherwise, where all batches have ``one_shape``, cuDNN tries which of its algorithms
    is the fastest for it."""
    was = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = one_shape
    if strictly:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was[0])
        torch.backends.cudnn.benchmark = was[1]


@contextmanager
def enough_memory(p: Params) -> Iterator[None]:
    """Raises MemoryError, which names ``batch_size``, where the device has too little for the block."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("out of memory", "ALLOC_FAILED")):  # PyTorch, cuBLAS
            raise
        raise MemoryError(
            f"batch_size = {p.batch_size}: the device has too little free memory for so many clips. Take "
            "fewer, or free some and start the same command again: the last checkpoint stays. A finished run "
            "can be evaluated with device = 'cpu'"
        ) from error


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl+C or the kernel's stop button takes effect when the block ends: no step is left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []
    was = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, was)
    if pressed:
        raise KeyboardInterrupt
