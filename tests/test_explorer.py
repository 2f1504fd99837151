"""The explorer of qualitative.ipynb: what it selects, what the matrix counts, and what a click shows."""

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from videossl_core import params, prepare, runs, training
from videossl_lab import explorer, matrix
from videossl_lab.explorer import Choice

TABLE = pd.DataFrame(
    [
        ("a1", "A", "A", 0.9),
        ("a2", "A", "B", 0.8),
        ("a3", "A", "B", 0.3),
        ("b1", "B", "B", 0.8),
        ("b2", "B", "A", 0.6),
        ("c1", "C<&>", "A", 0.5),
    ],
    columns=["video", "class_name", "video_pred", "video_confidence"],
).assign(video_right=lambda t: t.class_name == t.video_pred)


@pytest.mark.parametrize(
    ("choice", "videos"),
    [
        (Choice(), "a1 a2 b1 b2 c1 a3"),
        (Choice(surest_first=False), "a3 c1 b2 a2 b1 a1"),
        (Choice(true="A"), "a1 a2 a3"),
        (Choice(said="A"), "a1 b2 c1"),
        (Choice(true="A", said="B"), "a2 a3"),
        (Choice(outcome="wrong"), "a2 b2 c1 a3"),
        (Choice(outcome="right", low=0.85), "a1"),
        (Choice(low=0.5, high=0.8), "a2 b1 b2 c1"),
        (Choice(true="C<&>", said="B"), ""),
    ],
)
def test_what_is_selected(choice, videos):
    assert " ".join(explorer.select(TABLE, choice).video) == videos


def cells(html: str) -> dict[str, tuple[str, str]]:
    """What each entry says in words -> its text and its tag."""
    found = ElementTree.fromstring(f"<all>{html}</all>").iter()
    return {e.get("aria-label"): (e.text, e.tag) for e in found if e.get("aria-label")}


def test_the_matrix_says_in_words_what_it_counts():
    assert cells(matrix.html(TABLE, ["A", "B", "C<&>"])) == {
        "true A, said A: 1 video": ("1", "button"),
        "true A, said B: 2 videos": ("2", "button"),
        "true B, said A: 1 video": ("1", "button"),
        "true B, said B: 1 video": ("1", "button"),
        "true C<&>, said A: 1 video": ("1", "button"),
    }
    static = matrix.html(TABLE, ["A", "B", "C<&>"], tag="span")
    assert {tag for _, tag in cells(static).values()} == {"span"}


def test_of_many_classes_the_most_frequent_mistakes_are_listed():
    draw = np.random.default_rng(0)
    classes = [f"k{i}" for i in range(101)]
    table = pd.DataFrame(
        {"class_name": draw.choice(classes, 4000), "video_pred": draw.choice(classes[:9], 4000)}
    )
    counted = pd.crosstab(table.class_name, table.video_pred)
    best = sorted(-counted.loc[t, s] for t in counted.index for s in counted.columns if t != s)[
        : matrix.PAIRS
    ]
    shown = [int(text.rsplit(": ", 1)[1]) for text, _ in cells(matrix.html(table, classes)).values()]
    assert shown == [-n for n in best]


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.45, 0.5, 0.6, 0.8, 1])
def test_numbers_can_be_read_on_every_colour(share):
    """A contrast of at least 4.5 to 1, as WCAG 2 asks for."""
    back, text = re.fullmatch(r"background:#(\w{6});color:(black|white)", matrix.paint(share)).groups()
    parts = np.array([int(back[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    light = linear @ [0.2126, 0.7152, 0.0722] + 0.05
    assert (
        max(light, 1.05 if text == "white" else 0.05) / min(light, 1.05 if text == "white" else 0.05) >= 4.5
    )


@pytest.fixture
def made(tiny):
    """An explorer of three trained runs, two of them with the seed that is asked for."""
    for given in ({"method": "supervised"}, {"method": "sd"}, {"method": "sd", "seed": 1}):
        training.train(tiny(**given, eval_every=4))
    p = tiny(method="sd")
    asked = {"dataset": "tiny", "outputs": p.outputs, "label_pct": 50, "videos": 4}
    asked |= {"source": "demo", "methods": ["supervised", "sd", "videossl"]}
    data = prepare.prepare(p, with_teacher=False)
    return explorer.Explorer(params.load(params.FigureParams, **asked), data), p


def test_menus_and_matrix_show_the_videos_they_name(made):
    seen, p = made
    seen.widget()
    answers = {
        m: pd.read_csv(p.run_dir.parents[2] / m / "50/seed0/predictions_test.csv")
        for m in ("supervised", "sd")
    }
    table = answers["sd"]
    assert seen.menus["run"].options == ("SD, 50 %, seed 0", "SD, 50 %, seed 1", "Supervised, 50 %, seed 0")
    assert seen.menus["run"].value == "SD, 50 %, seed 0"  # videossl has not been trained

    drawn = []
    seen.film = lambda video, caption: drawn.append(video) or f"<p>{caption}</p>"
    counted = pd.crosstab(table.class_name, table.video_pred)
    buttons = re.findall(
        r'data-true="([^"]+)" data-said="([^"]+)" aria-label="[^"]+: (\d+) v', seen.matrix.html
    )
    assert {(t, s): int(n) for t, s, n in buttons} == {k: n for k, n in counted.stack().items() if n}
    for true, said, n in buttons:
        drawn.clear()
        seen.matrix._handle_custom_msg({"true": true, "said": said}, [])  # what the browser sends
        rows = table[(table.class_name == true) & (table.video_pred == said)]
        assert len(rows) == int(n)
        assert sorted(drawn) == sorted(rows.sort_values("video_confidence", ascending=False).video[:4])
        assert f"of {n}. " in seen.films.value
        assert (seen.menus["true"].value, seen.menus["said"].value) == (true, said)
    row = table.set_index("video").loc[drawn[0]]
    other = answers["supervised"].set_index("video").loc[drawn[0]]
    assert f"SD: {row.video_pred} ({row.video_confidence:.2f})" in seen.films.value
    assert f"{'✓' if other.video_right else '✗'} Supervised: {other.video_pred}" in seen.films.value

    drawn.clear()
    seen.all.click()
    assert f"Videos 1 to 4 of {len(table)}." in seen.films.value
    assert seen.back.disabled
    while not seen.on.disabled:
        seen.on.click()
    assert drawn == list(table.sort_values(["video_confidence", "video"], ascending=[False, True]).video)
    seen.menus["confidence"].value = (0.99, 1)
    assert "No test video fits" in seen.films.value
    assert seen.on.disabled


def test_another_run_brings_its_own_answers(made):
    seen, p = made
    seen.widget()
    before = seen.matrix.html
    seen.menus["run"].value = "SD, 50 %, seed 1"
    table = pd.read_csv(p.run_dir.parent / "seed1/predictions_test.csv")
    assert seen.matrix.html != before
    assert cells(seen.matrix.html).keys() == cells(matrix.html(table, seen.data.classes)).keys()
    assert list(seen.models) == ["sd"]  # the only method trained with this seed
    path = runs.Run(p.run_dir).predictions_test
    path.write_text(path.read_text().replace("clock", "klock"))
    seen.menus["run"].value = "SD, 50 %, seed 0"
    assert "tested on other videos" in seen.films.value


def test_the_page_without_a_kernel(made):
    seen, _ = made
    page = seen.static()
    assert page.count("<video") == min(4, int((~seen.table.video_right).sum()))
    assert "<button" not in page
