"""Label splits: properties of the draws, and errors in label lists."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videossl_core import params
from videossl_core.data import datasets, splits
from videossl_core.data.splits import SplitError


def index_of(sizes: list[int]) -> datasets.Index:
    classes = [f"c{k}" for k in range(len(sizes))]
    train = [(f"{c}/v{i:03d}.avi", c, "train") for c, n in zip(classes, sizes, strict=True) for i in range(n)]
    test = [(f"{c}/t.avi", c, "test") for c in classes]
    table = pd.DataFrame(sorted(train + test), columns=["video", "class_name", "split"])
    table["label"] = table.class_name.map(classes.index)
    return datasets.Index(Path(), table, classes, classes)


def split_of(index: datasets.Index, **given) -> pd.DataFrame:
    return splits.make_split(params.load(**given), index)


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(sizes, st.floats(0.5, 100), st.sampled_from(sorted(set(splits.DRAWS) - {"list"})), st.integers(0, 3))
def test_draw(sizes, pct, draw, seed):
    """A partition, of the right size, the same again for the same seed."""
    index = index_of(sizes)
    split = split_of(index, label_pct=pct, label_draw=draw, seed=seed)
    assert list(split.video) == list(index.table.video)
    assert (split.role == "test").sum() == len(sizes)
    labelled = split[split.role == "labelled"].groupby("class_name").size()
    if draw == "stratified":
        expected = [max(1, int(n * pct / 100 + 1e-9)) for n in sizes]
        assert [labelled[f"c{k}"] for k in range(len(sizes))] == expected
    elif draw == "uniform":
        assert labelled.sum() == max(1, int(sum(sizes) * pct / 100 + 1e-9))
    assert 1 <= labelled.sum() <= sum(sizes)
    again = split_of(index, label_pct=pct, label_draw=draw, seed=seed)
    assert splits.split_hash(again) == splits.split_hash(split)


@settings(max_examples=20, deadline=None)
@given(sizes, st.floats(1, 99), st.integers(0, 3))
def test_validation(sizes, pct, seed):
    """Labelled videos of the same draw, of each class the rounded share; one stays, nothing else changes."""
    index = index_of(sizes)
    usual, split = (split_of(index, label_pct=60, seed=seed, val_pct=val) for val in (0, pct))
    held_out = split.role == "val"
    assert (usual.role[held_out] == "labelled").all()
    assert (split.role[~held_out] == usual.role[~held_out]).all()
    for name, labelled in usual[usual.role == "labelled"].groupby("class_name"):
        count = (split.role[labelled.index] == "val").sum()
        assert count == min(len(labelled) - 1, round(len(labelled) * pct / 100)), name


@settings(max_examples=20, deadline=None)
@given(sizes, st.floats(1, 99))
def test_tuning_on_any_data_set(sizes, pct):
    """The test videos are left out; of each class int(p %) of the others, the last, take their place."""
    index = index_of(sizes)
    split = split_of(index, tune=True, test_pct=pct)
    assert set(split.video) == set(index.table.video[index.table.split == "train"])
    for name, count in zip(index.classes, sizes, strict=True):
        roles = split.role[split.class_name == name]
        held_out = min(count - 1, max(1, int(count * pct / 100 + 1e-9)))
        assert list(roles == "test") == [False] * (count - held_out) + [True] * held_out


def test_validation_keeps_sources_together():
    """Of groups of UCF101 all labelled videos train, or none does; one too large to fit is left."""
    groups = [("g01", 2), ("g02", 2), ("g03", 2), ("g04", 6)]
    videos = [f"A/v_A_{group}_c{n:02d}.avi" for group, count in groups for n in range(count)]
    table = pd.DataFrame({"video": [*videos, "A/t.avi"], "class_name": "A", "label": 0})
    table["split"] = ["train"] * 12 + ["test"]
    index = datasets.Index(Path(), table, ["A"], ["A"])
    for seed in range(5):
        split = split_of(index, label_pct=100, val_pct=34, seed=seed)
        roles = split[split.role != "test"].groupby(split.video.map(splits.source_of)).role
        assert (roles.nunique() == 1).all()
        assert (split.role == "val").sum() == 4
        assert roles.first()["v_A_g04"] == "labelled"


def test_split_survives_its_file():
    """And its hash, which another seed's draw does not share."""
    split = split_of(index_of([40, 40]))
    again = splits.from_csv(splits.to_csv(split))
    pd.testing.assert_frame_equal(again, split.reset_index(drop=True), check_dtype=False)
    assert splits.split_hash(again) == splits.split_hash(split)
    assert splits.split_hash(split_of(index_of([40, 40]), seed=1)) != splits.split_hash(split)


@pytest.fixture
def listed(tmp_path):
    def make(text: str, index=None, **given):
        (tmp_path / "labels.lst").write_text(text, newline="")
        given |= {"label_draw": "list", "label_list": tmp_path / "labels.lst"}
        return split_of(index or index_of([3, 3]), **given)

    return make


@pytest.mark.parametrize("base", [0, 1])
def test_ids_from_zero_or_one(listed, base):
    split = listed(f"Train/c0/v001.mp4*{base}\r\nc1/v002.avi*{base + 1}\r\n\r\n")  # other folder and suffix
    assert list(split.video[split.role == "labelled"]) == ["c0/v001.avi", "c1/v002.avi"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c0/v000.avi*0\nc0/v001.avi\n", r"labels.lst line 2: 'c0/v001.avi' is not 'path\*label'"),
        ("c0/v000.avi*0\nc0/v001.avi*x\n", "line 2: .*is not 'path"),
        ("c0/v000.avi*0\n*1\n", "line 2: .*is not 'path"),
        ("c0/v000.avi*0\nc1/v001.avi*1c1/v002.avi*1\n", "line 2: .*is not a training video"),  # joined lines
        ("c0/v000.avi*0\nc0/v001.avi*3\n", "line 2: label 3 is outside 2 classes"),
        ("c0/v000.avi*0\nc0/v001.avi*0\nc1/v001.avi*0\n", "line 3: label 0, but c1 is 1 elsewhere"),
        ("c0/v000.avi*0\nc0/v000.avi*0\n", "line 2: .*stands in line 1 too"),
        ("c0/t.avi*0\n", "line 1: 'c0/t.avi' is not a training video"),
        ("c9/v000.avi*0\n", "line 1: .*is not a training video"),
        ("\n\n", "no labelled video"),
    ],
)
def test_wrong_line_named(listed, text, message):
    with pytest.raises(SplitError, match=message):
        listed(text)


def test_list_with_missing_videos(listed):
    """A copy may lack max_reject_pct of a list's videos; where official lists say which exist, none."""
    text, index = "".join(f"c0/v{i:03d}.avi*0\n" for i in range(19)), index_of([19])
    whole = listed(text, index)
    text += "c0/gone.avi*0"
    with pytest.warns(UserWarning, match=r"line 20: 'c0/gone.avi' is not .* \(1 of 20 such lines\)"):
        pd.testing.assert_frame_equal(listed(text, index), whole)
    with pytest.raises(SplitError, match=r"1 of 20 such lines\); max_reject_pct is how many may"):
        listed(text, index, max_reject_pct=4)
    with pytest.raises(SplitError, match=r"1 of 20 such lines\); label_draw"):
        listed(text, index, lists=Path("lists"))


def test_stars_in_names(listed):
    index = index_of([2])
    index.table.loc[index.table.video == "c0/v001.avi", "video"] = "c0/a*5*b.avi"
    split = listed("c0/a*5*b.avi*0\n", index)
    assert list(split.video[split.role == "labelled"]) == ["c0/a*5*b.avi"]


def test_unreadable_lists(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file.*gone.lst"):
        split_of(index_of([2]), label_draw="list", label_list=tmp_path / "gone.lst")
    (tmp_path / "video.lst").write_bytes(b"\x80\x01")
    with pytest.raises(ValueError, match=r"video.lst: not a text file"):
        split_of(index_of([2]), label_draw="list", label_list=tmp_path / "video.lst")
    with pytest.raises(SplitError, match=r"ssl_sub1c_10p_labeled0.lst: no such file"):
        split_of(index_of([2]), label_draw="list", label_list=tmp_path, label_pct=10)


def test_classes_without_label():
    split = split_of(index_of([20, 1]), label_draw="uniform", label_pct=5, seed=0)
    assert set(split.class_name[split.role == "labelled"]) == {"c0"}
    with pytest.warns(UserWarning, match="no labelled video of c1"):
        splits.warn_without_label(split, ["c0", "c1"])
    splits.warn_without_label(split_of(index_of([20, 1])), ["c0", "c1"])  # a warning would be an error
