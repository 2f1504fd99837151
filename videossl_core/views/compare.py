"""Do the paper's claims hold in these runs? Paired differences, their intervals for other seeds and videos.

Two methods are compared on the same test videos after training with the same labels and first weights, so
that what both share cancels. A difference varies with the seed (which labels, which weights) and with the
test videos, and videos cut from one source are alike; an interval that forgets either is too narrow.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from scipy import stats

from videossl_core import runs as folders
from videossl_core.data.files import ROOT
from videossl_core.methods import METHODS

PUBLISHED = ROOT / "outputs" / "reference"

KEY = ["split", "label_pct", "seed", "variant"]
"""What the runs of two methods share that are compared."""


@dataclass(frozen=True)
class Difference:
    """Mean difference in points of video_top1, with a 95 % interval, over pairs of runs and test videos."""

    points: float
    low: float
    high: float
    pairs: int
    videos: int

    def __str__(self) -> str:
        return f"{self.points:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def source_of(video: str) -> str:
    """What a test video was cut from: of UCF101's v_Class_gNN_cNN its class and group; otherwise itself."""
    stem = PurePosixPath(video).stem
    found = re.fullmatch(r"(v_.+_g\d+)_c\d+", stem)
    return found[1] if found else video


def interval(values: np.ndarray, sources: np.ndarray) -> tuple[float, float, float]:
    """Mean of a table of differences (pairs, videos) and a 95 % interval that holds for other seeds and other
    videos; NaN where a pair was not tested on a video.

    The variance of the mean is clustered both ways (Cameron, Gelbach and Miller, 2011): by pairs of runs,
    plus by sources, less by both at once, and never less than by one alone; Student's t has the degrees of
    freedom of the scarcer. With one pair it speaks of these two networks only.
    """
    there = ~np.isnan(values)
    mean = values[there].mean()
    off = np.where(there, values - mean, 0.0)
    ids = np.unique(sources, return_inverse=True)[1]
    cells = np.stack([np.bincount(ids, row) for row in off])  # (pairs, sources)
    used = np.stack([np.bincount(ids, row) for row in there]) > 0

    def variance(sums: np.ndarray) -> float:
        n = len(sums)
        return float((sums**2).sum()) * n / (n - 1) / there.sum() ** 2 if n > 1 else 0.0

    by_pair, by_source = variance(cells.sum(1)), variance(cells.sum(0)[used.any(0)])
    both = (
        max(by_pair + by_source - variance(cells[used]), by_pair, by_source) if len(values) > 1 else by_source
    )
    scarcer = min(len(values) if len(values) > 1 else np.inf, used.any(0).sum())
    half = stats.t.ppf(0.975, scarcer - 1) * np.sqrt(both)
    return float(mean), float(mean - half), float(mean + half)


class Runs:
    """Finished runs of one data set and which test videos each gets right.

    Args:
        results: a row a run, with the columns of results.csv.
        answers: a row a test video (index ``video``), the column ``class_name`` and one for each run, named
            as ``run_name`` does, with the class said of the video; empty where it was not tested on it.
    """

    def __init__(self, results: pd.DataFrame, answers: pd.DataFrame):
        self.results = results.assign(variant=results.variant.fillna(""))
        self.classes = answers.class_name
        said = answers.drop(columns="class_name")
        self.right = said.eq(answers.class_name, axis=0).where(said.notna()).astype(float)
        self.sources = np.array([source_of(video) for video in answers.index])

    def of(self, method: str, pct: float | None = None, variant: str | None = None) -> pd.DataFrame:
        """(runs, videos) right or wrong of one method's runs, by KEY; of one variant, by the rest of it."""
        rows = self.results[self.results.method == method]
        if pct is not None:
            rows = rows[rows.label_pct == pct]
        if variant is not None:
            rows = rows[rows.variant == variant]
        right = self.right[[run_name(row) for row in rows.itertuples()]].T
        right.index = pd.MultiIndex.from_frame(rows[KEY])
        return right if variant is None else right.droplevel("variant")

    def pairs(self, ours: str, against: str, pct: float | None = None) -> pd.DataFrame:
        """(pairs, videos) of 1, 0 and -1: right minus right, of two methods' runs that share KEY."""
        return paired(self.of(ours, pct), self.of(against, pct))

    def difference(self, values: pd.DataFrame) -> Difference | None:
        """In points, of a table of pairs; None if there is no pair."""
        if values.empty:
            return None
        found = interval(100 * values.to_numpy(), self.sources)
        return Difference(*found, len(values), int(values.notna().any().sum()))

    def gains(self, baseline: str = "supervised") -> pd.DataFrame:
        """Of every method over the baseline, at each label fraction and over all."""
        rows: dict[str, dict] = {}
        for method in METHODS:
            for pct in [*sorted(self.results.label_pct.unique()), None]:
                found = self.difference(self.pairs(method, baseline, pct))
                if method != baseline and found:
                    rows.setdefault(METHODS[method].title, {})["all" if pct is None else f"{pct:g} %"] = found
        return pd.DataFrame(rows).T

    def variants(self, of: str = "videossl", pct: float = 10) -> pd.DataFrame:
        """How a method with other parameters differs from itself and from the supervised network, with the
        same seeds."""
        rows = []
        for variant in self.results.variant[self.results.method == of].unique():
            ours = self.of(of, pct, variant)
            if variant and len(ours):
                others = [self.difference(paired(ours, self.of(m, pct, ""))) for m in (of, "supervised")]
                rows.append((variant, len(ours), round(100 * np.nanmean(ours), 1), *others))
        names = ["variant", "seeds", "video_top1", f"against {METHODS[of].title}", "against supervised"]
        return pd.DataFrame(rows, columns=names).set_index("variant")


def paired(ours: pd.DataFrame, against: pd.DataFrame) -> pd.DataFrame:
    """Difference of two tables (runs, videos), of the runs that both have."""
    both = ours.index.intersection(against.index)
    return ours.loc[both] - against.loc[both]


def run_name(row) -> str:
    """``videossl@T1/10/seed0``, as its folder below ``outputs/<dataset>/``."""
    method = f"{row.method}@{row.variant}" if row.variant else row.method
    return f"{method}/{row.label_pct:g}/seed{row.seed}"


def answers(found: pd.DataFrame) -> pd.DataFrame:
    """What every run said of every test video, as ``Runs`` takes it.

    Args:
        found: finished runs of one data set, as ``runs.find`` or ``add_published`` gives them.
    """
    said, classes = {}, {}
    for row in found.itertuples():
        if row.folder:
            table = pd.read_csv(folders.Run(Path(row.folder)).predictions_test).set_index("video")
            said[run_name(row)] = table.video_pred
        else:
            table = _published_answers(row.dataset)
            said[run_name(row)] = table[run_name(row)]
        classes |= table.class_name.to_dict()
    table = pd.DataFrame(said).sort_index()
    table.insert(0, "class_name", table.index.map(classes))
    return table.rename_axis("video")


@cache
def _published_answers(dataset: str) -> pd.DataFrame:
    return pd.read_csv(PUBLISHED / dataset / "answers.csv", index_col="video")


def add_published(found: pd.DataFrame) -> pd.DataFrame:
    """The runs found, and those of ``outputs/reference/`` not among them, which have no ``folder``."""
    every = [found]
    for path in sorted(PUBLISHED.glob("*/answers.csv")):
        theirs = pd.read_csv(path.with_name("results.csv"), keep_default_na=False).assign(folder="")
        mine = {run_name(row) for row in found[found.dataset == path.parent.name].itertuples()}
        every.append(theirs[[run_name(row) not in mine for row in theirs.itertuples()]])
    return pd.concat([table for table in every if len(table)] or every, ignore_index=True)


def _over(ours: str, against: str):
    return lambda runs: runs.pairs(ours, against)


def _shrinks(runs: Runs) -> pd.DataFrame:
    """Gain of VideoSSL at the smallest label fraction less that at the largest, seed by seed."""
    pct = runs.pairs("videossl", "supervised").index.get_level_values("label_pct")
    few, many = (
        runs.pairs("videossl", "supervised", end).droplevel("label_pct") for end in (pct.min(), pct.max())
    )
    return paired(few, many) if pct.nunique() > 1 else few.head(0)


def _worth(runs: Runs) -> pd.DataFrame:
    """VideoSSL at 10 % against the supervised network at 100 % of the labels."""
    return paired(
        *(runs.of(m, pct).droplevel("label_pct") for m, pct in (("videossl", 10), ("supervised", 100)))
    )


# The paper's claims, each a row: where it stands, in words, what is subtracted from what, and the sign it
# needs: 1 above zero, 0 that neither is shown.
CLAIMS = (
    ("4.2.1", "Distillation is the main gain: SD over supervised", _over("sd", "supervised"), 1),
    ("4.2.1", "Pseudo-labels add to it: VideoSSL over SD", _over("videossl", "sd"), 1),
    ("4.2.1", "VideoSSL over supervised", _over("videossl", "supervised"), 1),
    ("4.2.1", "Plain pseudo-labels do not help: PL over supervised", _over("pseudo_label", "supervised"), 0),
    ("4.2.1", "Plain mean teacher does not help: MT over supervised", _over("mean_teacher", "supervised"), 0),
    ("4.2.1", "VideoSSL over MT with distillation", _over("videossl", "mt_sd"), 1),
    ("4.2.1", "VideoSSL over S4L", _over("videossl", "s4l"), 1),
    ("4.2.2", "The gain shrinks as labels grow: at the fewest less at the most", _shrinks, 1),
    ("1", "A tenth of the labels is enough: VideoSSL at 10 % over supervised at 100 %", _worth, 0),
)


def claims(runs: Runs) -> pd.DataFrame:
    """Each of the paper's claims, the difference in video_top1 in these runs, and what that says of it."""
    rows = []
    for section, claim, table, sign in CLAIMS:
        found = runs.difference(table(runs))
        rows.append((section, claim, found or "not run", found.pairs if found else 0, _verdict(found, sign)))
    rows.append(("4.3", "Most classes improve at 10 %: VideoSSL over supervised", *_most_classes(runs)))
    return pd.DataFrame(rows, columns=["section", "claim", "points (95 %)", "pairs", "here"])


def _most_classes(runs: Runs) -> tuple[str, int, str]:
    """How many classes gain, how many of them beyond their own interval; pairs of runs; the verdict."""
    pairs = runs.pairs("videossl", "supervised", 10)
    if pairs.empty:
        return "not run", 0, ""
    of_class = [runs.classes == name for name in runs.classes.unique()]
    found = [interval(100 * pairs.to_numpy()[:, its], runs.sources[its]) for its in of_class]
    gain, sure = sum(mean > 1e-9 for mean, _, _ in found), sum(low > 0 for _, low, _ in found)
    said = f"{gain} of {len(found)} classes gain, {sure} of them beyond their interval"
    return said, len(pairs), "holds" if gain > len(found) / 2 else "contradicted"


def _verdict(found: Difference | None, sign: int) -> str:
    if found is None:
        return ""
    shown = 1 if found.low > 0 else -1 if found.high < 0 else 0
    if shown == sign:
        return "holds" if sign else "no difference shown"
    if shown == 0:
        return "not shown"
    return "contradicted" if sign else ("it helps" if shown > 0 else "it is worse")


def improved(results: pd.DataFrame, pct: float, kind: str = "clip") -> pd.Series:
    """Figure 6: gain of VideoSSL per class over the supervised network in points of top-1, a mean over the
    seeds that both have, sorted; empty without such a pair.

    Args:
        results: finished runs of one data set; published ones have no folder to look into, and do not count.
    """
    rows = results[(results.label_pct == pct) & (results.folder != "")].pivot(
        index="seed", columns="method", values="folder"
    )
    rows = rows.reindex(columns=["videossl", "supervised"]).dropna()
    gains = []
    for pair in rows.itertuples(index=False):
        ours, baseline = (
            pd.read_csv(folders.Run(Path(folder)).per_class).set_index("class_name")[f"{kind}_top1"]
            for folder in pair
        )
        gains.append(ours - baseline)
    if not gains:
        return pd.Series(dtype=float)
    # rounded: +a and -a are no gain
    return pd.concat(gains, axis=1).mean(axis=1).round(9).sort_values(ascending=False, kind="stable")
