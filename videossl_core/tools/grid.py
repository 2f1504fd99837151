"""The cells of the paper's grid, or of a declared one; the ``Snakefile`` puts them in order."""

import json
import shlex
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pandas as pd
import yaml

from videossl_core import methods, params
from videossl_core.data.files import ROOT
from videossl_core.fields import nearest
from videossl_core.tools import estimate
from videossl_core.tools.cell import parse
from videossl_core.views import gathered


@dataclass(frozen=True)
class Cell:
    """One run: a method at a label fraction with a seed, and other parameters that it alone is given."""

    dataset: str
    method: str
    label_pct: float
    seed: int
    given: dict = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What papermill is told."""
        named = {"dataset": self.dataset, "method": self.method}
        named |= {"label_pct": f"{self.label_pct:g}", "seed": self.seed} | self.given
        return " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in named.items())

    @property
    def name(self) -> str:
        variant = self.given.get("variant")
        method = f"{self.method}@{variant}" if variant else self.method
        return f"{method}-{self.label_pct:g}-seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """What ``make grid`` was asked for: the cells by name, in the order in which they are begun."""

    dataset: str
    cells: dict[str, Cell]
    given: str  # more parameters for every notebook, as ``-p name value ...``
    rest: bool = False  # the published cells are left out

    @classmethod
    def of(cls, config: dict) -> "Grid":
        """The cells that ``params/grids/<grid>.yaml`` declares, or else the paper's fractions, methods and
        three seeds; ``methods``, ``fractions`` and ``seeds`` say which of these alone, ``rest`` leaves out
        those whose results are published.

        Raises:
            ParameterError: a method or a grid does not exist, or a grid declares a cell twice.
        """
        dataset = config.get("dataset") or "demo"
        only = {name: _list(config.get(name)) for name in ("methods", "fractions", "seeds")}
        blocks = [{name: values for name, values in only.items() if values}]
        if config.get("grid"):
            dataset, blocks = _declared(config["grid"])
        paper = pd.read_csv(ROOT / "params" / "paper_results.csv")
        usual = {
            "methods": [name for name in methods.METHODS if name in set(paper.method)],
            "fractions": sorted(set(paper.label_pct[paper.dataset == dataset])) or [10],
            "seeds": (0, 1, 2),
        }
        cells: dict[str, Cell] = {}
        for block in blocks:
            given = {name: value for name, value in block.items() if name not in usual}
            asked = [
                [v for v in block.get(name, values) if not only[name] or str(v) in only[name]]
                for name, values in usual.items()
            ]
            for method, pct, seed in product(*asked):
                if method not in methods.METHODS:
                    known = ", ".join(methods.METHODS)
                    raise params.ParameterError(f"methods: {method!r} is not one of {known}")
                cell = Cell(dataset, method, float(pct), int(seed), given)
                if cell.name in cells:
                    raise params.ParameterError(f"the grid has the cell {cell.name} twice: name a variant")
                cells[cell.name] = cell
        if config.get("rest"):
            there = _published(dataset)
            cells = {name: cell for name, cell in cells.items() if name not in there}
        if not cells:
            left = "; all others are published" if config.get("rest") else ""
            raise params.ParameterError(f"grid of {dataset}: no cell with {only}{left}")
        return cls(dataset, cells, config.get("given") or "", bool(config.get("rest")))

    def parameters(self, **more) -> params.Params:
        return params.load(**{"dataset": self.dataset} | parse(self.given) | more)

    @property
    def folder(self) -> Path:
        """Executed notebooks, and a mark for each that is done."""
        p = self.parameters()
        return p.outputs / self.dataset / (f"grid@{p.variant}" if p.variant else "grid")

    @property
    def figures(self) -> str:
        """What papermill is told to make the figures; they show the whole grid, published cells too."""
        return f"-p datasets {self.dataset} {'-p published true ' * self.rest}{self.given}"

    def hours(self) -> float:
        """Of training all cells one after the other, from what ``make bench`` measured."""
        alike = Counter((cell.method, json.dumps(cell.given)) for cell in self.cells.values())
        return sum(
            n * estimate.cost(self.parameters(method=method, **json.loads(given)), 0, 0).training
            for (method, given), n in alike.items()
        )

    def failed(self) -> list[tuple[str, Path]]:
        """Cells that were tried and are not done, with the executed notebook that shows why."""
        found = []
        for name in self.cells:
            for step in ("train", "evaluate"):
                notebook = self.folder / f"{step}-{name}.ipynb"
                if notebook.exists() and not (self.folder / f"{step}-{name}.done").exists():
                    found.append((f"{step} {name}", notebook))
        return found


def _published(dataset: str) -> set[str]:
    """Names of the cells whose results are in ``outputs/reference/``."""
    rows = gathered.published(dataset).itertuples()
    return {Cell(dataset, r.method, r.label_pct, r.seed, {"variant": r.variant}).name for r in rows}


def _declared(name: str) -> tuple[str, list[dict]]:
    """Data set and blocks of ``params/grids/<name>.yaml``: each its methods, fractions and seeds where they
    are not the paper's, and parameters."""
    path = ROOT / "params" / "grids" / f"{name}.yaml"
    if not path.exists():
        known = [other.stem for other in path.parent.glob("*.yaml")]
        raise params.ParameterError(f"grid = {name!r}: there is no {path}{nearest(name, known)}")
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    return told["dataset"], told["runs"]


def _list(value) -> list[str]:
    """``a,b`` as make gives it."""
    return [v.strip() for v in str(value or "").split(",") if v.strip()]
