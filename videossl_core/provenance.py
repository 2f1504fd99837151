"""What a result may depend on besides its parameters: machine, versions, commit."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def surroundings(device: str) -> dict:
    """What a result may depend on besides its parameters."""
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "cpu": torch.backends.cpu.get_cpu_capability(),  # another instruction set rounds otherwise
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": versions(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    names = ("videossl-lab", "torch", "torchvision", "av", "numpy", "pandas", "papermill")
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in names}


def commit() -> str:
    """The project's git commit, with ``+`` when files differ from it; empty outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
