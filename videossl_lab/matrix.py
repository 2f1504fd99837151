"""The confusion matrix as a table whose entries can be pressed, each with a text that says what it counts."""

from html import escape
from pathlib import Path

import anywidget
import matplotlib
import pandas as pd
import traitlets

from videossl_lab import results

MOST_CLASSES, PAIRS = 30, 60  # a larger matrix cannot be read: its largest entries are listed instead
STYLE = Path(__file__).with_name("matrix.css")


class Matrix(anywidget.AnyWidget):
    """The matrix in JupyterLab; a pressed entry sends its classes: {"true": ..., "predicted": ...}."""

    _esm, _css = Path(__file__).with_name("matrix.js"), STYLE
    html = traitlets.Unicode().tag(sync=True)


def html(table: pd.DataFrame, classes: list[str], tag: str = "button") -> str:
    """The matrix of a predictions_test.csv, or with more than 30 classes the most frequent mistakes; with
    ``tag`` "span" for a page on which nothing can be pressed."""
    counts = results.confusion(table, classes)
    share = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)

    def entry(true: str, predicted: str, text: str) -> str:
        n = counts.loc[true, predicted]
        label = escape(f"true {true}, predicted {predicted}: {n} video{'s' if n > 1 else ''}")
        data = f'type="button" data-true="{escape(true)}" data-predicted="{escape(predicted)}"'
        kind = data if tag == "button" else 'role="img"'
        look = f'aria-label="{label}" title="{label}" style="{paint(share.loc[true, predicted])}"'
        return f"<{tag} {kind} {look}>{escape(text)}</{tag}>"

    if len(classes) > MOST_CLASSES:
        pairs = results.mistakes(table).head(PAIRS)
        listed = "".join(entry(t, p, f"{t} → {p}: {n}") for (t, p), n in pairs.items())
        return f'<div class="pairs"><p>Most frequent mistakes, true → predicted</p>{listed or "none"}</div>'
    lines = []
    for true, row in counts.iterrows():
        cells = "</td><td>".join(entry(true, p, str(n)) if n else "" for p, n in row.items())
        lines.append(f'<tr><th scope="row">{escape(true)}</th><td>{cells}</td></tr>')
    head = "".join(f'<th scope="col"><span>{escape(c)}</span></th>' for c in classes)
    caption = "<caption>Videos by true class (rows) and predicted class (columns)</caption>"
    return f"<table>{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def paint(share: float) -> str:
    """CSS of an entry: cividis, with text in white or black, whichever has a contrast of 4.5 or more."""
    colour = matplotlib.colors.to_hex(matplotlib.colormaps["cividis"](float(share)))
    return f"background:{colour};color:{'black' if share > 0.465 else 'white'}"
