"""Choose test videos by what a model said of them, and watch them.

By run, class, right or wrong, confidence, or by a click on the confusion matrix; all of it by keyboard, too.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING

import ipywidgets
import pandas as pd
from IPython.display import HTML, display

from videossl_core import runs
from videossl_core.views import figures, films, matrix
from videossl_core.views.progress import watched

if TYPE_CHECKING:
    from videossl_core.params import FigureParams
    from videossl_core.prepare import Data

ANY = "(any)"


@dataclass(frozen=True)
class Choice:
    """Which videos: of this true class, said to be of that class, right or wrong, said this surely."""

    true: str = ANY
    said: str = ANY
    outcome: str = ANY  # right | wrong
    low: float = 0.0
    high: float = 1.0
    surest_first: bool = True

    def __str__(self) -> str:
        words = [f"true class {self.true}", f"said {self.said}", f"answer {self.outcome}"]
        words = [w for w in words if not w.endswith(ANY)]
        return ", ".join([*words, f"confidence {self.low:.2f} to {self.high:.2f}"])


def select(table: pd.DataFrame, choice: Choice) -> pd.DataFrame:
    """The rows of a predictions_test.csv that fit, in the order asked for."""
    sure = table.video_confidence
    kept = (sure >= choice.low) & (sure <= choice.high)
    if choice.true != ANY:
        kept &= table.class_name == choice.true
    if choice.said != ANY:
        kept &= table.video_pred == choice.said
    if choice.outcome != ANY:
        kept &= table.video_right == (choice.outcome == "right")
    return table[kept].sort_values(["video_confidence", "video"], ascending=[not choice.surest_first, True])


def finished(p: "FigureParams") -> pd.DataFrame:
    """Finished runs of the data set that say what they said of each test video, named for a menu."""
    found = runs.find(p.outputs, p.dataset)
    found = found[[runs.Run(folder).predictions_test.exists() for folder in found.folder]]
    names = [f"{figures.TITLES[r.method]}, {r.label_pct:g} %, seed {r.seed}" for r in found.itertuples()]
    return found.assign(name=names).set_index("name")


class Explorer:
    """Menus, the matrix, and a grid of playable videos, each with what the compared models said of it.

    Args:
        p: which run to begin with, which models to compare, and how many videos to show at once.
        data: the prepared data whose frame store holds the test videos.
    """

    def __init__(self, p: "FigureParams", data: "Data"):
        self.p, self.data, self.runs = p, data, finished(p)
        self.film = lru_cache(maxsize=256)(lambda video, said: films.film(data.store, video, said, width=200))
        self.start = 0
        self.take(next(name for name in self._preferred() if name in self.runs.index))

    def _preferred(self) -> list[str]:
        """The last compared model with the label share and seed asked for, and otherwise any run."""
        wanted = [
            f"{figures.TITLES[m]}, {self.p.label_pct:g} %, seed {self.p.seed}" for m in self.p.methods[::-1]
        ]
        return [*wanted, *self.runs.index]

    def take(self, name: str) -> None:
        """Go to this run: its answers, and those of the compared models with its label share and seed."""
        row = self.runs.loc[name]
        methods = [*[m for m in self.p.methods if m != row.method], row.method]
        like = self.p.model_copy(update={"label_pct": row.label_pct, "seed": row.seed, "methods": methods})
        self.name, self.models = name, runs.predictions(like)
        self.table = self.models[row.method]
        if missing := set(self.table.video) - set(self.data.store.table.index):
            raise runs.RunError(
                f"{name}: {len(missing)} of its test videos are not in {self.data.store.folder}"
            )

    def caption(self, video: str) -> str:
        """True class and, a line a model, whether it is right, what it said and how surely."""
        lines = []
        for method, table in self.models.items():
            said = table.set_index("video").loc[video]
            mark = "✓" if said.video_right else "✗"
            answer = escape(f"{said.video_pred} ({said.video_confidence:.2f})")
            lines.append(f"{mark} {figures.TITLES[method]}: {answer}")
        return "<br>".join([f"<b>{escape(said.class_name)}</b>", *lines])

    def grid(self, choice: Choice, start: int = 0) -> str:
        """HTML of up to ``p.videos`` of the chosen videos, from this one on, below their count."""
        chosen = select(self.table, choice)
        asked = escape(f"{self.name}: {choice}")
        if chosen.empty:
            return f'<p role="status">No test video fits: {asked}. Widen one of the choices.</p>'
        part = chosen.video.iloc[start : start + self.p.videos]
        count = f"Videos {start + 1} to {start + len(part)} of {len(chosen)}"
        shown = "".join(self.film(video, self.caption(video)) for video in part)
        return f'<p role="status">{count}. {asked}</p>{shown}'

    def static(self) -> str:
        """What a page without a kernel shows: the matrix, and the mistakes that the model was surest of."""
        counted = matrix.html(self.table, self.data.classes, tag="span")
        wrong = self.grid(Choice(outcome="wrong"))
        return f'<style>{matrix.STYLE}</style><div class="confusion">{counted}</div>{wrong}'

    # ---- With a kernel

    def widget(self) -> ipywidgets.Widget:
        """The menus and all they move."""
        kinds = [ANY, *self.data.classes]
        self.menus = {
            "run": _menu("run", list(self.runs.index), self.name),
            "true": _menu("true class", kinds, ANY),
            "said": _menu("said class", kinds, ANY),
            "outcome": _menu("answer", [ANY, "right", "wrong"], "wrong"),
            "confidence": ipywidgets.FloatRangeSlider(
                value=(0, 1), min=0, max=1, step=0.01, description="confidence", continuous_update=False,
                style={"description_width": "6em"}, layout={"width": "24em"},
            ),
            "order": _menu("order", [("surest first", True), ("least sure first", False)], True),
        }  # fmt: skip
        self.matrix = matrix.Matrix(html=matrix.html(self.table, self.data.classes))
        self.films = ipywidgets.HTML()
        self.back, self.on, self.all = (
            ipywidgets.Button(description=words, layout={"width": "auto"})
            for words in ("← previous", "next →", "show all")
        )
        self.back.on_click(lambda _: self.turn(-self.p.videos))
        self.on.on_click(lambda _: self.turn(self.p.videos))
        self.all.on_click(lambda _: self.choose(Choice()))
        self.matrix.on_msg(lambda _, said, buffers: self.choose(Choice(said["true"], said["said"])))
        self.menus["run"].observe(lambda change: self._other_run(change.new), "value")
        for name, menu in self.menus.items():
            if name != "run":
                menu.observe(lambda _: self.show(), "value")
        self.show()
        buttons = ipywidgets.HBox([self.back, self.on, self.all])
        left = ipywidgets.VBox([*self.menus.values(), buttons], layout={"min_width": "25em"})
        top = ipywidgets.HBox([left, self.matrix], layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([top, self.films])

    def choice(self) -> Choice:
        """What the menus say now."""
        m = {name: menu.value for name, menu in self.menus.items()}
        return Choice(m["true"], m["said"], m["outcome"], *m["confidence"], surest_first=m["order"])

    def choose(self, choice: Choice) -> None:
        """Set the menus, all at once, and show what fits. The order stays as it is."""
        choice = replace(choice, surest_first=self.menus["order"].value)
        self.held = True
        for name in ("true", "said", "outcome"):
            self.menus[name].value = getattr(choice, name)
        self.menus["confidence"].value = (choice.low, choice.high)
        self.held = False
        self.show()

    held = False  # while several menus are being set

    def show(self, start: int = 0) -> None:
        if self.held:
            return
        choice, self.start = self.choice(), start
        self.films.value = self.grid(choice, start)
        self.back.disabled = start == 0
        self.on.disabled = start + self.p.videos >= len(select(self.table, choice))

    def turn(self, by: int) -> None:
        """Show the next or the previous videos of those chosen."""
        self.show(max(0, self.start + by))

    def _other_run(self, name: str) -> None:
        try:
            self.take(name)
        except runs.RunError as error:
            self.films.value = f'<p role="status">{escape(str(error))}</p>'
            return
        self.matrix.html = matrix.html(self.table, self.data.classes)
        self.show()


def _menu(name: str, options: list, value) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(
        options=options, value=value, description=name,
        style={"description_width": "6em"}, layout={"width": "24em"},
    )  # fmt: skip


def explore(p: "FigureParams", data: "Data") -> None:
    """Show the explorer; where nobody watches, and in the saved notebook, the page it begins with."""
    explorer = Explorer(p, data)
    page = explorer.static()
    if watched():
        display(explorer.widget()._repr_mimebundle_() | {"text/html": page}, raw=True)
    else:
        display(HTML(page))
