"""The cells of the paper's grid, and how one of them is run; the ``Snakefile`` puts them in order."""

import argparse
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout

from videossl_core import estimate, methods, notebooks, params
from videossl_core.params import ROOT


@dataclass(frozen=True)
class Cell:
    """One run: a method at a label fraction with a seed."""

    dataset: str
    method: str
    label_pct: float
    seed: int

    @property
    def words(self) -> str:
        """What papermill is told."""
        given = {
            "dataset": self.dataset,
            "method": self.method,
            "label_pct": self.label_pct,
            "seed": self.seed,
        }
        return " ".join(f"-p {name} {value}" for name, value in given.items())

    @property
    def name(self) -> str:
        return f"{self.method}-{self.label_pct:g}-seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """What ``make grid`` was asked for: a data set, and the paper's fractions, methods and three seeds
    unless others are named."""

    dataset: str
    methods: tuple[str, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    given: str  # more parameters for every notebook, as ``-p name value ...``

    @classmethod
    def of(cls, config: dict) -> "Grid":
        """Raises ParameterError for a method that does not exist, or a data set without known fractions."""
        dataset = config.get("dataset", "demo")
        paper = pd.read_csv(ROOT / "params" / "paper_results.csv")
        papers = [name for name in methods.METHODS if name in set(paper.method)]
        chosen = tuple(_list(config, "methods", papers))
        for name in chosen:
            if name not in methods.METHODS:
                raise params.ParameterError(f"methods: {name!r} is not one of {', '.join(methods.METHODS)}")
        fractions = sorted(set(paper.label_pct[paper.dataset == dataset])) or [10]
        return cls(
            dataset,
            chosen,
            tuple(float(f) for f in _list(config, "fractions", fractions)),
            tuple(int(s) for s in _list(config, "seeds", (0, 1, 2))),
            config.get("given") or "",
        )

    def parameters(self, **more) -> params.Params:
        return params.load(**{"dataset": self.dataset} | parse(self.given) | more)

    @property
    def cells(self) -> dict[str, Cell]:
        """By name, all fractions and seeds of one method before the next method."""
        cells = [
            Cell(self.dataset, m, f, s) for m in self.methods for f in self.fractions for s in self.seeds
        ]
        return {cell.name: cell for cell in cells}

    @property
    def folder(self) -> Path:
        """Executed notebooks, and a mark for each that is done."""
        p = self.parameters()
        return p.outputs / self.dataset / (f"grid@{p.variant}" if p.variant else "grid")

    def hours(self) -> float:
        """Of training all cells one after the other, from what ``make bench`` measured."""
        each = [estimate.cost(self.parameters(method=m), 0, 0).training for m in self.methods]
        return sum(each) * len(self.fractions) * len(self.seeds)

    def failed(self) -> list[tuple[str, Path]]:
        """Cells that were tried and are not done, with the executed notebook that shows why."""
        found = []
        for name in self.cells:
            for step in ("train", "evaluate"):
                notebook = self.folder / f"{step}-{name}.ipynb"
                if notebook.exists() and not (self.folder / f"{step}-{name}.done").exists():
                    found.append((f"{step} {name}", notebook))
        return found


def _list(config: dict, name: str, default) -> list:
    value = config.get(name)
    if value in (None, ""):
        return list(default)
    return [v.strip() for v in str(value).split(",") if v.strip()]


def parse(words: str | list[str]) -> dict:
    """``-p name value ...`` as a dictionary, the values as YAML reads them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-p", nargs=2, action="append", default=[], dest="given")
    words = shlex.split(words) if isinstance(words, str) else words
    return {name: yaml.safe_load(value) for name, value in parser.parse_args(words).given}


@contextmanager
def one_gpu(folder: Path) -> Iterator[None]:
    """Take a GPU of this machine that no other cell has; a scheduler that has chosen one is left alone."""
    count = torch.cuda.device_count()
    if count < 2 or "CUDA_VISIBLE_DEVICES" in os.environ:
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
        prog="python -m videossl_core.grid", description="Run one notebook of a grid."
    )
    parser.add_argument("notebook", choices=[path.stem for path in (ROOT / "notebooks").glob("*.ipynb")])
    parser.add_argument("target", type=Path, help="the executed notebook")
    asked, rest = parser.parse_known_args(words)
    with one_gpu(asked.target.parent):
        notebooks.execute(asked.notebook, asked.target, **parse(rest))


if __name__ == "__main__":
    main()
