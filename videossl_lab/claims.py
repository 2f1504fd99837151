"""Do the paper's claims hold in these runs? Paired differences, their intervals for other seeds and videos.

Two methods are compared on the same test videos after training with the same labels and first weights. Their
difference varies with the seed and with the videos, which are alike if cut from one source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from videossl_core.data.splits import source_of
from videossl_core.methods import METHODS
from videossl_lab.results import run_name

KEY = ["split", "label_pct", "seed", "variant", "split_sha256", "settings"]
"""What two compared runs share: labels, first weights, clips, network, schedule, and any other change."""

COMPARED = ("supervised", "videossl")
"""The baseline and the paper's method."""


@dataclass(frozen=True)
class Difference:
    """Mean difference in points of video_top1 over pairs of runs and test videos, and the ends of its 95 %
    interval; NaN with a single seed or a single source of videos."""

    points: float
    low: float
    high: float
    pairs: int
    seeds: int
    note: str = ""

    def __str__(self) -> str:
        ends = f"{self.low:+.1f} to {self.high:+.1f}"
        if np.isnan(self.low):
            ends = "one seed" if self.seeds == 1 else "one source"
        return f"{self.note}{self.points:+.1f} ({ends})"


def interval(values: np.ndarray, sources: np.ndarray, seeds: np.ndarray) -> tuple[float, float, float]:
    """Mean of a table of differences, in which each seed counts the same, and both ends of a 95 % interval
    that holds for other seeds and other videos.

    The variance of the mean is clustered two ways (Cameron, Gelbach and Miller, 2011), for runs of one seed
    share their first weights and labels: V = V_seed + V_source - V_both, where the videos of one source in
    the runs of one seed are a cluster of V_both. Each V is multiplied by the square of Student's t for its
    own degrees of freedom (method of variance estimates recovery); V_seed and V_source are lower bounds.

    Args:
        values: (pairs, videos), NaN where a pair was not tested on a video.
        sources: (videos,), what each was cut from.
        seeds: (pairs,); with a single seed or a single source the interval is NaN.
    """
    tested = ~np.isnan(values)
    source = np.unique(sources, return_inverse=True)[1]
    seed = np.unique(seeds, return_inverse=True)[1]
    n_seeds, n_sources = seed.max() + 1, source.max() + 1
    weight = tested / np.bincount(seed, tested.sum(1))[seed][:, None] / n_seeds  # adds up to 1
    mean = np.nansum(weight * values)
    cells, counts = np.zeros((2, n_seeds, n_sources))
    np.add.at(cells, (seed[:, None], source), weight * np.where(tested, values - mean, 0.0))
    np.add.at(counts, (seed[:, None], source), tested)
    if min(n_seeds, (counts.sum(0) > 0).sum()) < 2:
        return float(mean), np.nan, np.nan

    def squared(sums: np.ndarray) -> float:
        """Half the width of the interval, squared, where these sums over clusters are what varies."""
        n = len(sums)
        variance = float((sums**2).sum()) * n / (n - 1)
        return variance * stats.t.ppf(0.975, n - 1) ** 2

    by_seed, by_source = squared(cells.sum(1)), squared(cells.sum(0)[counts.sum(0) > 0])
    half = np.sqrt(max(by_seed + by_source - squared(cells[counts > 0]), by_seed, by_source))
    return float(mean), float(mean - half), float(mean + half)


class Runs:
    """Finished runs of one data set, the rows of a results.csv, and which test videos each gets right, from
    ``results.predicted_classes``; empty where a run was not tested on a video."""

    def __init__(self, results: pd.DataFrame, predicted: pd.DataFrame):
        self.results = results.assign(variant=results.variant.fillna(""))
        self.classes = predicted.class_name
        names = predicted.drop(columns="class_name")
        self.right = names.eq(self.classes, axis=0).where(names.notna()).astype(float)

    def outcomes(self, method: str, key: Sequence[str] = KEY, **where) -> pd.DataFrame:
        """(runs, videos): 1 right, 0 wrong, in one method's runs with these values of their columns."""
        rows = self.results[self.results.method == method]
        for column, value in where.items():
            rows = rows[rows[column] == value]
        right = self.right[[run_name(row) for row in rows.itertuples()]].T
        right.index = pd.MultiIndex.from_frame(rows[list(key)])
        return right

    def pairs(self, ours: str, baseline: str, **where) -> pd.DataFrame:
        """(pairs, videos) of 1, 0 and -1: the outcomes of two methods' runs that share KEY, subtracted. Of
        variants, only those count that change labels or videos, not the settings of the plain runs."""
        pairs = subtract(self.outcomes(ours, **where), self.outcomes(baseline, **where))
        plain = self.results[self.results.variant == ""]
        return pairs[pairs.index.get_level_values("settings").isin(plain.settings)]

    def gains(self, baseline: str = "supervised") -> pd.DataFrame:
        """Of every method over the baseline, at each label fraction; variants do not count."""
        columns = {
            f"{pct:g} %": {
                METHODS[method].title: difference(self.pairs(method, baseline, label_pct=pct, variant=""))
                for method in METHODS
                if method != baseline
            }
            for pct in sorted(self.results.label_pct.unique())
        }
        return pd.DataFrame(columns, dtype=object).dropna(how="all").dropna(axis=1, how="all")

    def variants(self, method: str = "videossl", pct: float = 10) -> pd.DataFrame:
        """A method with other parameters against itself and against the supervised network, on the same seeds
        and test videos; against the variant's own supervised runs, with its labels, where there are any."""
        rows, like = [], {"key": ["split", "seed"], "label_pct": pct}
        for variant in self.results.variant[self.results.method == method].unique():
            ours = self.outcomes(method, variant=variant, **like)
            if variant and len(ours):
                own, plain = (self.outcomes("supervised", variant=v, **like) for v in (variant, ""))
                others = (self.outcomes(method, variant="", **like), plain if own.empty else own)
                gains = [difference(subtract(ours, other)) or "–" for other in others]
                rows.append((variant, len(ours), round(100 * np.nanmean(ours), 1), *gains))
        names = ["variant", "seeds", "video_top1", f"against {METHODS[method].title}", "against supervised"]
        return pd.DataFrame(rows, columns=names).set_index("variant")


def subtract(ours: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """Difference of two tables (runs, videos), for the runs that both have."""
    both = ours.index.intersection(baseline.index)
    return ours.loc[both] - baseline.loc[both]


def difference(table: pd.DataFrame, note: str = "") -> Difference | None:
    """In points, of a table of pairs (pairs, videos), or (pairs, classes); None if there is no pair."""
    if table.empty:
        return None
    seeds = table.index.get_level_values("seed").to_numpy()
    ends = interval(100 * table.to_numpy(), table.columns.map(source_of), seeds)
    return Difference(*np.clip(ends, -100, 100), len(table), len(np.unique(seeds)), note)


def _over(ours: str, baseline: str = "supervised") -> Callable[[Runs], Difference | None]:
    return lambda runs: difference(runs.pairs(ours, baseline))


def _main_gain(runs: Runs) -> Difference | None:
    """What distillation gains over nothing, minus what pseudo-labels gain over distillation."""
    return difference(subtract(runs.pairs("sd", "supervised"), runs.pairs("videossl", "sd")))


def _shrinking(runs: Runs) -> Difference | None:
    """Gain of VideoSSL with few labels minus its gain with many, seed by seed: at 5 and 50 % as in the paper,
    or else at the smallest and the largest fraction of these runs."""
    pairs = runs.pairs("videossl", "supervised")
    fraction = pairs.index.get_level_values("label_pct")
    if fraction.nunique() < 2:
        return None
    few, many = (5, 50) if {5, 50} <= set(fraction) else (fraction.min(), fraction.max())
    gains = [pairs[fraction == pct].droplevel(["label_pct", "split_sha256"]) for pct in (few, many)]
    return difference(subtract(*gains), note=f"at {few:g} % minus at {many:g} %: ")


def _tenth(runs: Runs) -> Difference | None:
    """VideoSSL at 10 % against the supervised network at 100 % of the labels."""
    key = ["split", "seed", "variant", "settings"]
    tenth = runs.outcomes("videossl", key, label_pct=10)
    return difference(subtract(tenth, runs.outcomes("supervised", key, label_pct=100)))


def _majority(runs: Runs) -> Difference | None:
    """By how many % of the classes those that gain outnumber those that lose, VideoSSL over supervised."""
    pairs = runs.pairs("videossl", "supervised", label_pct=10, variant="")
    gains = pairs.T.groupby(runs.classes).mean().T.round(9)  # rounded: +a and -a are no gain
    count = f"{(gains.groupby('seed').mean().mean() > 0).sum()} of {gains.shape[1]} classes gain"
    note = f"{count}; gaining minus losing classes per seed, %: "
    return difference(np.sign(gains), note)


# The verdict on a claim whose interval is above zero, includes it, or is below it.
GAIN = ("holds", "not shown", "contradicted")
NO_GAIN = ("contradicted", "no gain shown", "holds: it is worse")

# The paper's claims, each a row: its section, in words, the difference that it is about, and its verdicts.
# The paper does not ask the last two.
CLAIMS = (
    ("4.2.1", "Distillation helps: SD over supervised", _over("sd"), GAIN),
    ("4.2.1", "Pseudo-labels add to it: VideoSSL over SD", _over("videossl", "sd"), GAIN),
    ("4.2.1", "Distillation is the main gain: SD over supervised minus VideoSSL over SD", _main_gain, GAIN),
    ("4.2.1", "VideoSSL over supervised", _over("videossl"), GAIN),
    ("4.2.1", "Plain pseudo-labels do not help: PL over supervised", _over("pseudo_label"), NO_GAIN),
    ("4.2.1", "Plain mean teacher does not help: MT over supervised", _over("mean_teacher"), NO_GAIN),
    ("4.2.1", "VideoSSL over PL", _over("videossl", "pseudo_label"), GAIN),
    ("4.2.1", "VideoSSL over MT", _over("videossl", "mean_teacher"), GAIN),
    ("4.2.1", "VideoSSL over MT with distillation", _over("videossl", "mt_sd"), GAIN),
    ("4.2.1", "VideoSSL over S4L", _over("videossl", "s4l"), GAIN),
    ("4.2.2", "The gain shrinks as labels grow: with few labels minus with many", _shrinking, GAIN),
    ("1", "A tenth of the labels is enough: VideoSSL at 10 % over supervised at 100 %", _tenth, GAIN),
    ("4.3", "Most classes improve at 10 %, in video top-1: VideoSSL over supervised", _majority, GAIN),
    ("–", "The network is worth it: VideoSSL over the frozen teacher", _over("videossl", "probe"), GAIN),
    ("–", "VideoSSL over the frozen teacher with motion", _over("videossl", "probe_motion"), GAIN),
)


def claims(runs: Runs) -> pd.DataFrame:
    """Each of the paper's claims, the difference in video_top1 in these runs, and the verdict."""
    rows = []
    for section, claim, measure, verdicts in CLAIMS:
        result = measure(runs)
        if result is None:
            rows.append((section, claim, "–", 0, 0, "not run"))
        else:
            verdict = verdicts[0 if result.low > 0 else 2 if result.high < 0 else 1]
            rows.append((section, claim, result, result.pairs, result.seeds, verdict))
    return pd.DataFrame(rows, columns=["section", "claim", "points (95 %)", "pairs", "seeds", "verdict"])


def improved(classes: pd.DataFrame, pct: float, method: str = "videossl") -> pd.Series:
    """Figure 6: gain of a method per class over the supervised network in points of clip_top1, a mean over
    the seeds that both have in ``results.by_class``, sorted; empty without such a pair."""
    baseline, ours = (
        classes.filter(regex=f"^{name}/{pct:g}/").rename(columns=lambda column: column.split("/")[-1])
        for name in ("supervised", method)
    )
    gain = (ours - baseline).mean(axis=1).dropna().astype(float).round(9)  # rounded: +a and -a are no gain
    return gain.sort_values(ascending=False, kind="stable").rename_axis(None)


@dataclass(frozen=True)
class Gain:
    """How much better one network is than another on the same videos, in points of top-1 with a 95 %
    interval; ``won`` and ``lost`` count the videos that only it, only the other gets right."""

    videos: int
    won: int
    lost: int
    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"gain in video top-1: {self.points:+.1f} points (95 % interval {self.low:+.1f} to "
            f"{self.high:+.1f}; {self.videos} videos: {self.won} won, {self.lost} lost)"
        )


def paired_gain(first: np.ndarray, last: np.ndarray) -> Gain:
    """The gain of the last over the first, from which videos each gets right, (videos,) bool.

    The interval is the normal one after half a video was added to each cell of the fourfold table, which
    keeps it honest when there are few videos (Agresti and Min, 2005).
    """
    n, won, lost = len(first), int((last & ~first).sum()), int((first & ~last).sum())
    b, c, m = won + 0.5, lost + 0.5, n + 2
    centre, half = (b - c) / m, 1.96 * np.sqrt(b + c - (b - c) ** 2 / m) / m
    low, high = max(-100.0, 100 * (centre - half)), min(100.0, 100 * (centre + half))
    return Gain(n, won, lost, 100 * (won - lost) / n, float(low), float(high))
