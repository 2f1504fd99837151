"""How far long work is: a line that changes in place where somebody watches; elsewhere, as in papermill,
some twenty plain lines, for the notebook keeps every one."""

import time
from collections.abc import Callable, Iterable, Iterator

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure

from videossl_core import progress
from videossl_core.methods import METHODS
from videossl_core.params import Params
from videossl_core.runs import METRICS
from videossl_core.training import Trainer


def watched() -> bool:
    """Is a person there? The client of the kernel allows ``input()`` then, or a widget was clicked."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    request = kernel.get_parent()
    clicked = request.get("header", {}).get("msg_type") == "comm_msg"
    return clicked or bool(request.get("content", {}).get("allow_stdin"))


class Line:
    """One line about one piece of work, updated about once a second; or, unwatched, a log of it: an early
    line, one whenever the next 5 % are done, and the last, with five seconds between. ``seconds`` were spent
    on the work before now."""

    def __init__(self, total: int, label: str, seconds: float = 0):
        self.total, self.label = total, label
        self.start = self.shown = time.perf_counter() - seconds
        self.mark = -1
        self.handle = display(self._bundle(0, ""), raw=True, display_id=True) if watched() else None

    def update(self, done: int, note: str = "") -> None:
        """So much is done; ``note`` is shown beside it."""
        now, mark = time.perf_counter(), 20 * done // self.total
        waited = now - self.shown
        if done < self.total and (waited <= 1 if self.handle else waited <= 5 or mark == self.mark):
            return
        self.shown, self.mark = now, mark
        if self.handle:
            self.handle.update(self._bundle(done, note), raw=True)
        else:
            print(self.text(done, note), flush=True)

    def text(self, done: int, note: str = "") -> str:
        spent, left = time.perf_counter() - self.start, self.total - done
        words = [f"{self.label}: {done} of {self.total}"]
        if done:
            words.append(f"{duration(spent * left / done)} left" if left else duration(spent))
        return ", ".join([*words, note] if note else words)

    def _bundle(self, done: int, note: str) -> dict[str, str]:
        text, size = self.text(done, note), f'value="{done}" max="{self.total}" style="width:8em"'
        bar = f'<progress {size} aria-label="{self.label}"></progress>'
        return {"text/html": f"<div>{bar} {text}</div>", "text/plain": text}


def track(items: Iterable, total: int, label: str) -> Iterator:
    """The same items, with a line that shows how many of them are done."""
    if total:
        line = Line(total, label)
        for done, item in enumerate(items, 1):
            yield item
            line.update(done)


def show_progress(shown: bool = True) -> None:
    """From now on, show how far long work of the core is."""
    progress.display = track if shown else lambda items, total, label: items


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def describe(row: dict) -> str:
    """A row of log.csv in words: loss and its parts, learning rate, confident share, speed."""
    parts = ", ".join(f"{n.removeprefix('loss_')} {v:.3g}" for n, v in row.items() if n.startswith("loss_"))
    words = [f"loss {row['loss']:.3g} ({parts})", f"lr {row['lr']:.2g}"]
    if "confident_pct" in row:
        words.append(f"{row['confident_pct']:.0f} % confident")
    return ", ".join([*words, f"{row['clips_per_s']:.3g} clips/s"])


class Live:
    """What is seen of a training while it runs: one line and, where somebody watches, its curves, drawn again
    as often as a twentieth of the time allows. Evaluations have no line of their own until ``close``.

    ``draw`` makes the figure of a log and its metrics, such as ``plots.training_curves``. With a ``trainer``
    they are its own, which hold the earlier rows of a resumed run.
    """

    def __init__(self, p: Params, draw: Callable[..., Figure], trainer: Trainer | None = None):
        self.p, self.draw = p, draw
        self.log, self.metrics = (trainer.log, trainer.metrics) if trainer else ([], [])
        self.line: Line | None = None
        self.drawn = self.cost = 0.0
        wait = HTML("<i>The curves appear with the first numbers.</i>")
        self.handle = display(wait, display_id=True) if watched() else None
        show_progress(False)

    def add(self, row: dict) -> None:
        """Show the next row, of the log or of an evaluation, as the trainer yields it."""
        evaluated = "subset" in row
        rows = self.metrics if evaluated else self.log
        if row not in rows[-2:]:  # a trainer has its own rows, both of an evaluation, before it yields them
            rows.append(row)
        if "lr" in row:  # a fit on the teacher's features is over at once
            label = f"training {METHODS[self.p.method].title}"
            self.line = self.line or Line(self.p.steps, label, row["seconds"])
            self.line.update(row["step"], describe(row))
        if self.handle and self.log and (evaluated or time.perf_counter() - self.drawn > 20 * self.cost):
            begun = time.perf_counter()
            figure = self.draw(pd.DataFrame(self.log), pd.DataFrame(self.metrics, columns=METRICS))
            self.handle.update(figure)
            plt.close(figure)
            self.drawn = time.perf_counter()
            self.cost = self.drawn - begun

    def close(self) -> None:
        """Take the live picture away: the finished one is drawn after the training."""
        show_progress()
        if self.handle:
            self.handle.update(HTML(""))
