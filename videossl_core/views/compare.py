"""Do the paper's claims hold in these runs? Paired differences, their intervals for other seeds and videos.

Two methods are compared on the same test videos after training with the same labels and first weights, so
that what both share cancels. A difference varies with the seed (which labels, which weights) and with the
test videos, and videos cut from one source are alike; an interval that forgets either is too narrow.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from scipy import stats

from videossl_core.methods import METHODS
from videossl_core.views.gathered import run_name

KEY = ["split", "label_pct", "seed", "variant", "split_sha256", "settings"]
"""What two runs share that are compared: labels, first weights, clips, network, schedule, and whatever else
was changed."""


@dataclass(frozen=True)
class Difference:
    """Mean difference in points of video_top1 over pairs of runs and test videos, with a 95 % interval; the
    ends are NaN where one seed, or one source of videos, cannot tell how far another would differ."""

    points: float
    low: float
    high: float
    pairs: int
    seeds: int

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.points:+.1f} ({'one seed' if self.seeds == 1 else 'one source'})"
        return f"{self.points:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def source_of(video: str) -> str:
    """What a test video was cut from: of UCF101's v_Class_gNN_cNN its class and group; otherwise itself."""
    stem = PurePosixPath(video).stem
    found = re.fullmatch(r"(v_.+_g\d+)_c\d+", stem)
    return found[1] if found else video


def interval(values: np.ndarray, sources: np.ndarray, seeds: np.ndarray) -> tuple[float, float, float]:
    """Mean of a table of differences (pairs, videos), in which each seed counts the same, and a 95 % interval
    that holds for other seeds and other videos; NaN where a pair was not tested on a video.

    The variance of the mean is clustered both ways (Cameron, Gelbach and Miller, 2011): by seeds, for runs of
    one seed share their first weights, and its draws of few labels are parts of those of more; plus by
    sources, less by both at once. Each part has Student's t of its own degrees of freedom, and half-widths
    add up as squares (method of variance estimates recovery); it is never narrower than for one alone.

    Args:
        sources: of each video, what it was cut from.
        seeds: of each pair; without two different ones, or two sources, the interval is NaN.
    """
    there = ~np.isnan(values)
    column = np.unique(sources, return_inverse=True)[1]
    row = np.unique(seeds, return_inverse=True)[1]
    weight = there / np.bincount(row, there.sum(1))[row][:, None] / (row.max() + 1)  # adds up to 1
    mean = np.nansum(weight * values)
    cells, used = (np.zeros((row.max() + 1, column.max() + 1)) for _ in range(2))  # (seeds, sources)
    np.add.at(cells, (row[:, None], column), weight * np.where(there, values - mean, 0.0))
    np.add.at(used, (row[:, None], column), there)
    if min(len(cells), (used.sum(0) > 0).sum()) < 2:
        return float(mean), np.nan, np.nan

    def squared(sums: np.ndarray) -> float:
        """Half-width, as a square, where these sums are what varies."""
        n = len(sums)
        variance = float((sums**2).sum()) * n / (n - 1)
        return variance * stats.t.ppf(0.975, n - 1) ** 2

    by_seed, by_source = squared(cells.sum(1)), squared(cells.sum(0)[used.sum(0) > 0])
    half = np.sqrt(max(by_seed + by_source - squared(cells[used > 0]), by_seed, by_source))
    return float(mean), float(mean - half), float(mean + half)


class Runs:
    """Finished runs of one data set and which test videos each gets right.

    Args:
        results: a row a run, with the columns of results.csv.
        answers: as ``gathered.answers`` gives them; empty where a run was not tested on a video.
    """

    def __init__(self, results: pd.DataFrame, answers: pd.DataFrame):
        self.results = results.assign(variant=results.variant.fillna(""))
        plain = self.results[self.results.variant == ""]
        self.usual = set(plain.settings)  # a variant with these changes labels or videos only
        self.classes = answers.class_name
        said = answers.drop(columns="class_name")
        self.right = said.eq(answers.class_name, axis=0).where(said.notna()).astype(float)
        self.sources = np.array([source_of(video) for video in answers.index])

    def of(
        self, method: str, pct: float | None = None, variant: str | None = None, by: Sequence[str] = KEY
    ) -> pd.DataFrame:
        """(runs, videos) right or wrong of one method's runs, by some of their columns."""
        rows = self.results[self.results.method == method]
        if pct is not None:
            rows = rows[rows.label_pct == pct]
        if variant is not None:
            rows = rows[rows.variant == variant]
        right = self.right[[run_name(row) for row in rows.itertuples()]].T
        right.index = pd.MultiIndex.from_frame(rows[list(by)])
        return right

    def pairs(
        self, ours: str, against: str, pct: float | None = None, variant: str | None = None
    ) -> pd.DataFrame:
        """(pairs, videos) of 1, 0 and -1: right minus right, of two methods' runs that share KEY."""
        return paired(self.of(ours, pct, variant), self.of(against, pct, variant))

    def difference(self, values: pd.DataFrame) -> Difference | None:
        """In points, of a table of pairs; None if there is no pair."""
        if values.empty:
            return None
        seeds = values.index.get_level_values("seed").to_numpy()
        found = interval(100 * values.to_numpy(), self.sources, seeds)
        return Difference(*found, len(values), len(np.unique(seeds)))

    def gains(self, baseline: str = "supervised") -> pd.DataFrame:
        """Of every method over the baseline, at each label fraction; variants do not count."""
        rows: dict[str, dict] = {}
        fractions = sorted(self.results.label_pct.unique())
        for method in METHODS:
            for pct in fractions:
                found = self.difference(self.pairs(method, baseline, pct, variant=""))
                if method != baseline and found:
                    rows.setdefault(METHODS[method].title, {})[f"{pct:g} %"] = found
        return pd.DataFrame(rows, index=[f"{pct:g} %" for pct in fractions]).T.dropna(axis=1, how="all")

    def ends(self) -> tuple[float, float]:
        """The label fractions between which the paper sees gains shrink (4.2.2), or else the least and the
        most that are here."""
        there = set(self.pairs("videossl", "supervised", variant="").index.get_level_values("label_pct"))
        return (5, 50) if not there or {5, 50} <= there else (min(there), max(there))

    def variants(self, of: str = "videossl", pct: float = 10) -> pd.DataFrame:
        """How a method with other parameters differs, with the same seeds and test videos, from itself, and
        from the supervised network: that of the variant where it has one, with the same labels then."""
        rows, by = [], ["split", "seed"]
        for variant in self.results.variant[self.results.method == of].unique():
            ours = self.of(of, pct, variant, by)
            if variant and len(ours):
                baseline = self.of("supervised", pct, variant, by)
                if baseline.empty:
                    baseline = self.of("supervised", pct, "", by)
                others = [self.difference(paired(ours, m)) for m in (self.of(of, pct, "", by), baseline)]
                rows.append(
                    (variant, len(ours), round(100 * np.nanmean(ours), 1), *(o or "–" for o in others))
                )
        names = ["variant", "seeds", "video_top1", f"against {METHODS[of].title}", "against supervised"]
        return pd.DataFrame(rows, columns=names).set_index("variant")


def paired(ours: pd.DataFrame, against: pd.DataFrame) -> pd.DataFrame:
    """Difference of two tables (runs, videos), of the runs that both have."""
    both = ours.index.intersection(against.index)
    return ours.loc[both] - against.loc[both]


def _over(ours: str, against: str):
    def table(runs: Runs) -> pd.DataFrame:
        pairs = runs.pairs(ours, against)
        return pairs[pairs.index.get_level_values("settings").isin(runs.usual)]

    return table


def _main(runs: Runs) -> pd.DataFrame:
    """What distillation gains over nothing, less what pseudo-labels gain over distillation."""
    return paired(_over("sd", "supervised")(runs), _over("videossl", "sd")(runs))


def _shrinks(runs: Runs) -> pd.DataFrame:
    """Gain of VideoSSL with few labels less that with many, seed by seed."""
    few, many = (
        runs.pairs("videossl", "supervised", end).droplevel(["label_pct", "split_sha256"])
        for end in runs.ends()
    )
    return paired(few, many) if len(set(runs.ends())) > 1 else few.head(0)


def _worth(runs: Runs) -> pd.DataFrame:
    """VideoSSL at 10 % against the supervised network at 100 % of the labels."""
    by = ["split", "seed", "variant", "settings"]
    return paired(runs.of("videossl", 10, by=by), runs.of("supervised", 100, by=by))


# The paper's claims, each a row: where it stands, in words, what is subtracted from what, and the sign it
# needs: 1 above zero, 0 not above.
CLAIMS = (
    ("4.2.1", "Distillation helps: SD over supervised", _over("sd", "supervised"), 1),
    ("4.2.1", "Pseudo-labels add to it: VideoSSL over SD", _over("videossl", "sd"), 1),
    ("4.2.1", "Distillation is the main gain: SD over supervised, less VideoSSL over SD", _main, 1),
    ("4.2.1", "VideoSSL over supervised", _over("videossl", "supervised"), 1),
    ("4.2.1", "Plain pseudo-labels do not help: PL over supervised", _over("pseudo_label", "supervised"), 0),
    ("4.2.1", "Plain mean teacher does not help: MT over supervised", _over("mean_teacher", "supervised"), 0),
    ("4.2.1", "VideoSSL over PL", _over("videossl", "pseudo_label"), 1),
    ("4.2.1", "VideoSSL over MT", _over("videossl", "mean_teacher"), 1),
    ("4.2.1", "VideoSSL over MT with distillation", _over("videossl", "mt_sd"), 1),
    ("4.2.1", "VideoSSL over S4L", _over("videossl", "s4l"), 1),
    ("4.2.2", "The gain shrinks as labels grow: at {few:g} % less at {many:g} %", _shrinks, 1),
    ("1", "A tenth of the labels is enough: VideoSSL at 10 % over supervised at 100 %", _worth, 1),
)


def claims(runs: Runs) -> pd.DataFrame:
    """Each of the paper's claims, the difference in video_top1 in these runs, and what that says of it."""
    rows, (few, many) = [], runs.ends()
    for section, claim, table, sign in CLAIMS:
        found = runs.difference(table(runs))
        counts = (found.pairs, found.seeds) if found else (0, 0)
        rows.append((section, claim.format(few=few, many=many), found or "–", *counts, _verdict(found, sign)))
    most = "Most classes improve at 10 %, in video top-1: VideoSSL over supervised"
    rows.append(("4.3", most, *_most_classes(runs)))
    return pd.DataFrame(rows, columns=["section", "claim", "points (95 %)", "pairs", "seeds", "here"])


def _most_classes(runs: Runs) -> tuple[str, int, int, str]:
    """How many classes gain over all seeds, and by how many % of the classes those that gain outnumber those
    that lose in a seed, with an interval for other seeds and classes; pairs and seeds; the verdict."""
    pairs = runs.pairs("videossl", "supervised", 10, variant="")
    if pairs.empty:
        return "–", 0, 0, _verdict(None, 1)
    seeds = pairs.index.get_level_values("seed").to_numpy()
    gains = pairs.T.groupby(runs.classes).mean().T.round(9)  # rounded: +a and -a are no gain
    found = np.clip(interval(100 * np.sign(gains.to_numpy()), gains.columns, seeds), -100, 100)
    more = Difference(*found, len(pairs), len(set(seeds)))
    count = f"{(gains.groupby(seeds).mean().mean() > 0).sum()} of {gains.shape[1]} classes gain"
    return (
        f"{count}; gaining less losing ones in a seed, %: {more}",
        more.pairs,
        more.seeds,
        _verdict(more, 1),
    )


def _verdict(found: Difference | None, sign: int) -> str:
    if found is None:
        return "not run"
    shown = 1 if found.low > 0 else -1 if found.high < 0 else 0
    if sign:
        return {1: "holds", 0: "not shown", -1: "contradicted"}[shown]
    return {1: "contradicted", 0: "no gain shown", -1: "holds: it is worse"}[shown]


def improved(classes: pd.DataFrame, pct: float) -> pd.Series:
    """Figure 6: gain of VideoSSL per class over the supervised network in points of clip_top1, a mean over
    the seeds that both have, sorted; empty without such a pair.

    Args:
        classes: as ``gathered.by_class`` gives it.
    """

    def of(method: str) -> pd.DataFrame:  # a column a seed
        start = f"{method}/{pct:g}/"
        return classes[[run for run in classes if run.startswith(start)]].rename(
            columns=lambda run: run.removeprefix(start)
        )

    gain = (of("videossl") - of("supervised")).mean(axis=1).dropna()
    # rounded: +a and -a are no gain
    return gain.astype(float).round(9).sort_values(ascending=False, kind="stable").rename_axis(None)
