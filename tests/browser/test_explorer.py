"""The explorer in JupyterLab, by mouse and by keyboard alone."""

import re

import pandas as pd
import pytest

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.browser


@pytest.fixture
def book(notebook):
    """qualitative.ipynb, run; its matrix and its films."""
    book = notebook("qualitative")
    book.run_all(seconds=240)
    return book


@pytest.fixture
def status(book):
    return book.page.locator(".widget-html [role=status]")


def test_pressed_entry_shows_its_videos(book, status, study):
    table = pd.read_csv(study / "outputs/demo/videossl/10/seed0/predictions_test.csv")
    wrong = table[~table.video_right].groupby(["class_name", "video_pred"]).size()
    (true, predicted), n = wrong.idxmax(), wrong.max()
    name = re.compile(f"^true {true}, predicted {predicted}: {n} video")
    book.page.get_by_role("button", name=name).click()
    expect(status).to_contain_text(f"predicted {predicted}", timeout=30_000)
    assert status.inner_text().startswith(f"Videos 1 to {min(n, 6)} of {n}.")
    films = book.page.locator(".widget-html figure")
    assert films.count() == min(n, 6)
    assert all(text.startswith(true) for text in films.all_inner_texts())
    assert book.broken() == []
    book.page.get_by_label("true class").select_option("(any)")
    expect(status).not_to_contain_text("true", timeout=30_000)
    assert all(f"VideoSSL: {predicted} " in text for text in films.all_inner_texts())
    book.check()


def test_explorer_by_keyboard(book, status):
    """Tab into the matrix, arrows within it, Enter; JupyterLab must not take the keys for its own."""
    book.page.get_by_role("button", name="show all").focus()
    book.page.keyboard.press("Tab")
    focused = "() => document.activeElement.getAttribute('aria-label')"
    first = book.page.evaluate(focused)
    assert re.match(r"true .*, predicted .*: \d+ video", first)
    book.page.keyboard.press("ArrowDown")
    second = book.page.evaluate(focused)
    assert re.match(r"true .*, predicted .*: \d+ video", second)
    assert second != first
    book.page.keyboard.press("Enter")
    true, predicted, n = re.fullmatch(r"true (.*), predicted (.*): (\d+) videos?", second).groups()
    expect(status).to_contain_text(f"true class {true}, predicted {predicted}", timeout=30_000)
    assert f"of {n}. " in status.inner_text()
