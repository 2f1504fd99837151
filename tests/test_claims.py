"""Intervals against classical ones and by simulation; claims and pairs on made-up runs."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from videossl_core import params, runs
from videossl_core.data.splits import source_of
from videossl_core.params import WhichRun
from videossl_lab import claims, paper, plots, results

CLASSES = ["Archery", "Surfing"]


def test_interval_over_videos():
    """Seeds that agree and unrelated videos give Student's interval over the videos."""
    values = np.random.default_rng(0).choice([-1.0, 0, 0, 1], 60)
    mean, low, high = claims.interval(np.tile(values, (61, 1)), np.arange(60), np.arange(61))
    truth = stats.ttest_1samp(values, 0).confidence_interval(0.95)  # 59 degrees of freedom
    assert (mean, low, high) == pytest.approx((values.mean(), truth.low, truth.high), rel=0.02)


def test_interval_over_seeds():
    """Seeds that differ alike on all videos give Student's interval over the seeds."""
    points = np.array([1.0, 4.0, 6.0])
    truth = stats.ttest_1samp(points, 0).confidence_interval(0.95)
    alone = claims.interval(np.repeat(points[:, None], 50, 1), np.arange(50), np.arange(3))
    assert alone == pytest.approx((11 / 3, truth.low, truth.high))
    fractions = np.repeat(np.repeat(points, 4)[:, None], 50, 1)  # four label fractions a seed tell no more
    assert claims.interval(fractions, np.arange(50), np.repeat(range(3), 4)) == pytest.approx(alone)


def test_interval_videos_of_one_source():
    """They count as one video."""
    values, seeds = np.random.default_rng(0).choice([-1.0, 0, 1], (2, 40)), np.arange(2)
    alone = claims.interval(values, np.arange(40), seeds)
    copied = claims.interval(np.repeat(values, 5, 1), np.repeat(np.arange(40), 5), seeds)
    assert copied == pytest.approx(alone)


def test_interval_mean():
    """A pair that was not tested on a video has no part in that video's difference; seeds weigh equally."""
    values = np.array([[1.0, 0, 1, np.nan], [np.nan, 1, 0, 1]])
    assert claims.interval(values, np.arange(4), np.arange(2))[0] == pytest.approx(4 / 6)
    values = np.array([[1.0, 1], [1, 1], [1, 1], [0, 0]])
    assert claims.interval(values, np.arange(2), np.array([0, 0, 0, 1]))[0] == pytest.approx(1 / 2)


def test_interval_single_seed_or_source_is_nan():
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
def test_interval_coverage(seeds, by_seed, by_pair, by_source):
    """Also where runs of one seed have more in common than those of two, and one seed has most of them."""
    rng, sources, seeds = np.random.default_rng(1), np.repeat(np.arange(42), 5), np.array(seeds)
    covered = []
    for _ in range(300):
        values = 2 + by_seed * rng.standard_normal(3)[seeds, None]
        values = values + by_pair * rng.standard_normal((len(seeds), 1))
        values = values + by_source * rng.standard_normal(42)[sources]
        values = values + 30 * rng.standard_normal((len(seeds), 210))
        _, low, high = claims.interval(values, sources, seeds)
        covered.append(low <= 2 <= high)
    assert np.mean(covered) > 0.93


def test_source_of():
    assert source_of("Archery/v_Archery_g03_c05.avi") == "v_Archery_g03"
    for video in ("a/birds_g03.mp4", "test/clock falls/7.mp4"):
        assert source_of(video) == video


def made_up(share: dict, fractions=(1, 10), seeds=(0, 1, 2), classes=CLASSES, per_class=100) -> claims.Runs:
    """Runs whose share of right answers is given by method and variant."""
    rng = np.random.default_rng(3)
    names = [f"{c}/v_{c}_g{i // 4:02d}_c{i % 4:02d}.avi" for c in classes for i in range(per_class)]
    truth = pd.Series([name.split("/")[0] for name in names], index=names)
    rows, predicted = [], {"class_name": truth}
    for (method, variant), pct, seed in itertools.product(share, fractions, seeds):
        row = {"method": method, "variant": variant, "split": 1, "label_pct": pct, "seed": seed}
        row |= {"split_sha256": f"{variant if variant == 'uniform' else ''} {pct} {seed}", "settings": "s"}
        rows.append(row | {"video_top1": 100 * share[method, variant]})
        right = rng.random(len(truth)) < share[method, variant]
        name = f"{method}{'@' + variant if variant else ''}/{pct:g}/seed{seed}"
        predicted[name] = truth.where(right, "neither")
    return claims.Runs(pd.DataFrame(rows), pd.DataFrame(predicted))


def test_claims_verdicts():
    """Claims are judged by their intervals."""
    share = {"supervised": 0.5, "sd": 0.8, "videossl": 0.8, "pseudo_label": 0.2, "mt_sd": 0.95}
    table = claims.claims(made_up({(m, ""): s for m, s in share.items()})).set_index("claim")
    verdicts = table.verdict.rename(lambda text: text.split(": ")[-1])
    assert verdicts["SD over supervised"] == "holds"
    assert verdicts["VideoSSL over SD"] == "not shown"
    assert verdicts["SD over supervised minus VideoSSL over SD"] == "holds"
    assert verdicts["PL over supervised"] == "holds: it is worse"
    assert verdicts["VideoSSL over PL"] == "holds"
    assert verdicts["VideoSSL over MT with distillation"] == "contradicted"
    assert verdicts["VideoSSL over S4L"] == "not run"
    points = table["points (95 %)"]
    assert points.iloc[0].points == pytest.approx(30, abs=4)
    assert points.iloc[2].points == pytest.approx(30, abs=6)
    assert (table.pairs.iloc[0], table.seeds.iloc[0]) == (6, 3)  # two fractions
    assert points["VideoSSL over S4L"] == "–"
    classes = table.filter(like="Most classes", axis=0).iloc[0]
    text = "2 of 2 classes gain; gaining minus losing classes per seed, %: +100.0"
    assert str(classes["points (95 %)"]).startswith(text)
    assert classes.verdict == "holds"
    same = claims.claims(made_up({("supervised", ""): 0.5, ("videossl", ""): 0.51}))
    most = same.set_index("claim").filter(like="Most classes", axis=0).iloc[0]
    assert most.verdict == "not shown"  # a class more or less is chance


def test_variant_on_its_own():
    """Methods whose settings were chosen alike are compared although the settings differ; others are not."""
    share = {
        ("supervised", ""): 0.4,
        ("videossl", ""): 0.9,
        ("supervised", "tuned"): 0.7,
        ("videossl", "tuned"): 0.8,
    }
    runs = made_up(share)
    rows = runs.results
    chosen = rows.variant == "tuned"
    rows.loc[chosen, "settings"] = rows.method[chosen]
    predicted = runs.right.apply(lambda right: runs.classes.where(right == 1, "neither"))
    predicted.insert(0, "class_name", runs.classes)
    alike = claims.Runs(*results.as_plain(rows, predicted, "tuned"))
    assert len(alike.results) == 12
    gain = claims.difference(alike.pairs("videossl", "supervised"))
    assert (gain.pairs, gain.points) == (6, pytest.approx(10, abs=5))
    assert claims.difference(runs.pairs("videossl", "supervised")).points == pytest.approx(50, abs=5)


def test_claims_most_classes():
    """The paper's case, smaller: nearly all of many classes gain, by less than one class's own interval."""
    classes = [f"c{c:02d}" for c in range(50)]
    for share, verdict in ((0.15, "contradicted"), (0.3, "not shown"), (0.45, "holds")):
        shares = {("supervised", ""): 0.3, ("videossl", ""): share}
        made = made_up(shares, fractions=[10], classes=classes, per_class=20)
        most = claims.claims(made).set_index("claim").filter(like="Most classes", axis=0).iloc[0]
        assert most.verdict == verdict
    assert re.match(r"\d+ of 50 classes gain; .*\+\d+\.\d \(\+", str(most["points (95 %)"]))


def test_claims_single_seed_not_shown():
    runs = made_up({("supervised", ""): 0.3, ("sd", ""): 0.9}, seeds=[0])
    first = claims.claims(runs).iloc[0]
    assert re.fullmatch(r"\+\d\d\.\d \(one seed\)", str(first["points (95 %)"]))
    assert first.verdict == "not shown"
    assert "(one seed)" in paper.intervals(runs.gains()["1 %"], "x").alt


def test_pairs_need_same_split_and_settings():
    plain = {("supervised", ""): 0.5, ("sd", ""): 0.8, ("videossl", ""): 0.8}
    made = made_up(plain | {("supervised", "lr"): 0.5, ("sd", "lr"): 0.1})
    assert claims.claims(made).iloc[0].pairs == 12  # as if the variant were another draw
    made.results.loc[made.results.variant == "lr", "settings"] = "another learning rate"
    first = claims.claims(made).iloc[0]
    assert (first.verdict, first.pairs) == ("holds", 6)
    made = made_up(plain)
    made.results.loc[made.results.method == "sd", "settings"] = "other"
    mine = (made.results.method == "videossl") & (made.results.seed == 0)
    made.results.loc[mine, "split_sha256"] = "another draw"
    assert made.pairs("sd", "supervised").empty
    assert len(made.pairs("videossl", "supervised")) == 4


def test_settings_of_the_published_runs():
    """Augmentation is a setting that two runs must share; those published before have their hash."""
    p = params.load(dataset="ucf101_6", root="videos", lists="lists").model_dump(mode="json")
    for found in (results.published("ucf101_6").settings, [results.settings(p)]):
        assert "85b79901" in set(found)
    assert results.settings({name: value for name, value in p.items() if name != "augment"}) == "85b79901"
    assert results.settings(p | {"augment": "standard"}) != "85b79901"
    assert results.settings(p | {"teacher_view": "same"}) == "85b79901"  # a matter of the methods that distil


@pytest.mark.slow
def test_claims_shrinking_gain():
    """The gain with few labels is compared with that with many, seed by seed."""
    share = {("supervised", ""): 0.5, ("videossl", ""): 0.8}

    def shrinks(made: claims.Runs) -> pd.Series:
        return claims.claims(made).set_index("claim").filter(like="shrinks", axis=0).iloc[0]

    made = made_up(share)
    few = made.right.columns[made.right.columns.str.startswith("videossl/1/")]
    made.right[few] = 1.0  # all right at the fewest labels
    claim = shrinks(made)
    assert (claim.verdict, claim.pairs) == ("holds", 3)
    assert claim["points (95 %)"].points == pytest.approx(20, abs=5)
    assert str(claim["points (95 %)"]).startswith("at 1 % minus at 10 %: ")
    papers = shrinks(made_up(share, fractions=(1, 5, 10, 50)))
    assert str(papers["points (95 %)"]).startswith("at 5 % minus at 50 %: ")
    assert shrinks(made_up(share, fractions=(10,))).verdict == "not run"


def test_variants():
    """A variant is paired with the run that it changes, and with its own supervised run if there is one."""
    supervised = {"": 0.5, "uniform": 0.2, "authors": 0.1}
    videossl = {"": 0.7, "T1": 0.9, "uniform": 0.6}
    share = {("supervised", v): s for v, s in supervised.items()}
    made = made_up(share | {("videossl", v): s for v, s in videossl.items()})
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


def test_add_published(tmp_path, monkeypatch):
    """Published runs stand in for those that are not here."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "reference")
    columns = ["dataset", "method", "variant", "label_pct", "split", "seed", "video_top1"]
    rows = [("x", "sd", "", 10.0, 1, 0, 100.0), ("x", "sd", "T1", 10.0, 1, 0, 0.0)]
    (tmp_path / "reference/x").mkdir(parents=True)
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "reference/x/results.csv", index=False)
    theirs = pd.DataFrame({"class_name": ["a", "b"], "sd/10/seed0": ["a", "b"], "sd@T1/10/seed0": ["b", "a"]})
    theirs.index = pd.Index(["a/1.avi", "b/1.avi"], name="video")
    theirs.to_csv(tmp_path / "reference/x/answers.csv")
    (tmp_path / "reference/demo").mkdir()  # results alone do not count
    (tmp_path / "reference/demo/results.csv").write_text("dataset,method\ndemo,sd\n")

    (tmp_path / "own").mkdir()
    own = theirs.class_name.reset_index().assign(video_pred="b")
    own.to_csv(tmp_path / "own/predictions_test.csv", index=False)
    mine = pd.DataFrame([[*rows[0][:-1], 50.0, str(tmp_path / "own")]], columns=[*columns, "folder"])
    every = results.add_published(mine)
    assert list(zip(every.variant, every.video_top1, strict=True)) == [("", 50.0), ("T1", 0.0)]
    predicted = results.predicted_classes(every)
    assert list(predicted["sd/10/seed0"]) == ["b", "b"]  # your own, not the published one
    assert list(predicted["sd@T1/10/seed0"]) == ["b", "a"]
    assert list(results.add_published(mine.head(0)).video_top1) == [100.0, 0.0]


def test_class_names_are_text(tmp_path, monkeypatch):
    """Your folder may well have the class "None", "NA" or "1"."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "reference")
    names, predicted = ["None", "NA", "1", "02"], ["None", "1", "1", "02"]
    own = pd.DataFrame({"video": [f"{n}.avi" for n in names], "class_name": names, "video_pred": predicted})
    for folder in ("own", "reference/names"):
        (tmp_path / folder).mkdir(parents=True)
    path = tmp_path / "own/predictions_test.csv"
    own.assign(video_right=own.class_name == own.video_pred).to_csv(path, index=False)
    assert list(runs.read_table(path).video_right) == [True, False, True, True]
    theirs = own.rename(columns={"video_pred": "sd/10/seed1"}).assign(**{"sd/10/seed2": ["", "", "1", "1"]})
    theirs.to_csv(tmp_path / "reference/names/answers.csv", index=False)
    row = {"dataset": "names", "method": "sd", "variant": "", "label_pct": 10, "split": 1, "settings": ""}
    rows = [row | {"seed": seed, "folder": str(path.parent) if seed == 0 else ""} for seed in range(3)]
    rows = pd.DataFrame(rows)
    right = claims.Runs(rows, results.predicted_classes(rows)).right.loc[list(own.video)]
    assert right["sd/10/seed0"].to_list() == [1, 0, 1, 1]
    assert right["sd/10/seed1"].to_list() == [1, 0, 1, 1]
    assert right["sd/10/seed2"].isna().to_list() == [True, True, False, False]  # "": not tested


def test_improved(tmp_path, monkeypatch):
    """Figure 6 is of the seeds that both methods have, here or published."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    columns = ["dataset", "method", "variant", "label_pct", "seed", "folder"]
    every = [("x", "videossl", "", 10.0, 0, ""), ("x", "supervised", "", 10.0, 0, "")]
    unpublished = pd.DataFrame(every, columns=columns)
    assert claims.improved(results.by_class(unpublished), 10).empty  # published without their classes
    (tmp_path / "x").mkdir()
    published = "class_name,supervised/10/seed0,videossl/10/seed0\na,50,40.0\nb,20,50.0\nc,30,30.0\n"
    (tmp_path / "x/classes.csv").write_text(published)
    mine = {"videossl": (90, 50, 30), "supervised": (40, 50, 50)}
    for method, seed in (("videossl", 1), ("supervised", 1), ("videossl", 2)):
        folder = tmp_path / method / str(seed)
        folder.mkdir(parents=True)
        table = pd.DataFrame({"label": range(3), "class_name": [*"abc"], "clip_top1": mine[method]})
        table.to_csv(folder / "per_class.csv", index=False)
        every.append(("x", method, "", 10.0, seed, str(folder)))
    every.append(("x", "videossl", "T1", 10.0, 1, str(tmp_path / "videossl/2")))
    rows = pd.DataFrame(every, columns=columns)
    classes = results.by_class(rows)
    assert list(classes) == [results.run_name(row) for row in rows.itertuples()]
    gain = claims.improved(classes, 10)
    assert gain.to_dict() == {"a": 20.0, "b": 15.0, "c": -10.0}  # of seeds 0 and 1
    assert list(gain.index) == ["a", "b", "c"]
    assert claims.improved(classes, 1).empty


def test_nouns_and_verbs():
    """Counted by hand; "spider_web_falls" is a spider web that falls. Other classes have neither."""
    table = pd.DataFrame({"class_name": ["clock_falls", "clock_rises", "spider_web_falls", "daisy_rises"]})
    table["sd/10/seed0"] = ["clock_falls", "clock_falls", "spider_web_rises", "clock_falls"]
    table["sd/10/seed1"] = table.class_name
    shares = results.nouns_and_verbs(table)
    assert shares.loc["sd/10/seed0"].to_dict() == {"noun": 75.0, "verb": 25.0, "both": 25.0}
    assert (shares.loc["sd/10/seed1"] == 100).all()
    assert results.nouns_and_verbs(table.assign(class_name="Surfing")).empty


def test_published_files():
    """Every published run's video_top1 follows from its published predictions."""
    rows = results.published("ucf101_6")
    predicted = results.predicted_classes(rows)
    runs = claims.Runs(rows, predicted)
    assert set(predicted.columns) == {"class_name", *map(results.run_name, rows.itertuples())}
    for row in rows.itertuples():
        assert 100 * runs.right[results.run_name(row)].mean() == pytest.approx(row.video_top1, abs=0.006)
    assert rows.duplicated(["method", "variant", "label_pct", "seed"]).sum() == 0
    drawn = ["split", "label_draw", "label_pct", "seed"]
    assert (rows.groupby(drawn).split_sha256.nunique() == 1).all()  # the same labels for every method


def test_figure6_many_classes():
    """The five best are named."""
    gain = pd.Series(np.arange(20.0, -81, -1), index=[f"Class{i}" for i in range(101)])
    figure = paper.figure6(gain)
    text = " ".join(t.get_text() for t in figure.axes[0].texts)
    assert "Class4 +16.0" in text
    assert "Class5" not in text
    assert "20 % of the classes improve" in figure.get_suptitle()
    assert "Class100 -80.0" in figure.alt


@pytest.mark.slow
def test_saved_figure_has_its_text(tmp_path):
    """A dot in the run's name is no file ending, and the text alternative comes back."""
    gain = plots.described(paper.figure6(pd.Series({"a": 1.0})), 'one "class"')
    path = plots.run_path(WhichRun(label_pct=2.5, variant="delta0.8", outputs=tmp_path), "figure6")
    plots.save(gain, path)
    name = "figure6-videossl@delta0.8-2.5-seed0"
    files = sorted(file.name for file in (tmp_path / "demo/figures").iterdir())
    assert files == [f"{name}.pdf", f"{name}.png", f"{name}.svg"]
    assert 'alt="one &quot;class&quot;"' in plots.saved(path).data
