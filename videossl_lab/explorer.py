"""Choose test videos by what a model predicted, by menus or a click on the matrix, and watch them."""

from dataclasses import asdict, dataclass
from html import escape

import pandas as pd
from IPython.display import display
from ipywidgets import HTML, Button, Dropdown, FloatRangeSlider, HBox, VBox, Widget

from videossl_core import runs
from videossl_core.prepare import Data
from videossl_lab import figure5, matrix, plots, results
from videossl_lab.live import watched
from videossl_lab.notebook import FigureParams

ANY = "(any)"
LOOK = {"style": {"description_width": "8em"}, "layout": {"width": "26em"}}


@dataclass(frozen=True)
class Selection:
    """Which test videos to show, and in which order."""

    true: str = ANY
    predicted: str = ANY
    outcome: str = ANY  # right | wrong
    confidence: tuple[float, float] = (0.0, 1.0)
    surest_first: bool = True

    def __str__(self) -> str:
        words = {"true class": self.true, "predicted": self.predicted, "outcome": self.outcome}
        chosen = [f"{name} {value}" for name, value in words.items() if value != ANY]
        return ", ".join([*chosen, "confidence {:.2f} to {:.2f}".format(*self.confidence)])


def select(table: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    """The rows of a predictions_test.csv that fit, in the order wanted."""
    s, outcome = selection, table.video_right.map({True: "right", False: "wrong"})
    kept = table.video_confidence.between(*s.confidence)
    for column, wanted in (table.class_name, s.true), (table.video_pred, s.predicted), (outcome, s.outcome):
        kept &= (column == wanted) | (wanted == ANY)
    return table[kept].sort_values(["video_confidence", "video"], ascending=[not s.surest_first, True])


class Run:
    """The predictions for the test videos of the finished run that ``p`` names, and of the compared models.
    Raises RunError where these or the store do not have the same test videos."""

    def __init__(self, p: FigureParams, data: Data):
        self.p, self.data, self.title = p, data, title(p)
        self.models = results.predictions(p.but(methods=list(dict.fromkeys([*p.methods, p.method]))))
        self.table = self.models[p.method]
        if missing := set(self.table.video) - set(data.store.table.index):
            raise runs.RunError(f"{self.title}: {len(missing)} test videos are not in {data.store.folder}")

    def videos(self, selection: Selection, start: int = 0) -> str:
        """Up to ``p.shown`` of the selected videos, playable, from this one on, below their count."""
        selected = select(self.table, selection).video
        words = escape(f"{self.title}: {selection}")
        if selected.empty:
            return f'<p role="status">No test video fits: {words}. Widen one of the choices.</p>'
        page = selected.iloc[start : start + self.p.shown]
        count = f"Videos {start + 1} to {start + len(page)} of {len(selected)}"
        players = "".join(figure5.player(self.models, self.data.store, video) for video in page)
        return f'<p role="status">{count}. {words}</p>{players}'

    def matrix(self, tag: str = "button") -> str:
        return matrix.html(self.table, self.data.classes, tag)

    def static(self) -> str:
        """What a page without a kernel shows: the matrix, and the most confident mistakes."""
        look, wrong = matrix.STYLE.read_text(), Selection(outcome="wrong")
        return f'<style>{look}</style><div class="confusion">{self.matrix("span")}</div>{self.videos(wrong)}'


def title(p: FigureParams) -> str:
    return f"{plots.TITLES[p.method]}, {p.label_pct:g} %, seed {p.seed}"


def finished(p: FigureParams) -> dict[str, FigureParams]:
    """The data set's finished runs with saved predictions, by menu label."""
    rows = results.find(p.outputs, p.dataset).itertuples()
    which = [p.but(method=r.method, variant="", label_pct=r.label_pct, seed=r.seed) for r in rows]
    return {title(run): run for run in which if runs.Run(run.run_dir).predictions_test.exists()}


def build(run: Run) -> Widget:
    """Menus and the matrix, which select among a run's test videos, and the videos."""
    choices, classes = finished(run.p), [ANY, *run.data.classes]
    run_menu = Dropdown(options=list(choices), value=run.title, description="run", **LOOK)
    ends = {"min": 0, "max": 1, "value": (0, 1), "continuous_update": False}
    orders = [("most confident first", True), ("least confident first", False)]
    menus = {
        "true": Dropdown(options=classes, description="true class", **LOOK),
        "predicted": Dropdown(options=classes, description="predicted class", **LOOK),
        "outcome": Dropdown(options=[ANY, "right", "wrong"], value="wrong", description="outcome", **LOOK),
        "confidence": FloatRangeSlider(**ends, step=0.01, description="confidence", **LOOK),
        "surest_first": Dropdown(options=orders, description="order", **LOOK),
    }
    words = ("← previous", "next →", "show all")
    buttons = back, forth, everything = [Button(description=text, layout={"width": "7em"}) for text in words]
    table, films = matrix.Matrix(html=run.matrix()), HTML()
    start, held = 0, False

    def show(new_start: int = 0) -> None:
        nonlocal start
        if not held:
            start = max(0, new_start)
            selection = Selection(**{name: menu.value for name, menu in menus.items()})
            films.value = run.videos(selection, start)
            back.disabled = start == 0
            forth.disabled = start + run.p.shown >= len(select(run.table, selection))

    def choose(**values) -> None:
        """Select these values and no others, all at once; the order stays as it is."""
        nonlocal held
        held = True
        for name, value in asdict(Selection(surest_first=menus["surest_first"].value, **values)).items():
            menus[name].value = value
        held = False
        show()

    def change_run(change) -> None:
        nonlocal run
        try:
            run = Run(choices[change.new], run.data)
            table.html = run.matrix()
            show()
        except runs.RunError as error:
            films.value = f'<p role="status">{escape(str(error))}</p>'

    run_menu.observe(change_run, "value")
    for menu in menus.values():
        menu.observe(lambda _: show(), "value")
    table.on_msg(lambda _, entry, buffers: choose(**entry))
    back.on_click(lambda _: show(start - run.p.shown))
    forth.on_click(lambda _: show(start + run.p.shown))
    everything.on_click(lambda _: choose())
    show()
    left = VBox([run_menu, *menus.values(), HBox(buttons)], layout={"min_width": "27em"})
    return VBox([HBox([left, table], layout={"flex_flow": "row wrap"}), films])


def explore(p: FigureParams, data: Data) -> None:
    """Show the explorer of the run that ``p`` names; a page without a kernel shows where it begins."""
    run = Run(p, data)
    widget = build(run)._repr_mimebundle_() if watched() else {}
    display(widget | {"text/html": run.static()}, raw=True)
