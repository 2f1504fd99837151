"""One notebook executed by papermill, on a GPU of its own where there are several: ``make grid`` calls it."""

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import papermill
import yaml
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError

from videossl_core.data import files
from videossl_core.paths import ROOT

START_SECONDS = 600
"""How long a kernel may take to start: minutes, where many load from one file system."""


class Indented:
    """What a notebook prints, line by line: indented, and no wider than the terminal."""

    def __init__(self, stream: TextIO):
        self.stream, self.rest = stream, ""
        self.width = shutil.get_terminal_size((110, 24)).columns - 5

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            cut = line if len(line) <= self.width else line[: self.width - 1] + "…"
            self.stream.write(f"    {cut}\n")

    def flush(self) -> None:
        self.stream.flush()


def execute(notebook: str, target: Path, shown: TextIO | None = None, **values) -> None:
    """Run ``notebooks/<notebook>.ipynb`` with these parameters and print how long it took.

    Args:
        shown: where to repeat what the notebook prints, while it runs.

    Raises:
        PapermillExecutionError: a cell failed; the executed notebook ``target`` shows which.
        RuntimeError: the kernel did not start, twice.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    options = {"progress_bar": False, "stdout_file": Indented(shown) if shown else None}
    # The kernel logs errors only: it warns of each local connection.
    options |= {"extra_arguments": ["--log-level=40"], "start_timeout": START_SECONDS}
    for last in (False, True):
        try:
            papermill.execute_notebook(source, target, values, **options)
            break
        except DeadKernelError:  # died while a cell ran
            raise
        except RuntimeError as error:  # did not start: others took its ports, or the disk is slow
            if last:
                raise RuntimeError(f"{target}: no kernel started, twice ({error})") from None
            print(f"no kernel started ({error}): once more", flush=True)
    print(f"{time.perf_counter() - start:5.0f} s   {target}", flush=True)


def parse(words: str | list[str]) -> dict:
    """``-p name value ...`` as a dictionary, the values as YAML reads them, which is how papermill does."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-p", nargs=2, action="append", default=[], dest="pairs")
    args = parser.parse_args(shlex.split(words) if isinstance(words, str) else words)
    return {name: yaml.safe_load(value) for name, value in args.pairs}


def gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them: numbers or UUIDs."""
    import torch  # takes seconds, which the process beside a kernel can mostly do without

    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if given is None else given.replace(" ", "").split(",")[:count]


def works(gpu: str) -> bool:
    """Can a new process compute on it? A GPU that is lost is still counted, and fails when it is used."""
    command = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda').item()"]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, env=env, capture_output=True, timeout=START_SECONDS).returncode == 0
    return False


@contextmanager
def one_gpu(folder: Path) -> Iterator[None]:
    """Take a GPU that no other notebook has, or wait until there is one; of those in
    ``CUDA_VISIBLE_DEVICES`` where that names several. If it names one or none, as a scheduler does, it stays.

    Raises:
        RuntimeError: none of them works.
    """
    left = gpus() if "," in os.environ.get("CUDA_VISIBLE_DEVICES", ",") else []
    if len(left) < 2:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    while left:
        for gpu in left.copy():
            name = f".gpu-{platform.node()}-{gpu.replace('/', '-')}.lock"  # others may share the folder
            try:
                held = files.acquire(FileLock(folder / name))
            except Timeout:
                continue
            with held:
                if works(gpu):
                    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # the kernel inherits it
                    yield
                    return
            left.remove(gpu)
            print(f"GPU {gpu} does not work and is left out", flush=True)
        time.sleep(5)
    raise RuntimeError("no GPU of this machine works: see nvidia-smi")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videossl_lab.execute", description="Run one notebook.")
    parser.add_argument("notebook", choices=[path.stem for path in (ROOT / "notebooks").glob("*.ipynb")])
    parser.add_argument("target", type=Path, help="the executed notebook")
    args, others = parser.parse_known_args(words)
    with one_gpu(args.target.parent):
        execute(args.notebook, args.target, **parse(others))


if __name__ == "__main__":
    main()
