"""The explorer of qualitative.ipynb: what it selects, what the matrix counts, and what a click shows."""

import re
from xml.etree import ElementTree

import ipywidgets
import numpy as np
import pandas as pd
import pytest

from videossl_core import params, prepare, runs, training
from videossl_lab import explorer, figure5, matrix, notebook
from videossl_lab.explorer import Selection

TABLE = pd.DataFrame({"video": ["a1", "a2", "a3", "b1", "b2", "c1"]})
TABLE["class_name"] = ["A", "A", "A", "B", "B", "C<&>"]
TABLE["video_pred"] = ["A", "B", "B", "B", "A", "A"]
TABLE["video_confidence"] = [0.9, 0.8, 0.3, 0.8, 0.6, 0.5]
TABLE["video_right"] = TABLE.class_name == TABLE.video_pred


@pytest.mark.parametrize(
    ("selection", "videos"),
    [
        (Selection(), "a1 a2 b1 b2 c1 a3"),
        (Selection(surest_first=False), "a3 c1 b2 a2 b1 a1"),
        (Selection(true="A"), "a1 a2 a3"),
        (Selection(predicted="A"), "a1 b2 c1"),
        (Selection(true="A", predicted="B"), "a2 a3"),
        (Selection(outcome="wrong"), "a2 b2 c1 a3"),
        (Selection(outcome="right", confidence=(0.85, 1)), "a1"),
        (Selection(confidence=(0.5, 0.8)), "a2 b1 b2 c1"),
        (Selection(true="C<&>", predicted="B"), ""),
    ],
)
def test_select(selection, videos):
    assert " ".join(explorer.select(TABLE, selection).video) == videos


def test_figure5_cycles_through_classes():
    """Figure 5: right by the last model, wrong by the first; the other models do not matter."""
    last = pd.DataFrame({"video": ["a1", "a2", "b1", "b2", "c1"], "class_name": [*"AABBC"]})
    last = last.assign(video_confidence=[0.9, 0.8, 0.5, 0.4, 0.7], video_right=True)
    first = last.assign(video_right=last.video == "b2")
    models = {"supervised": first, "sd": first, "videossl": last}
    assert list(figure5.pick_videos(models, 4).video) == ["a1", "c1", "b1", "a2"]
    assert figure5.pick_videos({"videossl": last}, 4).empty


def entries(html: str) -> dict[str, tuple[str, str]]:
    """Each entry's description in words -> its text and its tag."""
    elements = ElementTree.fromstring(f"<all>{html}</all>").iter()
    return {e.get("aria-label"): (e.text, e.tag) for e in elements if e.get("aria-label")}


def test_matrix_in_words():
    """Every entry says what it counts; on a page that nobody can press it is no button."""
    ones = [("A", "A"), ("B", "A"), ("B", "B"), ("C<&>", "A")]
    for tag in ("button", "span"):
        expected = {f"true {t}, predicted {p}: 1 video": ("1", tag) for t, p in ones}
        expected["true A, predicted B: 2 videos"] = ("2", tag)
        assert entries(matrix.html(TABLE, ["A", "B", "C<&>"], tag=tag)) == expected


def test_matrix_of_many_classes():
    """It lists the most frequent mistakes."""
    rng = np.random.default_rng(0)
    classes = [f"k{i}" for i in range(101)]
    draws = {"class_name": rng.choice(classes, 4000), "video_pred": rng.choice(classes[:9], 4000)}
    table = pd.DataFrame(draws)
    counts = pd.crosstab(table.class_name, table.video_pred)
    wrong = sorted((counts.loc[t, s] for t in counts.index for s in counts.columns if t != s), reverse=True)
    shown = [int(text.rsplit(": ", 1)[1]) for text, _ in entries(matrix.html(table, classes)).values()]
    assert shown == wrong[: matrix.PAIRS]


def test_numbers_readable_on_every_colour():
    """A contrast of at least 4.5 to 1, as WCAG 2 demands."""
    for share in np.linspace(0, 1, 501):
        back, text = re.fullmatch(r"background:#(\w{6});color:(black|white)", matrix.paint(share)).groups()
        parts = np.array([int(back[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        luminances = [linear @ [0.2126, 0.7152, 0.0722] + 0.05, 1.05 if text == "white" else 0.05]
        assert max(luminances) / min(luminances) >= 4.5, share


class Seen:
    """What a user sees of the explorer, and finds by its name."""

    def __init__(self, widget: ipywidgets.Widget):
        parts = [widget]
        for part in parts:
            parts += getattr(part, "children", ())
        self.menus = {p.description: p for p in parts if hasattr(p, "value") and hasattr(p, "description")}
        self.buttons = {p.description: p for p in parts if isinstance(p, ipywidgets.Button)}
        (self.matrix,) = (p for p in parts if isinstance(p, matrix.Matrix))
        (self.films,) = (p for p in parts if isinstance(p, ipywidgets.HTML))

    def press(self, true: str, predicted: str) -> None:
        self.matrix._handle_custom_msg({"true": true, "predicted": predicted}, [])  # what the browser sends

    def videos(self) -> list[str]:
        return re.findall(r'<figcaption[^>]*><b title="([^"]+)">', self.films.value)


@pytest.fixture
def run(tiny) -> explorer.Run:
    """One of three trained runs, of which two have its seed."""
    for given in ({"method": "supervised"}, {"method": "sd"}, {"method": "sd", "seed": 1}):
        training.train(tiny(**given, eval_every=4))
    p = tiny(method="sd")
    which = {"dataset": "tiny", "outputs": p.outputs, "label_pct": 50, "method": "sd", "shown": 4}
    which["methods"] = ["supervised", "sd", "videossl"]
    return explorer.Run(params.load(notebook.FigureParams, **which), prepare.prepare(p, with_teacher=False))


@pytest.mark.slow
def test_menus_and_matrix(run):
    folder = run.p.run_dir.parents[2]
    tables = {m: pd.read_csv(folder / m / "50/seed0/predictions_test.csv") for m in ("supervised", "sd")}
    table = tables["sd"]
    seen = Seen(explorer.build(run))
    assert seen.menus["run"].options == ("SD, 50 %, seed 0", "SD, 50 %, seed 1", "Supervised, 50 %, seed 0")
    assert seen.menus["run"].value == "SD, 50 %, seed 0"

    entry = r'data-true="([^"]+)" data-predicted="([^"]+)" aria-label="[^"]+: (\d+) v'
    buttons = re.findall(entry, seen.matrix.html)
    counts = pd.crosstab(table.class_name, table.video_pred).stack()
    assert {(t, s): int(n) for t, s, n in buttons} == counts[counts > 0].to_dict()
    for true, predicted, n in buttons:
        seen.press(true, predicted)
        rows = table[(table.class_name == true) & (table.video_pred == predicted)]
        assert len(rows) == int(n)
        rows = rows.sort_values(["video_confidence", "video"], ascending=[False, True])
        assert seen.videos() == list(rows.video[:4])
        assert f"of {n}. " in seen.films.value
        assert (seen.menus["true class"].value, seen.menus["predicted class"].value) == (true, predicted)
    row, other = (tables[m].set_index("video").loc[seen.videos()[0]] for m in ("sd", "supervised"))
    assert f"SD: {row.video_pred} ({row.video_confidence:.2f})" in seen.films.value
    assert f"{'✓' if other.video_right else '✗'} Supervised: {other.video_pred}" in seen.films.value

    seen.buttons["show all"].click()
    assert f"Videos 1 to 4 of {len(table)}." in seen.films.value
    assert seen.buttons["← previous"].disabled
    pages = [seen.videos()]
    while not seen.buttons["next →"].disabled:
        seen.buttons["next →"].click()
        pages.append(seen.videos())
    surest = table.sort_values(["video_confidence", "video"], ascending=[False, True])
    assert [video for page in pages for video in page] == list(surest.video)
    seen.buttons["← previous"].click()
    assert seen.videos() == pages[-2]
    seen.menus["confidence"].value = (0.99, 1)
    assert "No test video fits" in seen.films.value
    assert seen.buttons["next →"].disabled

    page = run.static()  # without a kernel
    assert page.count("<video") == min(4, int((~run.table.video_right).sum()))
    assert "<button" not in page


@pytest.mark.slow
def test_another_run(run):
    seen = Seen(explorer.build(run))
    seen.menus["run"].value = "SD, 50 %, seed 1"
    table = pd.read_csv(run.p.run_dir.parent / "seed1/predictions_test.csv")
    assert entries(seen.matrix.html).keys() == entries(matrix.html(table, run.data.classes)).keys()
    assert seen.matrix.html != run.matrix()
    assert "Supervised" not in seen.films.value  # sd is the only method trained with this seed
    path = runs.Run(run.p.run_dir).predictions_test
    path.write_text(path.read_text().replace("clock", "klock"))
    seen.menus["run"].value = "SD, 50 %, seed 0"
    assert "tested on other videos" in seen.films.value
