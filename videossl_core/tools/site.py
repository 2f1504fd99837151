"""A static site: pages from templates, each made anew only when what it is made from has changed."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from videossl_core.data import files, frames
from videossl_core.params import ROOT
from videossl_core.views import figures, films

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = "style.css"


class Media:
    """Pictures and films of one page, in a folder of its name beside it; what the templates are given."""

    def __init__(self, page: Path):
        self.folder = page.with_suffix("")
        self.names: set[str] = set()

    def picture(self, figure: Figure, name: str, caption: str) -> dict:
        told = {"src": f"{self.folder.name}/{name}.png", "alt": figures.alt(figure), "caption": caption}
        with files.atomic(self.folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=120)
        plt.close(figure)
        self.names.add(f"{name}.png")
        return told

    def film(self, store: frames.FrameStore, video: str, **told) -> dict:
        name = f"{files.sha256(video.encode())[:12]}.mp4"
        films.write(self.folder / name, *films.stored(store, video))
        self.names.add(name)
        return {"src": f"{self.folder.name}/{name}", "video": video, **told}

    def sweep(self) -> None:
        """Remove what an earlier version of the page had and this one has not."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.is_file() and path.name not in self.names:
                    path.unlink()
            if not self.names and not any(self.folder.iterdir()):
                self.folder.rmdir()


class Site:
    """Pages below ``folder``; ``site.json`` there remembers what each was made from.

    Nothing is removed but pages that an earlier build made.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.pages: dict[str, dict] = self._remembered()  # name -> made_from, and what the page tells
        self.current: list[str] = []
        self.written: list[str] = []
        options = {
            "autoescape": True,
            "undefined": StrictUndefined,
            "trim_blocks": True,
            "lstrip_blocks": True,
        }
        self.jinja = Environment(loader=FileSystemLoader(_TEMPLATES), **options)
        self.code = _code()

    def page(
        self, name: str, template: str, inputs: Iterable[Path], fill: Callable[[Media], dict | None], facts=""
    ) -> dict | None:
        """Make the page ``name`` unless it is there, made from these inputs and facts by this code.

        Args:
            fill: gives the template's variables; None for no page. Its ``index`` is what other pages may
                know of this one without making it.

        Returns:
            That ``index`` with the page's name, or None.
        """
        path = self.folder / name
        made_from = files.sha256(
            json.dumps([self.code, template, facts, [self._stamp(p) for p in inputs]]).encode()
        )
        known = self.pages.get(name, {})
        self.current.append(name)
        if known.get("made_from") != made_from or (known["index"] is not None and not path.exists()):
            media = Media(path)
            told = fill(media)
            if told is not None:
                top = "../" * (len(Path(name).parts) - 1)
                html = self.jinja.get_template(template).render(top=top, style=_STYLE, **told)
                files.write_text(path, html)
                self.written.append(name)
            media.sweep()
            index = None if told is None else told.get("index", {}) | {"page": name}
            self.pages[name] = {"made_from": made_from, "index": index}
        return self.pages[name]["index"]

    def close(self, below: list[str]) -> None:
        """Remove pages below these folders that were not asked for this time, and remember the others."""
        for name in [n for n in self.pages if n.startswith(tuple(below)) and n not in self.current]:
            path = self.folder / name
            path.unlink(missing_ok=True)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            del self.pages[name]
        files.write_text(self.folder / _STYLE, (_TEMPLATES / _STYLE).read_text(encoding="utf-8"))
        files.write_text(self.folder / "site.json", json.dumps(self.pages, indent=1))

    def _stamp(self, path: Path) -> tuple:
        """Known from here, so that all of it may move to another place."""
        name = os.path.relpath(path, self.folder)
        try:
            found = os.stat(path)
        except OSError:
            return name, None
        return name, found.st_size, found.st_mtime_ns

    def _remembered(self) -> dict[str, dict]:
        try:
            return json.loads((self.folder / "site.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # every page is made anew


def _code() -> str:
    """Of everything that decides how a page looks, besides the runs."""
    code = (ROOT / "videossl_core").rglob("*.py")
    sources = [*code, *_TEMPLATES.iterdir(), ROOT / "params/paper_results.csv"]
    return files.sha256("".join(files.sha256_of(path) for path in sorted(sources)).encode())


def table(frame: pd.DataFrame, caption: str) -> dict:
    """What the template needs of a table: caption, columns as (name, stands on the right), rows of texts."""
    right = [all(map(_is_number, frame[name])) for name in frame.columns]
    rows = [[_text(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return {"caption": caption, "columns": list(zip(frame.columns, right, strict=True)), "rows": rows}


def _text(value) -> str:
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:.1f}"
    return value if isinstance(value, Markup) else str(value)


def _is_number(value) -> bool:
    return not isinstance(value, str) or value[:1] in tuple("0123456789+–-")


def link(page: str, text: str) -> Markup:
    return Markup('<a href="{}">{}</a>').format(quote(page), text)
