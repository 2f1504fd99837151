"""How far the work is: a line that changes in place where somebody watches, a short log where nobody does.

A notebook that a program executes (papermill, nbconvert) keeps every line it ever printed, and is often read
in a terminal or in the log of a cluster; it gets some twenty plain lines for a piece of work.
"""

import time
from collections.abc import Iterable, Iterator

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, display

from videossl_core.runs import METRICS
from videossl_core.views import figures


def watched() -> bool:
    """Is there a person in front of the notebook? Whoever executes a cell tells the kernel if ``input()``
    could be answered; a widget that was clicked needs no such proof."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    asked = kernel.get_parent()
    by_hand = asked.get("header", {}).get("msg_type") == "comm_msg"
    return by_hand or bool(asked.get("content", {}).get("allow_stdin"))


class Line:
    """One line about one piece of work, updated about once a second; or, unwatched, a log of it.

    The log has a line when the next 5 % are done, an early one that says how long it will take, and the last.
    """

    def __init__(self, total: int, label: str, done: int = 0, live: bool | None = None):
        self.total, self.label, self.first = total, label, done
        self.live = watched() if live is None else live
        self.start = self.shown = time.perf_counter()
        self.mark = 20 * done // total
        self.lines = 0
        self.handle = display(self._bundle(done, ""), raw=True, display_id=True) if self.live else None

    def at(self, done: int, note: str = "") -> None:
        """So much is done; ``note`` says what else there is to know at this point."""
        if self.due(done, time.perf_counter()):
            self.shown, self.mark = time.perf_counter(), 20 * done // self.total
            self.lines += 1
            if self.live:
                self.handle.update(self._bundle(done, note), raw=True)
            else:
                print(self.text(done, note), flush=True)

    def due(self, done: int, now: float) -> bool:
        waited = now - self.shown
        if done == self.total or self.live:
            return done == self.total or waited > 1
        return (waited > 5 and 20 * done // self.total > self.mark) or (waited > 10 and not self.lines)

    def text(self, done: int, note: str = "") -> str:
        spent = time.perf_counter() - self.start
        if done == self.total:
            time_left = duration(spent)
        elif done > self.first:
            time_left = f"{duration(spent * (self.total - done) / (done - self.first))} left"
        else:
            time_left = ""
        return ", ".join(filter(None, (f"{self.label}: {done} of {self.total}", time_left, note)))

    def _bundle(self, done: int, note: str) -> dict[str, str]:
        text, size = self.text(done, note), f'value="{done}" max="{self.total}" style="width:8em"'
        bar = f'<progress {size} aria-label="{self.label}"></progress>'
        return {"text/html": f"<div>{bar} {text}</div>", "text/plain": text}


def progress(items: Iterable, total: int, label: str, done: int = 0) -> Iterator:
    """Show how far the loop over these items is; ``done`` of the ``total`` were done before it began."""
    if total > done:  # or else everything is there already
        yield from _along(Line(total, label, done), items, done, lambda: "")


def _along(line: Line, items: Iterable, done: int, note) -> Iterator:
    for item in items:
        yield item
        done += 1
        line.at(done, note())


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def in_words(row: dict) -> str:
    """A row of log.csv: loss and its parts, learning rate, confident share, speed."""
    parts = ", ".join(f"{n.removeprefix('loss_')} {v:.3g}" for n, v in row.items() if n.startswith("loss_"))
    words = [f"loss {row['loss']:.3g} ({parts})", f"lr {row['lr']:.2g}"]
    if "confident_pct" in row:
        words.append(f"{row['confident_pct']:.0f} % confident")
    return ", ".join([*words, f"{row['clips_per_s']:.3g} clips/s"])


class LiveTraining:
    """What is seen of a training while it runs: one line and, where somebody watches, its curves, drawn as
    often as a twentieth of the time allows.

    Pass ``progress``, ``on_log`` and ``on_eval`` to ``training.train``.
    """

    def __init__(self):
        self.live = watched()  # asked now: later there may be another thread
        self.begun = False
        self.row: dict = {}
        self.log, self.metrics = pd.DataFrame(), pd.DataFrame(columns=METRICS)
        self.drawn = self.cost = 0.0
        wait = HTML("<i>The curves appear with the first numbers.</i>")
        self.handle = display(wait, display_id=True) if self.live else None

    def progress(self, items: Iterable, total: int, label: str, done: int = 0) -> Iterator:
        if total > done:
            note = lambda: in_words(self.row) if self.row else ""  # noqa: E731
            yield from _along(Line(total, label, done, self.live), items, done, note)

    def on_log(self, row: dict) -> None:
        self.begun, self.row = True, row
        if self.live:
            self.log = pd.concat([self.log, pd.DataFrame([row])], ignore_index=True)
            if time.perf_counter() - self.drawn > 20 * self.cost:
                self._draw()

    def on_eval(self, log: pd.DataFrame, metrics: pd.DataFrame) -> None:
        self.begun, self.log, self.metrics = True, log, metrics
        if self.live:
            self._draw()

    def _draw(self) -> None:
        begun = time.perf_counter()
        figure = figures.training_curves(self.log, self.metrics)
        self.handle.update(figure)
        plt.close(figure)
        self.drawn = time.perf_counter()
        self.cost = self.drawn - begun

    def close(self) -> None:
        """Take the live picture away: the finished one is drawn from the run's files."""
        if self.live:
            self.handle.update(HTML(""))
