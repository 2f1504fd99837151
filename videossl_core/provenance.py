"""What a result may depend on besides its parameters: machine, versions, commit."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata

import torch

from videossl_core.data import pool
from videossl_core.paths import ROOT


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def installed() -> dict[str, str]:
    """The version of each package, by its name."""
    facts = [each.metadata for each in metadata.distributions()]  # each time it is asked for it is parsed
    return dict(sorted(((fact["Name"], fact["Version"]) for fact in facts), key=lambda pair: pair[0].lower()))


def surroundings(device: str) -> dict:
    """Device, processor, system, the versions of Python and all that is installed, and the commit."""
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "cpu": torch.backends.cpu.get_cpu_capability(),  # another instruction set rounds otherwise
        "cpu_cores": pool.cores(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | installed(),
        "commit": commit(),
    }


def commit() -> str:
    """The project's git commit, with ``+`` when files differ from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
