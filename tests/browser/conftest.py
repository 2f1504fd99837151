"""JupyterLab with a real Chromium in front of it; skipped where there is none.

Debian and Ubuntu: ``apt-get install chromium``; or give its path as ``CHROMIUM=<path>``.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support import server
from support.helpers import TINY, project_copy

from videossl_core import params, paths, training

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OFF = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = ["--no-first-run", *(f"--disable-{name}" for name in OFF)]
SCREENS = paths.ROOT / "outputs" / "screens"


@pytest.fixture(scope="session")
def chromium():
    """A browser; each test opens a window of its own."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not path:
        pytest.skip("no Chromium here: apt-get install chromium, or make test-browser CHROMIUM=<path>")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    alone = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has no sandbox
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=path, args=[*FLAGS, *alone])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def study(prepared, tmp_path_factory) -> Path:
    """A copy of the project, with the runs that a bare notebook asks for."""
    lab = project_copy(tmp_path_factory.mktemp("study"), prepared)
    values = {name: value for name, value in TINY.items() if name != "dataset"}
    values["log_every"] = 20  # the tour redraws its curves at every row
    (lab / "params/demo.yaml").write_text(yaml.safe_dump(values))
    own = lab / "params/my_videos.yaml"
    own.write_text(own.read_text().replace("demo_per_class: 12", "demo_per_class: 3"))
    p = params.load(**values | {"dataset": "tiny", "label_pct": 10, "outputs": lab / "outputs"})
    for method in ("supervised", "sd", "videossl"):
        training.train(p.but(dataset="demo", method=method))
    return lab


@pytest.fixture(scope="session")
def jupyter(study, tmp_path_factory):
    with server.jupyterlab(study, tmp_path_factory.mktemp("jupyter")) as running:
        yield running


@pytest.fixture
def window(chromium):
    """A page that notes every request to anywhere but this machine."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.abroad = []
    ours = re.compile(r"(https?|wss?)://127\.0\.0\.1[:/]|file:|data:|blob:|about:")
    page.on("request", lambda r: None if ours.match(r.url) else page.abroad.append(r.url))
    yield page
    context.close()


@pytest.fixture
def notebook(window, jupyter):
    """Open a notebook in JupyterLab: ``notebook("tour")``."""

    return lambda name: Notebook(window, jupyter, name)


class Notebook:
    """One notebook in JupyterLab, handled by what a user sees and presses."""

    def __init__(self, page, jupyter, name: str):
        self.page, self.name = page, name
        page.goto(jupyter.url(f"lab/workspaces/{name}/tree/notebooks/{name}.ipynb"))  # no other tab beside it
        # before that, cells do not run
        page.get_by_text(re.compile(r"Python 3.* \| Idle")).wait_for(timeout=90_000)
        page.keyboard.press("Control+B")  # the file browser takes room

    def menu(self, *entries: str) -> None:
        self.page.get_by_role("menuitem", name=entries[0], exact=True).click()
        for entry in entries[1:]:
            self.page.get_by_role("menuitem", name=re.compile(entry)).first.click()

    def run_all(self, seconds: float = 120) -> None:
        self.menu("Run", "^Run All Cells$")
        self.wait(seconds)

    def restart_and_run_all(self, seconds: float = 120) -> None:
        self.menu("Kernel", "^Restart Kernel and Run All Cells")
        self.page.get_by_role("button", name="Confirm Kernel Restart").click()
        self.page.get_by_text(re.compile(r"Python 3.* \| Busy")).wait_for(timeout=60_000)
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Until no cell waits or runs and the kernel is idle; all must have run without an error."""
        finished = """() => {
            const found = document.querySelectorAll('.jp-CodeCell .jp-InputPrompt');
            const prompts = [...found].map(p => p.textContent);
            const idle = document.querySelector('.jp-Notebook-ExecutionIndicator[data-status="idle"]');
            return idle && prompts.some(p => /[0-9]/.test(p)) && !prompts.some(p => p.includes('*'));
        }"""
        self.page.wait_for_function(finished, timeout=1000 * seconds)
        assert self.errors() == []
        assert self.not_run() == []

    def errors(self) -> list[str]:
        """Text of error and warning outputs."""
        kinds = [f'[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("error", "stderr")]
        return self.page.locator(", ".join(kinds)).all_inner_texts()

    def not_run(self) -> list[str]:
        """Code cells with something in them and no execution count."""
        find = """() => [...document.querySelectorAll('.jp-CodeCell')]
            .filter(c => !/[0-9]/.test(c.querySelector('.jp-InputPrompt').textContent))
            .map(c => c.querySelector('.cm-content').textContent).filter(text => text.trim())"""
        return self.page.evaluate(find)

    def broken(self) -> list[str]:
        """Images that do not show and videos that do not play, once they had time to load."""
        find = """() => [...document.querySelectorAll('.jp-Notebook img, .jp-Notebook video')]
            .filter(e => e.tagName == 'IMG' ? !(e.complete && e.naturalWidth) : e.error || e.readyState < 2)
            .map(e => e.tagName + ' ' + e.src.slice(0, 80))"""
        for _ in range(20):
            if not (broken := self.page.evaluate(find)):
                break
            self.page.wait_for_timeout(250)
        return broken

    def check(self) -> None:
        """What holds of every notebook that has run; and its picture, for people to look at."""
        assert self.broken() == []
        assert self.page.abroad == []
        with Image.open(self.screenshot()) as picture:
            assert picture.height > 900

    def screenshot(self) -> Path:
        """All of it, as tall as it is."""
        self.page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 0)")
        bottom = "[...document.querySelectorAll('.jp-Cell')].at(-1).getBoundingClientRect().bottom"
        height = self.page.evaluate(bottom)
        self.page.set_viewport_size({"width": 1280, "height": min(int(height) + 60, 15_000)})
        self.page.wait_for_timeout(500)
        SCREENS.mkdir(parents=True, exist_ok=True)
        path = SCREENS / f"{self.name}.png"
        self.page.screenshot(path=str(path))
        self.page.set_viewport_size({"width": 1280, "height": 900})
        return path
