"""One notebook run by papermill, on a GPU of its own where there are several: what a grid does for each cell.

It imports little, for it is a process beside the notebook's own.
"""

import argparse
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import papermill
import torch
import yaml
from filelock import FileLock, Timeout

from videossl_core.data.files import ROOT


def execute(notebook: str, target: Path, **given) -> Path:
    """Run ``notebooks/<notebook>.ipynb`` by papermill and say how long it took.

    Raises:
        PapermillExecutionError: a cell failed; the executed notebook shows which.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    print(f"{target.stem:<24}", end="", flush=True)
    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    quiet = ["--log-level=40"]  # the kernel's errors only: it warns of each local connection
    papermill.execute_notebook(source, target, given, progress_bar=False, extra_arguments=quiet)
    print(f"{time.perf_counter() - start:5.0f} s   {target}", flush=True)
    return target


def parse(words: str | list[str]) -> dict:
    """``-p name value ...`` as a dictionary, the values as YAML reads them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-p", nargs=2, action="append", default=[], dest="given")
    words = shlex.split(words) if isinstance(words, str) else words
    return {name: yaml.safe_load(value) for name, value in parser.parse_args(words).given}


@contextmanager
def one_gpu(folder: Path) -> Iterator[None]:
    """Take a GPU of this machine that no other cell has; a scheduler that has chosen one is left alone."""
    if "CUDA_VISIBLE_DEVICES" in os.environ or (count := torch.cuda.device_count()) < 2:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        lock = FileLock(folder / f".gpu{i}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        os.environ["CUDA_VISIBLE_DEVICES"] = str(i)  # the kernel inherits it
        try:
            yield
        finally:
            lock.release()
        return
    raise RuntimeError(
        f"all {count} GPUs of this machine are taken; run fewer cells at once (--resources gpu=N)"
    )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m videossl_core.tools.cell", description="Run one notebook of a grid."
    )
    parser.add_argument("notebook", choices=[path.stem for path in (ROOT / "notebooks").glob("*.ipynb")])
    parser.add_argument("target", type=Path, help="the executed notebook")
    asked, rest = parser.parse_known_args(words)
    with one_gpu(asked.target.parent):
        execute(asked.notebook, asked.target, **parse(rest))


if __name__ == "__main__":
    main()
