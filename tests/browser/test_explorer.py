"""The explorer in JupyterLab, by mouse and by keyboard alone."""

import re

import pandas as pd
import pytest


@pytest.fixture
def book(notebook):
    """qualitative.ipynb, run; its matrix and its films."""
    book = notebook("qualitative")
    book.run_all(seconds=240)
    return book


def status(book) -> str:
    return book.page.locator(".widget-html [role=status]").inner_text()


def test_a_pressed_entry_shows_its_videos(book, study):
    table = pd.read_csv(study / "outputs/demo/videossl/10/seed0/predictions_test.csv")
    wrong = table[~table.video_right].groupby(["class_name", "video_pred"]).size()
    (true, said), n = wrong.idxmax(), wrong.max()
    entry = book.page.get_by_role("button", name=re.compile(f"^true {true}, said {said}: {n} video"))
    entry.click()
    book.page.wait_for_function(
        "said => document.querySelector('.widget-html [role=status]').textContent.includes(said)",
        arg=f"said {said}",
    )
    assert status(book).startswith(f"Videos 1 to {min(n, 6)} of {n}.")
    films = book.page.locator(".widget-html figure")
    assert films.count() == min(n, 6)
    assert all(text.startswith(true) for text in films.all_inner_texts())
    assert book.broken() == []
    book.page.get_by_label("true class").select_option("(any)")
    book.page.wait_for_function(
        "() => !document.querySelector('.widget-html [role=status]').textContent.includes('true')"
    )
    assert all(f"VideoSSL: {said} " in text for text in films.all_inner_texts())
    book.check()


def test_by_keyboard_alone(book):
    """Tab into the matrix, arrows within it, Enter; JupyterLab must not take the keys for its own."""
    book.page.get_by_role("button", name="show all").focus()
    book.page.keyboard.press("Tab")
    focused = "() => document.activeElement.getAttribute('aria-label')"
    first = book.page.evaluate(focused)
    assert re.match(r"true .*, said .*: \d+ video", first)
    book.page.keyboard.press("ArrowDown")
    second = book.page.evaluate(focused)
    assert re.match(r"true .*, said .*: \d+ video", second)
    assert second != first
    book.page.keyboard.press("Enter")
    true, said, n = re.fullmatch(r"true (.*), said (.*): (\d+) videos?", second).groups()
    wanted = f"of {n}. "
    book.page.wait_for_function(
        "wanted => document.querySelector('.widget-html [role=status]').textContent.includes(wanted)",
        arg=f"true class {true}, said {said}",
    )
    assert wanted in status(book)
