"""JupyterLab as ``make lab`` starts it, in a copy of the project and with settings of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
SETTINGS = {
    # all cells are in the page, also those out of sight
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false"},
}


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen
    port: int
    token: str

    def url(self, path: str, token: bool = True) -> str:
        return f"http://127.0.0.1:{self.port}/{path}" + (f"?token={self.token}" if token else "")


@contextmanager
def jupyterlab(project: Path, home: Path, *arguments: str) -> Iterator[Server]:
    """Start it, wait for its address, and stop it and its kernels at the end.

    Args:
        project: a copy of the project, with its Makefile.
        home: an empty folder for JupyterLab's settings, workspaces and run-time files.
    """
    for name, values in SETTINGS.items():
        path = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    env = os.environ | {name: str(home / folder) for name, folder in places.items()}
    env.pop("OMP_NUM_THREADS", None)  # nothing else runs beside it
    env |= {"PYTHONPATH": str(project)}
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = ["make", "--old-file=.venv/ready", "lab", f"BIN={BIN}"]
    command.append("ARGS=" + " ".join(["--no-browser", *root, *arguments]))
    log = home / "log.txt"
    with open(log, "w") as f:
        process = subprocess.Popen(command, cwd=project, env=env, stdout=f, stderr=f, start_new_session=True)
    try:
        yield Server(process, *_address(process, log))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _address(process: subprocess.Popen, log: Path) -> tuple[int, str]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if match := re.search(r"http://127\.0\.0\.1:(\d+)/\S*token=(\w+)", log.read_text()):
            return int(match[1]), match[2]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
