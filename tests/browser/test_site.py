"""The report in a browser, from the disk."""

from videossl_core.tools import report


def test_every_page(window, study):
    folder = study / "outputs" / "report"
    report.build(study / "outputs")
    pages = sorted(folder.rglob("*.html"))
    assert len(pages) >= 5
    told = []
    window.on("console", lambda message: told.append(message.text))
    window.on("pageerror", lambda error: told.append(str(error)))
    for width in (1280, 390):
        window.set_viewport_size({"width": width, "height": 800})
        for path in pages:
            window.goto(path.as_uri())
            window.wait_for_function("() => [...document.images].every(i => i.complete)")
            assert window.evaluate("() => [...document.images].filter(i => !i.naturalWidth).length") == 0
            window.wait_for_function(
                "() => [...document.querySelectorAll('video')].every(v => v.readyState >= 2)"
            )
            assert window.evaluate("() => document.documentElement.scrollWidth") <= width, path
    assert told == []
    assert window.abroad == []


def test_a_film_plays_by_keyboard(window, study):
    report.build(study / "outputs")
    window.goto((study / "outputs/report/runs/demo/supervised-10-seed0.html").as_uri())
    window.wait_for_function("() => document.querySelector('video').readyState >= 2")
    window.locator("video").first.focus()
    window.keyboard.press("Space")
    window.wait_for_function("() => document.querySelector('video').currentTime > 0.2")
