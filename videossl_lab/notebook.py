"""What a notebook does first: read and check its parameters, before any work.

Names and values come from the source of the cells that ran before: the parameters cell, what papermill
injected after it, and cells of their own in which somebody set a parameter. So a misspelt name is seen,
whether it came from ``-p`` or was typed in JupyterLab; papermill itself would only warn.
"""

import ast
import inspect
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, Literal, get_args

from IPython import get_ipython
from IPython.display import Markdown
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from videossl_core import params
from videossl_core.params import AnyParams, MethodName, Names, ParameterError, Params, ProjectPath, WhichRun


class FigureParams(WhichRun):
    """Parameters of the notebooks that compare finished runs."""

    datasets: Names | None = Field(None, description="data sets to show; None: all with finished runs")
    methods: Annotated[list[MethodName], BeforeValidator(params.comma_list)] = Field(
        ["supervised", "sd", "videossl"], description="models compared in Figure 5"
    )
    shown: int = Field(6, ge=1, le=100, description="videos shown in Figure 5")
    published: bool = Field(False, description="count the runs of outputs/reference/ too")
    page: ProjectPath | None = Field(None, description="Markdown page whose tables are written again")


class PredictParams(WhichRun):
    """Parameters of predict.ipynb: which run, and the videos that it looks at."""

    videos: ProjectPath = Path("outputs/demo/data/videos/test/clock_falls")
    into: ProjectPath = Path("outputs/predictions.csv")


def _with_onnx(onnx: bool) -> bool:
    if onnx and not (find_spec("onnxscript") and find_spec("onnxruntime")):
        raise PydanticCustomError("no_onnx", "needs more packages: pip install -e .[onnx]")
    return onnx


class ExportParams(WhichRun):
    """Parameters of export.ipynb: which run, and what becomes of it."""

    onnx: Annotated[bool, AfterValidator(_with_onnx)] = Field(False, description="write model.onnx too")
    into: ProjectPath | None = Field(None, description="the folder; None: outputs/<dataset>/export/<run>/")

    @property
    def folder(self) -> Path:
        return self.into or self.outputs / self.dataset / "export" / self.run_name.replace("/", "-")


class AnnotateParams(Params):
    """Parameters of annotate.ipynb: those of its runs, and whether it trains networks."""

    networks: bool = Field(False, description="train supervised and videossl too, and compare")

    @property
    def of_run(self) -> Params:
        return Params(**{name: getattr(self, name) for name in Params.model_fields})


class TourParams(Params):
    """Parameters of tour.ipynb, whose loop is the paper's method as its equations stand: what would change
    them has no effect there, and is refused."""

    method: Literal["videossl"] = "videossl"
    below_threshold: Literal["soft"] = "soft"
    confident_target: Literal["literal"] = "literal"
    lambda_u_warmup: Literal["step"] = "step"
    loss_reduction: Literal["batch"] = "batch"
    precision: Literal["fp32"] = "fp32"
    teacher_temperature: float = Field(1, ge=1, le=1)
    teacher_view: Literal["stored"] = "stored"
    init: Literal["scratch"] = "scratch"
    backbone_lr: None = None


def _new_method(name: str) -> str:
    if name in get_args(MethodName):
        raise PydanticCustomError("known_method", "is a method of the table; give yours a name of its own")
    return name


class OwnParams(Params):
    """Parameters of own_method.ipynb, whose method is a row that the notebook itself adds."""

    method: Annotated[str, AfterValidator(_new_method)] = Field("order", pattern=r"^[a-z]\w*$")
    baseline: MethodName = "videossl"

    @property
    def of_baseline(self) -> Params:
        """The same run by the method that yours is compared with."""
        values = {name: getattr(self, name) for name in Params.model_fields}
        return Params(**values | {"method": self.baseline})


def parameters(model: type[AnyParams] = Params) -> AnyParams:
    """The parameters of the notebook that calls this.

    Raises:
        ParameterError: there are none, or a name or value is wrong.
    """
    shell = get_ipython()
    return params.load(model, **given(shell.history_manager.input_hist_raw[:-1], shell.user_ns, model))


def source(*things: Callable) -> Markdown:
    """The source of functions or classes, folded away behind their names."""
    names = ", ".join(f"{thing.__module__.split('.')[-1]}.{thing.__qualname__}" for thing in things)
    code = "\n\n".join(dedent(inspect.getsource(thing)) for thing in things)
    return Markdown(f"<details><summary>{names}</summary>\n\n```python\n{code}```\n\n</details>")


def given(cells: list[str], namespace: dict[str, Any], model: type[AnyParams] = Params) -> dict[str, Any]:
    """The values, by name, from the source of every cell that ran before, oldest first, and the kernel's
    namespace, for values that are not written out.

    The notebook's own cell is the first that sets several parameters; a later one that sets all of these, or
    that sets ``dataset`` after a check, is this cell run again: what was before it counts no more. From there
    on those cells count that do nothing but assign: the last that papermill injected, and all others that
    follow the notebook's own or were run right before the check.
    Of a cell that does more, those parameters count that it set before the first check.

    Raises:
        ParameterError: no cell sets a parameter.
    """
    known = {*model.model_fields, "base"}
    checks = list(accumulate("notebook.parameters(" in cell for cell in cells))
    # a check that is run again looks at what stands before the first one
    ran = [(cell, n) for cell, n in zip(cells, checks, strict=True) if "notebook.parameters(" not in cell]
    assigned = [_assignments(cell, namespace) for cell, _ in ran]
    for i, (cell, checks_before) in enumerate(ran):
        if assigned[i] is None and not checks_before:
            assigned[i] = {name: namespace[name] for name in known & _stored(cell) & namespace.keys()} or None
    injected = {i for i, (cell, _) in enumerate(ran) if cell.lstrip().startswith("# Parameters\n")}
    own, own_sets = 0, set()
    for i, (_, checks_before) in enumerate(ran):
        sets = known & (assigned[i] or {}).keys()
        again = own_sets <= sets or ("dataset" in sets and ran[own][1] < checks_before)
        if len(sets) > 1 and i not in injected and again:
            own, own_sets = i, sets
    later = sorted(i for i in injected if i >= own)
    others = [i for i in range(own + 1, len(ran)) if assigned[i] is None]
    first, last = min(others, default=len(ran)), max(others, default=own - 1)
    single = {*range(own, first), *range(last + 1, len(ran))} - injected
    values: dict[str, Any] = {}
    for i in sorted(single | {*later[-1:]}):
        values |= assigned[i] or {}
    if not known & values.keys():
        raise ParameterError("no parameters found: before this cell run the one that sets them")
    return values


def _parse(cell: str) -> ast.Module | None:
    with suppress(SyntaxError):
        return ast.parse("\n".join("" if line[:1] in "%!" else line for line in cell.splitlines()))
    return None


def _stored(cell: str) -> set[str]:
    """All names that a cell gives a value, wherever in it."""
    tree = _parse(cell)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)] if tree else []
    return {node.id for node in names if isinstance(node.ctx, ast.Store)}


def _assignments(cell: str, namespace: dict[str, Any]) -> dict[str, Any] | None:
    """Names and values of a cell that does nothing but assign, else None; lines of magic are passed over."""
    tree = _parse(cell)
    values: dict[str, Any] = {}
    for node in tree.body if tree else [None]:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            return None
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            names = [name.id for name in ast.walk(target) if isinstance(name, ast.Name)]
            values |= {name: namespace.get(name) for name in names}
            if not isinstance(node, ast.AugAssign):
                values |= _literals(target, node.value)
    return values


def _literals(target: ast.expr, value: ast.expr | None) -> dict[str, Any]:
    """What is written out: the kernel may have given the name another meaning since."""
    if isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
        parts = map(_literals, target.elts, value.elts)
        return {name: part for values in parts for name, part in values.items()}
    with suppress(ValueError):
        if isinstance(target, ast.Name):
            return {target.id: ast.literal_eval(value) if value else None}
    return {}
