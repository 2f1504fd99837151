"""Every notebook in JupyterLab, run by a click on "Run All Cells", as it comes from the repository."""

import re

import pytest

from videossl_core.paths import ROOT

pytestmark = pytest.mark.browser
OWN = {"annotate", "qualitative", "tour"}  # run by a test of their own
NAMES = sorted({path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - OWN)


@pytest.mark.parametrize("name", NAMES)
def test_run_all(notebook, name):
    book = notebook(name)
    book.run_all(seconds=240)
    book.check()


def test_training_line_and_slider(notebook):
    """The tour: somebody watches, so the training has a line with a bar; sliders answer to the keyboard."""
    book = notebook("tour")
    book.run_all(seconds=600)
    line = book.page.locator("div:has(> progress)").filter(has_text="training VideoSSL")
    assert re.match(r"training VideoSSL: (\d+) of \1, ", line.inner_text().strip())
    book.check()
    cell = book.page.locator(".jp-CodeCell").filter(has=book.page.locator(".widget-slider"))
    cell = cell.filter(has_text=re.compile("δ")).first
    picture = cell.locator(".jp-OutputArea img").first
    before, words = picture.get_attribute("src"), picture.get_attribute("alt")
    assert words
    handle = cell.get_by_role("slider").first
    handle.focus()
    for _ in range(10):
        book.page.keyboard.press("ArrowLeft")
    book.page.wait_for_function(
        "([picture, before]) => picture.isConnected ? picture.src !== before : true",
        arg=[picture.element_handle(), before],
    )
    assert cell.locator(".jp-OutputArea img").first.get_attribute("src") != before
    assert cell.locator(".jp-OutputArea img").first.get_attribute("alt") != words
    assert book.errors() == []
