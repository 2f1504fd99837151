"""The labelling widget in JupyterLab, by mouse and by keyboard."""

import csv
import re
from pathlib import Path

import pytest

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.browser


def rows(path: Path) -> dict[str, str]:
    """video -> label, or skip, as the file has them."""
    with open(path, newline="", encoding="utf-8") as f:
        return {row["video"]: row["label"] or row["split"] for row in csv.DictReader(f)}


def test_label_five_videos(notebook):
    """They are in the CSV, undo takes one back, Enter accepts a guess, and a restart of the kernel loses
    neither labels nor the curve."""
    book = notebook("annotate")
    book.run_all(seconds=300)
    desk = book.page.get_by_role("group", name="Label videos")
    clip = desk.locator("video")
    output = book.page.locator(".jp-OutputArea").filter(has_text="unusable; labels: ").first.inner_text()
    path = Path(output.partition("labels: ")[2].splitlines()[0])
    start = rows(path) if path.exists() else {}

    def shown() -> str:
        return clip.get_attribute("aria-label").removeprefix("Clip of ")

    def press(how) -> str:
        """Do it, and wait for the next video."""
        video = shown()
        how()
        expect(clip).not_to_have_attribute("aria-label", f"Clip of {video}")
        assert clip.evaluate("v => v.error") is None
        return video

    buttons = [b.inner_text() for b in desk.locator(".classes button").all()]
    wanted = {}
    for i in range(5):
        label, key = re.fullmatch(r"(.+) \((.)\)", buttons[i % len(buttons)]).groups()
        if i % 2:
            video = press(lambda key=key: (desk.focus(), book.page.keyboard.press(key)))
        else:
            video = press(lambda name=f"{label} ({key})": desk.get_by_role("button", name=name).click())
        wanted[video] = label
        assert rows(path) == start | wanted

    skipped = press(lambda: book.page.keyboard.press("s"))
    assert rows(path) == start | wanted | {skipped: "skip"}
    press(lambda: book.page.keyboard.press("u"))
    assert rows(path) == start | wanted
    last = list(wanted)[-1]
    press(lambda: desk.get_by_role("button", name="undo (u)").click())
    assert last not in rows(path)
    assert shown() == last  # what was taken back is shown again
    again = re.fullmatch(r"(.+) \((.)\)", buttons[4 % len(buttons)])[2]
    press(lambda: (desk.focus(), book.page.keyboard.press(again)))
    assert rows(path) == start | wanted

    guess = re.compile(r"Guess: (.+), (\d+) %\. Enter accepts it\.")
    for _ in range(6):
        expect(desk.locator(".guess")).to_have_text(guess)
        label, percent = guess.fullmatch(desk.locator(".guess").inner_text()).groups()
        assert 0 < int(percent) <= 100
        expect(desk.locator("button.guessed")).to_have_text(re.compile(f"^{re.escape(label)} "))
        wanted[press(lambda: (desk.focus(), book.page.keyboard.press("Enter")))] = label
        assert rows(path) == start | wanted
    key = desk.locator(".classes button:not(.guessed)").first
    label = re.fullmatch(r"(.+) \(.\)", key.inner_text())[1]
    wanted[press(lambda: (key.focus(), book.page.keyboard.press("Enter")))] = (
        label  # the button, not the guess
    )
    assert rows(path) == start | wanted
    trained = sum(int(text.split()[0]) for text in desk.locator(".count").all_inner_texts())
    curve = desk.get_by_role("img", name="Cross-validated accuracy")
    assert curve.get_attribute("aria-label").split(", ")[-1].startswith(f"{trained} labels ")
    assert "of them sure (95 % or more)" in desk.locator(".rest").inner_text()
    before = curve.get_attribute("aria-label")
    book.check()

    book.restart_and_run_all(seconds=300)
    assert rows(path) == start | wanted
    counts = [re.match(r"(\d+) \+ (\d+)", text) for text in desk.locator(".count").all_inner_texts()]
    labelled = sum(int(c[1]) + int(c[2]) for c in counts)
    assert labelled == sum(label != "skip" for label in rows(path).values())
    assert shown() not in wanted
    assert curve.get_attribute("aria-label") == before
