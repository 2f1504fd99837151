"""The confusion matrix as a table whose entries can be pressed.

Every entry says in words what it counts; its colour, of a scale that every colour vision tells apart, helps.
"""

from html import escape

import anywidget
import matplotlib
import pandas as pd
import traitlets

MOST_CLASSES, PAIRS = 30, 60  # a larger matrix cannot be read: its largest entries are listed instead

STYLE = """
.confusion table { border-collapse: separate; border-spacing: 1px; table-layout: auto }
.confusion caption, .confusion p { text-align: left; margin: 0 0 .5em; caption-side: top }
.confusion th { font-weight: normal; font-size: 12px; text-align: right; padding: 0 .5em }
.confusion th { white-space: nowrap }
.confusion thead th { vertical-align: bottom; padding: 0 }
.confusion thead span { display: block; writing-mode: vertical-rl; transform: rotate(180deg) }
.confusion thead span { margin: 0 auto }
.confusion tbody td { padding: 0; min-width: 2.1em; height: 1.9em; background: rgba(128, 128, 128, .1) }
.confusion td > * { display: block; width: 100%; height: 1.9em; padding: 0; text-align: center }
.confusion [aria-label] { border: 0; font: inherit; line-height: 1.9em }
.confusion .pairs > * { display: inline-block; margin: 2px; padding: 0 .6em }
.confusion .pairs > p { display: block; padding: 0 }
.confusion button { cursor: pointer }
.confusion button:focus-visible { outline: 3px solid #d55e00; outline-offset: 1px }
"""

# One stop of the Tab key; the arrow keys go to the nearest entry in their direction.
_SCRIPT = """
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const middle = element => {
  const box = element.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
};

function render({ model, el }) {
  el.classList.add("confusion");
  const buttons = () => [...el.querySelectorAll("button")];
  const stop = chosen => buttons().forEach(b => { b.tabIndex = b === chosen ? 0 : -1; });
  const draw = () => { el.innerHTML = model.get("html"); stop(buttons()[0]); };
  model.on("change:html", draw);
  draw();
  el.addEventListener("click", event => {
    const b = event.target.closest("button");
    if (b) { stop(b); model.send({ true: b.dataset.true, said: b.dataset.said }); }
  });
  el.addEventListener("keydown", event => {
    const b = event.target.closest("button"), way = WAYS[event.key];
    if (!b || event.key === "Tab") return;
    event.stopPropagation();  // or JupyterLab goes to another cell
    if (!way) return;
    event.preventDefault();
    const [x, y] = middle(b);
    const far = other => {
      const [u, v] = middle(other), along = (u - x) * way[0] + (v - y) * way[1];
      const aside = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
      return along > 1 ? along + 4 * aside : Infinity;
    };
    const next = buttons().reduce((best, other) => far(other) < far(best) ? other : best, b);
    stop(next);
    next.focus();
  });
}

export default { render };
"""


class Matrix(anywidget.AnyWidget):
    """The matrix in JupyterLab; a pressed entry sends its classes: {"true": ..., "said": ...}."""

    _esm, _css = _SCRIPT, STYLE
    html = traitlets.Unicode().tag(sync=True)


def counts(table: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Videos of a predictions_test.csv by true class (rows) and class said of the whole video (columns)."""
    found = pd.crosstab(table.class_name, table.video_pred)
    return found.reindex(index=classes, columns=classes, fill_value=0)


def html(table: pd.DataFrame, classes: list[str], tag: str = "button") -> str:
    """The matrix, or with more than 30 classes the most frequent mistakes.

    Args:
        tag: "span" for a page on which nothing can be pressed.
    """
    n = counts(table, classes)
    share = n.div(n.sum(axis=1).clip(lower=1), axis=0)
    if len(classes) > MOST_CLASSES:
        wrong = table[table.class_name != table.video_pred].groupby(["class_name", "video_pred"])
        pairs = wrong.size().sort_values(ascending=False, kind="stable").head(PAIRS)
        made = (_cell(t, s, k, share.loc[t, s], f"{t} → {s}: {k}", tag) for (t, s), k in pairs.items())
        return f'<div class="pairs"><p>Most frequent mistakes, true → said</p>{"".join(made) or "none"}</div>'
    lines = []
    for true in classes:
        row = n.loc[true].items()
        cells = (_cell(true, said, k, share.loc[true, said], str(k), tag) if k else "" for said, k in row)
        lines.append(f'<tr><th scope="row">{escape(true)}</th><td>{"</td><td>".join(cells)}</td></tr>')
    head = "".join(f'<th scope="col"><span>{escape(c)}</span></th>' for c in classes)
    caption = "<caption>Videos by true class (rows) and said class (columns)</caption>"
    return f"<table>{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(true: str, said: str, n: int, share: float, text: str, tag: str) -> str:
    label = escape(f"true {true}, said {said}: {n} video{'s' if n > 1 else ''}")
    data = f'type="button" data-true="{escape(true)}" data-said="{escape(said)}"'
    kind = data if tag == "button" else 'role="img"'
    return f'<{tag} {kind} aria-label="{label}" title="{label}" style="{paint(share)}">{escape(text)}</{tag}>'


def paint(share: float) -> str:
    """CSS of an entry: cividis, and of black and white the one that is read better on it (WCAG 2)."""
    colour = matplotlib.colormaps["cividis"](float(share))[:3]
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    text = "black" if luminance > 0.179 else "white"
    return f"background:{matplotlib.colors.to_hex(colour)};color:{text}"
