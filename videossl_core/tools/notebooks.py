"""Turning an executed notebook into HTML without its code in the way."""

import os
from collections.abc import Iterator
from copy import deepcopy
from html import escape
from pathlib import Path

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

_WIDGET = "application/vnd.jupyter.widget-view+json"
# Code is a click away.
_TEMPLATE = """{% extends 'basic/index.html.j2' %}
{% block input_group %}{% if cell.source %}
<details class="code"><summary>Code</summary><pre>{{ cell.source | escape }}</pre></details>
{% endif %}{% endblock %}
{% block footer %}{% endblock %}"""


def below(outputs: Path) -> Iterator[Path]:
    """All notebooks below ``outputs`` in order, without looking through frames, pages and hidden folders."""
    for folder, folders, names in os.walk(outputs):
        folders[:] = sorted(f for f in folders if f not in ("data", "report") and not f.startswith("."))
        yield from (Path(folder, n) for n in sorted(names) if n.endswith(".ipynb") and n[0] != ".")


def read(path: Path) -> nbformat.NotebookNode | None:
    """The notebook, or None if it is not readable as one or was never run."""
    try:
        notebook = nbformat.read(path, 4)
    except Exception:  # nbformat raises a different type for every kind of damage
        return None
    ran = any(c.get("outputs") for c in notebook.cells if c.cell_type == "code")
    return notebook if ran else None


def title(notebook: nbformat.NotebookNode, otherwise: str) -> str:
    """Its first heading."""
    lines = (line for c in notebook.cells if c.cell_type == "markdown" for line in c.source.splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), otherwise)


def told(notebook: nbformat.NotebookNode) -> dict:
    """The parameters that papermill gave it."""
    return dict(notebook.metadata.get("papermill", {}).get("parameters", {}))


def to_html(notebook: nbformat.NotebookNode) -> str:
    """The inside of a page: text, figures, tables and films; no script and nothing from the network."""
    exporter = _Exporter(
        template_name="basic",
        raw_template=_TEMPLATE,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    book = deepcopy(notebook)
    for cell in book.cells:  # widgets live in a kernel only; in a page they would be "VBox(children=...)"
        for output in cell.get("outputs", []):
            if _WIDGET in output.get("data", {}):  # what is said in their place, or nothing
                output.data = {k: v for k, v in output.data.items() if k == "text/html"}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]
    return exporter.from_notebook_node(book)[0]


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(escape=False, exclude_anchor_links=True, attachments=attachments)
        return MarkdownWithMath(renderer=renderer).render(source)


class _Renderer(IPythonRenderer):
    """Formulas as MathML, which browsers draw by themselves, where nbconvert leaves TeX for a script."""

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")


def _mathml(tex: str, display: str) -> str:
    try:
        return convert(tex, display=display)
    except Exception:  # the converter raises a different type for every kind of mistake
        return f"<code>{escape(tex)}</code>"
