"""The cells of the paper's grid, or of a declared one; the ``Snakefile`` puts them in order."""

import json
import shlex
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from videossl_core import params
from videossl_core.params import ParameterError
from videossl_core.paths import ROOT
from videossl_lab import results
from videossl_lab.execute import parse


@dataclass(frozen=True)
class Grid:
    """What ``make grid`` runs: by name the parameters of each run, in the order in which they start; those
    that every notebook is ``given``; whether it is the ``rest``, without the published cells."""

    dataset: str
    cells: dict[str, dict]
    given: dict
    rest: bool

    @classmethod
    def of(cls, config: dict) -> "Grid":
        """The cells that ``params/grids/<grid>.yaml`` declares, or else the paper's fractions, methods and
        three seeds. ``methods``, ``fractions`` and ``seeds`` select among them; ``rest`` leaves out those
        whose results are published.

        Raises:
            ParameterError: a method or a grid does not exist, a cell is there twice, or no cell is left.
        """
        declared = config.get("grid")
        dataset, blocks = _declared(declared) if declared else (config.get("dataset") or "demo", [])
        table = results.paper_results()
        usual = {
            "methods": list(dict.fromkeys(table.method)),
            "fractions": sorted(set(table.label_pct[table.dataset == dataset])) or [10],
            "seeds": [0, 1, 2],
        }
        asked = {name: config[name] for name in usual if config.get(name) is not None}  # seed 0 too
        only = {name: params.comma_list(str(asked.get(name, ""))) for name in usual}
        cells: dict[str, dict] = {}
        for block in blocks or [{name: values for name, values in only.items() if values}]:
            changes = {name: value for name, value in block.items() if name not in usual}
            axes = [
                [value for value in block.get(name, values) if not only[name] or str(value) in only[name]]
                for name, values in usual.items()
            ]
            for method, pct, seed in product(*axes):
                cell = {"dataset": dataset, "method": method, "label_pct": pct, "seed": seed}
                named = cell | {"variant": changes.get("variant", "")}
                name = params.check(params.WhichRun, named, "the grid").run_name.replace("/", "-")
                if name in cells:
                    raise ParameterError(f"the grid has the cell {name} twice: name a variant")
                cells[name] = cell | changes
        if config.get("rest"):
            for row in results.published(dataset).itertuples():
                cells.pop(results.run_name(row).replace("/", "-"), None)
        if not cells:
            others = "; all others are published" if config.get("rest") else ""
            raise ParameterError(f"grid of {dataset}: no cell with {only}{others}")
        return cls(dataset, cells, parse(config.get("given") or ""), bool(config.get("rest")))

    def parameters(self, **values) -> params.Params:
        """What a notebook makes of these values and ``given``."""
        return params.load(**{"dataset": self.dataset} | values | self.given)

    @property
    def folder(self) -> Path:
        """Executed notebooks, and a mark for each that is done."""
        p = self.parameters()
        return p.outputs / self.dataset / (f"grid@{p.variant}" if p.variant else "grid")

    @property
    def prepare(self) -> str:
        """Words for ``data_prep``: ``-p name value ...``, quoted for the shell."""
        pct = next(iter(self.cells.values()))["label_pct"]
        return _words({"dataset": self.dataset, "label_pct": pct} | self.given)

    def train(self, name: str) -> str:
        return _words(self.cells[name] | self.given)

    def evaluate(self, name: str) -> str:
        """Words for ``evaluate``, which takes only what names a run."""
        return _words(_which(self.cells[name] | self.given))

    @property
    def figures(self) -> str:
        """Words for ``paper_figures``, which shows the whole grid, published cells too."""
        shown = {"datasets": self.dataset} | ({"published": True} if self.rest else {})
        return _words(shown | _which(self.given))

    def hours(self) -> float:
        """Time to train all cells one after another, by the rates that ``make bench`` measured."""
        from videossl_lab import estimate  # here, for it loads slowly and only a dry run asks

        return sum(estimate.cost(self.parameters(**cell), 0, 0).training for cell in self.cells.values())

    def failed(self) -> list[tuple[str, Path, str]]:
        """Cells that were tried and are not done, the executed notebook that shows why, and its last error in
        one line."""
        steps = [(step, name) for name in self.cells for step in ("train", "evaluate")]
        tried = [(f"{step} {name}", self.folder / f"{step}-{name}.ipynb") for step, name in steps]
        left = [(n, path) for n, path in tried if path.exists() and not path.with_suffix(".done").exists()]
        return [(name, path, _error(path)) for name, path in left]


def _words(values: dict) -> str:
    return " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in values.items())


def _error(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    errors = [f"{o['ename']}: {o['evalue']}".split("\n")[0] for o in outputs if o["output_type"] == "error"]
    return errors[-1] if errors else "stopped without an error: its process was killed, or died"


def _which(values: dict) -> dict:
    return {name: value for name, value in values.items() if name in params.WhichRun.model_fields}


def _declared(name: str) -> tuple[str, list[dict]]:
    """Data set and blocks of the file: methods, fractions and seeds unless the paper's, and parameters."""
    path = ROOT / "params" / "grids" / f"{name}.yaml"
    if not path.exists():
        hint = params.nearest(name, [other.stem for other in path.parent.glob("*.yaml")])
        raise ParameterError(f"grid = {name!r}: there is no {path}{hint}")
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    return declared["dataset"], declared["runs"]
