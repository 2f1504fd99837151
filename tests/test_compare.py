"""Intervals against classical ones and by simulation; claims and pairs on runs whose truth is known."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from videossl_core import runs
from videossl_lab import claims, paper, results

CLASSES = ["Archery", "Surfing"]


def test_seeds_that_agree_and_unrelated_videos_give_students_variance_over_videos():
    values = np.random.default_rng(0).choice([-1.0, 0, 0, 1], 60)
    mean, low, high = claims.interval(np.tile(values, (61, 1)), np.arange(60), np.arange(61))
    truth = stats.ttest_1samp(values, 0).confidence_interval(0.95)  # 59 degrees of freedom
    assert (mean, low, high) == pytest.approx((values.mean(), truth.low, truth.high), rel=0.02)


def test_seeds_that_differ_alike_on_all_videos_give_students_interval_over_seeds():
    points = np.array([1.0, 4.0, 6.0])
    truth = stats.ttest_1samp(points, 0).confidence_interval(0.95)
    alone = claims.interval(np.repeat(points[:, None], 50, 1), np.arange(50), np.arange(3))
    assert alone == pytest.approx((11 / 3, truth.low, truth.high))
    fractions = np.repeat(np.repeat(points, 4)[:, None], 50, 1)  # four label fractions a seed tell no more
    assert claims.interval(fractions, np.arange(50), np.repeat(range(3), 4)) == pytest.approx(alone)


def test_videos_of_one_source_count_as_one():
    values, seeds = np.random.default_rng(0).choice([-1.0, 0, 1], (2, 40)), np.arange(2)
    alone = claims.interval(values, np.arange(40), seeds)
    copied = claims.interval(np.repeat(values, 5, 1), np.repeat(np.arange(40), 5), seeds)
    assert copied == pytest.approx(alone)


def test_a_pair_that_was_not_tested_on_a_video_says_nothing_of_it():
    values = np.array([[1.0, 0, 1, np.nan], [np.nan, 1, 0, 1]])
    assert claims.interval(values, np.arange(4), np.arange(2))[0] == pytest.approx(4 / 6)


def test_each_seed_counts_the_same():
    values = np.array([[1.0, 1], [1, 1], [1, 1], [0, 0]])
    assert claims.interval(values, np.arange(2), np.array([0, 0, 0, 1]))[0] == pytest.approx(1 / 2)


def test_one_seed_or_one_source_has_no_interval():
    values = np.array([[1.0, 0, 1, 1], [0, 1, 0, 1]])
    for sources, seeds in ((np.arange(4), [7, 7]), (np.zeros(4), [0, 1])):
        mean, *ends = claims.interval(values, sources, np.array(seeds))
        assert mean == 5 / 8
        assert np.isnan(ends).all()
    assert str(claims.Difference(8.88, np.nan, np.nan, pairs=2, seeds=1)) == "+8.9 (one seed)"


@pytest.mark.parametrize("by_source", [0, 8])
@pytest.mark.parametrize("by_pair", [0, 3])
@pytest.mark.parametrize("by_seed", [0, 3])
@pytest.mark.parametrize("seeds", [[0, 1, 2], [*range(3)] * 6, [0] * 7 + [1, 2]], ids=["3", "18", "9"])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds, by_seed, by_pair, by_source):
    """Also where runs of one seed have more in common than those of two, and one seed has most of them."""
    rng, sources, seeds = np.random.default_rng(1), np.repeat(np.arange(42), 5), np.array(seeds)
    covered = []
    for _ in range(300):
        values = by_seed * rng.standard_normal(3)[seeds, None] + by_pair * rng.standard_normal(
            (len(seeds), 1)
        )
        values = 2 + values + by_source * rng.standard_normal(42)[sources]
        values = values + 30 * rng.standard_normal((len(seeds), 210))
        _, low, high = claims.interval(values, sources, seeds)
        covered.append(low <= 2 <= high)
    assert np.mean(covered) > 0.93


@pytest.mark.parametrize(
    ("video", "source"),
    [
        ("Archery/v_Archery_g03_c05.avi", "v_Archery_g03"),
        ("a/birds_g03.mp4", "a/birds_g03.mp4"),
        ("test/clock falls/7.mp4", "test/clock falls/7.mp4"),
    ],
)
def test_what_a_video_was_cut_from(video, source):
    assert claims.source_of(video) == source


def made_up(
    share: dict[tuple[str, str], float], fractions=(1, 10), seeds=(0, 1, 2), videos=200
) -> claims.Runs:
    """Runs whose share of right answers is given by method and variant."""
    rng = np.random.default_rng(3)
    names = [f"{c}/v_{c}_g{i // 4:02d}_c{i % 4:02d}.avi" for c in CLASSES for i in range(videos // 2)]
    truth = pd.Series([name.split("/")[0] for name in names], index=names)
    rows, said = [], {"class_name": truth}
    for (method, variant), pct, seed in itertools.product(share, fractions, seeds):
        row = {"method": method, "variant": variant, "split": 1, "label_pct": pct, "seed": seed}
        row |= {"split_sha256": f"{variant if variant == 'uniform' else ''} {pct} {seed}", "settings": "s"}
        rows.append(row | {"video_top1": 100 * share[method, variant]})
        right = rng.random(videos) < share[method, variant]
        name = f"{method}{'@' + variant if variant else ''}/{pct:g}/seed{seed}"
        said[name] = truth.where(right, "neither")
    return claims.Runs(pd.DataFrame(rows), pd.DataFrame(said))


def test_claims_are_judged_by_their_intervals():
    of = {"supervised": 0.5, "sd": 0.8, "videossl": 0.8, "pseudo_label": 0.2, "mt_sd": 0.95}
    table = claims.claims(made_up({(m, ""): s for m, s in of.items()})).set_index("claim")
    says = table.here.rename(lambda text: text.split(": ")[-1])
    assert says["SD over supervised"] == "holds"
    assert says["VideoSSL over SD"] == "not shown"
    assert says["SD over supervised, less VideoSSL over SD"] == "holds"
    assert says["PL over supervised"] == "holds: it is worse"
    assert says["VideoSSL over PL"] == "holds"
    assert says["VideoSSL over MT with distillation"] == "contradicted"
    assert says["VideoSSL over S4L"] == "not run"
    assert claims["points (95 %)"].iloc[0].points == pytest.approx(30, abs=4)
    assert claims["points (95 %)"].iloc[2].points == pytest.approx(30, abs=6)
    assert (claims.pairs.iloc[0], claims.seeds.iloc[0]) == (6, 3)  # two fractions
    assert claims.loc["VideoSSL over S4L", "points (95 %)"] == "–"
    classes = claims.filter(like="Most classes", axis=0).iloc[0]
    assert classes["points (95 %)"].startswith(
        "2 of 2 classes gain; gaining less losing ones in a seed, %: +100.0"
    )
    assert classes.here == "holds"
    same = claims.claims(made_up({("supervised", ""): 0.5, ("videossl", ""): 0.51}))
    assert same.here.iloc[-1] == "not shown"  # a class more or less is chance


def test_most_classes_improve_where_few_show_it_by_themselves():
    """The paper's case, smaller: nearly all of many classes gain, by less than one class's own interval."""
    rng = np.random.default_rng(5)
    names = [f"c{c:02d}/v_c{c:02d}_g{i // 4:02d}_c{i % 4:02d}.avi" for c in range(50) for i in range(20)]
    truth = pd.Series([name.split("/")[0] for name in names], index=names)
    row = {"variant": "", "split": 1, "label_pct": 10, "split_sha256": "x", "settings": ""}

    def verdict(share: float) -> pd.Series:
        rows, said = [], {"class_name": truth}
        for method, seed in itertools.product(("supervised", "videossl"), range(3)):
            rows.append(row | {"method": method, "seed": seed})
            right = rng.random(len(truth)) < (share if method == "videossl" else 0.3)
            said[f"{method}/10/seed{seed}"] = truth.where(right, "neither")
        return claims.claims(claims.Runs(pd.DataFrame(rows), pd.DataFrame(said))).iloc[-1]

    assert verdict(0.45).here == "holds"
    assert verdict(0.3).here == "not shown"
    assert verdict(0.15).here == "contradicted"
    assert re.match(r"\d+ of 50 classes gain; .*\+\d+\.\d \(\+", str(verdict(0.45)["points (95 %)"]))


def test_runs_with_other_settings_are_no_evidence_for_a_claim():
    of = {("supervised", ""): 0.5, ("sd", ""): 0.8, ("supervised", "lr"): 0.5, ("sd", "lr"): 0.1}
    made = made_up(of)
    made.results.loc[made.results.variant == "lr", "settings"] = "another learning rate"
    assert claims.claims(made).iloc[0].here == "holds"
    assert claims.claims(made).iloc[0].pairs == 6
    made.results["settings"] = "s"  # another draw, say
    assert claims.claims(made).iloc[0].pairs == 12


def test_one_seed_shows_nothing():
    table = claims.claims(made_up({("supervised", ""): 0.3, ("sd", ""): 0.9}, seeds=[0]))
    first = table.iloc[0]
    assert re.fullmatch(r"\+\d\d\.\d \(one seed\)", str(first["points (95 %)"]))
    assert first.here == "not shown"
    figure = paper.intervals(
        made_up({("supervised", ""): 0.3, ("sd", ""): 0.9}, seeds=[0]).gains()["1 %"], "x"
    )
    assert "(one seed)" in figure.alt


def test_other_labels_or_lengths_make_no_pair():
    made = made_up({("supervised", ""): 0.5, ("sd", ""): 0.8, ("videossl", ""): 0.8})
    made.results.loc[made.results.method == "sd", "settings"] = "other"
    mine = (made.results.method == "videossl") & (made.results.seed == 0)
    made.results.loc[mine, "split_sha256"] = "another draw"
    assert made.pairs("sd", "supervised").empty
    assert len(made.pairs("videossl", "supervised")) == 4


def test_the_gain_that_shrinks_is_taken_seed_by_seed():
    made = made_up({("supervised", ""): 0.5, ("videossl", ""): 0.8})
    few = made.right.columns[made.right.columns.str.startswith("videossl/1/")]
    made.right[few] = 1.0  # all right at the fewest labels
    shrinks = claims.claims(made).set_index("claim").filter(like="at 1 % less at 10 %", axis=0).iloc[0]
    assert shrinks.here == "holds"
    assert shrinks.pairs == 3
    assert shrinks["points (95 %)"].points == pytest.approx(20, abs=5)
    papers = made_up({("supervised", ""): 0.5, ("videossl", ""): 0.8}, fractions=(1, 5, 10, 50))
    assert papers.ends() == (5, 50)


def test_variants_are_paired_with_the_run_they_change():
    share = {
        ("supervised", ""): 0.5,
        ("videossl", ""): 0.7,
        ("videossl", "T1"): 0.9,
        ("supervised", "uniform"): 0.2,
        ("videossl", "uniform"): 0.6,
        ("supervised", "authors"): 0.1,
    }
    made = made_up(share)
    table = made.variants()
    assert list(table.index) == ["T1", "uniform"]  # another method's variants are not VideoSSL's
    assert table.seeds["T1"] == 3
    assert table["against VideoSSL"]["T1"].points == pytest.approx(20, abs=4)
    assert table["against supervised"]["T1"].points == pytest.approx(40, abs=4)
    assert table["against VideoSSL"]["uniform"].points == pytest.approx(-10, abs=5)
    assert table["against supervised"]["uniform"].points == pytest.approx(40, abs=5)  # with the same labels
    assert len(made.pairs("videossl", "supervised")) == 12  # T1 has no supervised run beside it
    gains = made.gains()
    assert list(gains.columns) == ["1 %", "10 %"]
    assert gains.loc["VideoSSL", "10 %"].pairs == 3  # variants are not in it


def test_published_runs_stand_in_for_those_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "reference")
    columns = ["dataset", "method", "variant", "label_pct", "split", "seed", "video_top1"]
    rows = [("x", "sd", "", 10.0, 1, 0, 100.0), ("x", "sd", "T1", 10.0, 1, 0, 0.0)]
    (tmp_path / "reference/x").mkdir(parents=True)
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "reference/x/results.csv", index=False)
    said = pd.DataFrame({"class_name": ["a", "b"], "sd/10/seed0": ["a", "b"], "sd@T1/10/seed0": ["b", "a"]})
    said.index = pd.Index(["a/1.avi", "b/1.avi"], name="video")
    said.to_csv(tmp_path / "reference/x/answers.csv")
    (tmp_path / "reference/demo").mkdir()  # results alone do not count
    (tmp_path / "reference/demo/results.csv").write_text("dataset,method\ndemo,sd\n")

    (tmp_path / "own").mkdir()
    own = pd.DataFrame({"video": said.index, "class_name": said.class_name.values, "video_pred": ["b", "b"]})
    own.to_csv(tmp_path / "own/predictions_test.csv", index=False)
    found = pd.DataFrame([[*rows[0][:-1], 50.0, str(tmp_path / "own")]], columns=[*columns, "folder"])
    every = results.add_published(found)
    assert list(zip(every.variant, every.video_top1, strict=True)) == [("", 50.0), ("T1", 0.0)]
    answers = results.answers(every)
    assert list(answers["sd/10/seed0"]) == ["b", "b"]  # one's own, not the published one
    assert list(answers["sd@T1/10/seed0"]) == ["b", "a"]
    assert list(results.add_published(found.head(0)).video_top1) == [100.0, 0.0]


def test_names_of_classes_are_text_whatever_they_are(tmp_path, monkeypatch):
    """A folder of one's own may well have the class "None", "NA" or "1"."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "reference")
    names, said = ["None", "NA", "1", "02"], ["None", "1", "1", "02"]
    own = pd.DataFrame({"video": [f"{n}.avi" for n in names], "class_name": names, "video_pred": said})
    for folder in ("own", "reference/names"):
        (tmp_path / folder).mkdir(parents=True)
    path = tmp_path / "own/predictions_test.csv"
    own.assign(video_right=own.class_name == own.video_pred).to_csv(path, index=False)
    assert list(runs.read_table(path).video_right) == [True, False, True, True]
    theirs = own.rename(columns={"video_pred": "sd/10/seed1"}).assign(**{"sd/10/seed2": ["", "", "1", "1"]})
    theirs.to_csv(tmp_path / "reference/names/answers.csv", index=False)
    row = {"dataset": "names", "method": "sd", "variant": "", "label_pct": 10, "split": 1, "settings": ""}
    rows = [row | {"seed": seed, "folder": str(path.parent) if seed == 0 else ""} for seed in range(3)]
    found = pd.DataFrame(rows)
    right = claims.Runs(found, results.answers(found)).right.loc[list(own.video)]
    assert right["sd/10/seed0"].to_list() == [1, 0, 1, 1]
    assert right["sd/10/seed1"].to_list() == [1, 0, 1, 1]
    assert right["sd/10/seed2"].isna().to_list() == [True, True, False, False]  # "": not tested


def test_figure_6_is_of_the_seeds_that_both_have_here_or_published(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    columns = ["dataset", "method", "variant", "label_pct", "seed", "folder"]
    every = [("x", "videossl", "", 10.0, 0, ""), ("x", "supervised", "", 10.0, 0, "")]
    found = pd.DataFrame(every, columns=columns)
    assert claims.improved(results.by_class(found), 10).empty  # published without their classes
    results._side_by_side.cache_clear()
    (tmp_path / "x").mkdir()
    (tmp_path / "x/classes.csv").write_text(
        "class_name,supervised/10/seed0,videossl/10/seed0\na,50,40.0\nb,20,50.0\nc,30,30.0\n"
    )
    mine = {"videossl": (90, 50, 30), "supervised": (40, 50, 50)}
    for seed, methods in ((1, ("videossl", "supervised")), (2, ("videossl",)), (3, ())):
        for method in methods:
            folder = tmp_path / method / str(seed)
            folder.mkdir(parents=True)
            table = pd.DataFrame({"label": range(3), "class_name": [*"abc"], "clip_top1": mine[method]})
            table.to_csv(folder / "per_class.csv", index=False)
            every.append(("x", method, "", 10.0, seed, str(folder)))
    every.append(("x", "videossl", "T1", 10.0, 1, str(tmp_path / "videossl/2")))
    classes = results.by_class(pd.DataFrame(every, columns=columns))
    assert list(classes) == [
        results.run_name(row) for row in pd.DataFrame(every, columns=columns).itertuples()
    ]
    gain = claims.improved(classes, 10)
    assert gain.to_dict() == {"a": 20.0, "b": 15.0, "c": -10.0}  # of seeds 0 and 1
    assert list(gain.index) == ["a", "b", "c"]
    assert claims.improved(classes, 1).empty


def test_what_is_published_of_six_classes():
    """Every run's video_top1 follows from what it is said to have said."""
    of = results.FOLDER / "ucf101_6"
    results = pd.read_csv(of / "results.csv", keep_default_na=False)
    said = pd.read_csv(of / "answers.csv", index_col="video")
    runs = claims.Runs(results, said)
    assert set(said.columns) == {"class_name", *map(results.run_name, results.itertuples())}
    for row in results.itertuples():
        assert 100 * runs.right[results.run_name(row)].mean() == pytest.approx(row.video_top1, abs=0.006)
    assert results.duplicated(["method", "variant", "label_pct", "seed"]).sum() == 0
    drawn = ["split", "label_draw", "label_pct", "seed"]
    assert (results.groupby(drawn).split_sha256.nunique() == 1).all()  # the same labels for every method


def test_figure_6_names_the_five_best_of_many_classes():
    gain = pd.Series(np.arange(20.0, -81, -1), index=[f"Class{i}" for i in range(101)])
    figure = paper.figure6(gain)
    text = " ".join(t.get_text() for t in figure.axes[0].texts)
    assert "Class4 +16.0" in text
    assert "Class5" not in text
    assert "20 % of the classes improve" in figure.get_suptitle()
    assert "Class100 -80.0" in figure.alt
