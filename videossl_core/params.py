"""How a run is told its parameters: from files, from a notebook, from an earlier run.

Precedence, lowest first: the defaults of ``fields.Params``, ``params/<dataset>.yaml``, the notebook's own
parameters cell (where ``None`` means "as in the file"), and what papermill injects with ``-p``, ``-f`` or
``-y``.
"""

import ast
import json
import reprlib
from pathlib import Path, PurePath
from typing import Any

import yaml
from pydantic import ValidationError

from videossl_core.fields import (
    BOOKKEEPING,
    ROOT,
    FigureParams,
    ParameterError,
    Params,
    PredictParams,
    nearest,
    run_dir,
)

__all__ = ["ROOT", "FigureParams", "ParameterError", "Params", "PredictParams", "run_dir"]


def of_run(p: Params) -> Params:
    """All parameters of the run that dataset, method, label_pct and seed of ``p`` name, from its params.json.

    Raises:
        ParameterError: there is no such run yet.
    """
    path = p.run_dir / "params.json"
    if not path.exists():
        given = f"-p dataset {p.dataset} -p method {p.method} -p label_pct {p.label_pct:g} -p seed {p.seed}"
        raise ParameterError(
            f"no run in {p.run_dir}; train it: papermill notebooks/train.ipynb out.ipynb {given}"
        )
    values = json.loads(path.read_text(encoding="utf-8"))
    here = {name: getattr(p, name) for name in BOOKKEEPING}
    return _validated(Params, values | here, str(path))


def load(model: type[Params] = Params, **given) -> Params:
    """Build parameters from ``params/<dataset>.yaml`` and the values given; ``None`` means not given.

    A file may name another with ``base:`` whose values hold where it is silent.

    Raises:
        ParameterError: a name is unknown (the nearest right one is named), or a value is out of range.
    """
    given = {k: v for k, v in given.items() if v is not None}
    folder = ROOT / "params"
    base, dataset = given.pop("base", None), given.get("dataset", model.model_fields["dataset"].default)
    values: dict[str, Any] = {}
    if base is not None:
        values |= _read_file(_base(folder, base, "the parameters"), model)
    if isinstance(dataset, str) and PurePath(dataset).name == dataset:
        values |= _read_file(folder / f"{dataset}.yaml", model)
    p = _validated(model, values | given, "the parameters")
    # a misspelt data set must not train on something else
    if model not in (FigureParams, PredictParams) and p.source is None:
        known = [path.stem for path in folder.glob("*.yaml")]
        raise ParameterError(
            f"dataset = {p.dataset!r}: there is no params/{p.dataset}.yaml{nearest(p.dataset, known)}; "
            "for videos of your own give source and root too"
        )
    return p


def _read_file(path: Path, model: type[Params], seen: tuple[Path, ...] = ()) -> dict:
    if path in seen:
        raise ParameterError(f"{path}: base leads back to this file")
    if not path.exists():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise ParameterError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: a parameter file holds 'name: value' lines")
    _check_names(values, model, str(path), extra=("base",))
    base = values.pop("base", None)
    if base is None:
        return values
    return _read_file(_base(path.parent, base, str(path)), model, (*seen, path)) | values


def _base(folder: Path, name: Any, where: str) -> Path:
    path = folder / f"{name}.yaml"
    if not isinstance(name, str) or PurePath(name).name != name or not path.exists():
        known = [other.stem for other in folder.glob("*.yaml")]
        raise ParameterError(
            f"{where}: base = {name!r}: there is no {path.name} in {folder}{nearest(name, known)}"
        )
    return path


def _check_names(names, model: type[Params], where: str, extra: tuple[str, ...] = ()) -> None:
    known = [*model.model_fields, *extra]
    for name in names:
        if name not in known:
            raise ParameterError(f"{where}: unknown parameter {name!r}{nearest(name, known)}")


def _validated(model: type[Params], values: dict, where: str) -> Params:
    _check_names(values, model, where)
    try:
        return model(**values)
    except ValidationError as error:
        lines = []
        for e in error.errors():
            what = f"{e['loc'][0]} = {reprlib.repr(e['input'])}: " if e["loc"] else ""
            lines.append(what + e["msg"].removeprefix("Value error, "))
        raise ParameterError("; ".join(lines)) from None


def from_notebook(model: type[Params] = Params) -> Params:
    """Read and check the parameters of the notebook that calls this, before it does any work.

    Reads the source of the parameters cell (its first line begins with ``# Parameters``) and of the cell
    that papermill injected after it, so that a misspelt name is seen whether it came from ``-p`` or was
    typed in JupyterLab; papermill itself would only warn.
    """
    from IPython import get_ipython

    cells = [c for c in get_ipython().user_ns["In"] if c.lstrip().startswith("# Parameters")]
    injected = [c for c in cells if c.lstrip().splitlines()[0].strip() == "# Parameters"]
    own = [c for c in cells if c not in injected]
    given: dict[str, Any] = {}
    for cell in own[-1:] + injected[-1:]:
        given |= _assignments(cell)
    return load(model, **given)


def _assignments(cell: str) -> dict[str, Any]:
    """``name = literal`` and ``name: type = literal`` of a parameters cell."""
    values = {}
    for node in ast.parse(cell).body:
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        if not isinstance(targets[0], ast.Name):
            continue
        try:
            values[targets[0].id] = ast.literal_eval(node.value)
        except ValueError:
            raise ParameterError(f"{targets[0].id}: write a plain value, not an expression") from None
    return values
