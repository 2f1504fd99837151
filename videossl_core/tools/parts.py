"""What the report's pages are made of: tables, described pictures, films; each from a run's files."""

import pandas as pd

from videossl_core import runs
from videossl_core.data import frames
from videossl_core.tools.site import Media, table
from videossl_core.views import figures, paper, show

_FILMS = 6


def title(method: str) -> str:
    return figures.TITLES.get(method, method)


def results(found: pd.DataFrame, pct: float) -> pd.DataFrame:
    """Clip and video top-1 at one label fraction: mean over seeds ± standard deviation, beside the paper's.

    Args:
        found: finished runs of one data set.
    """
    theirs = paper.paper_results()
    theirs = theirs[(theirs.dataset == found.dataset.iloc[0]) & (theirs.label_pct == pct)].set_index("method")
    rows = []
    for method in figures.TITLES:
        mine = found[(found.method == method) & (found.label_pct == pct)]
        if mine.empty and method not in theirs.index:
            continue
        row: dict = {"method": title(method), "seeds": len(mine)}
        for kind in ("clip_top1", "video_top1"):
            spread = f" ± {mine[kind].std():.1f}" if len(mine) > 1 else ""
            row[kind] = f"{mine[kind].mean():.1f}{spread}" if len(mine) else "–"
            if len(theirs):
                row[f"{kind}, paper"] = float(theirs[kind].get(method, float("nan")))
        rows.append(row)
    return pd.DataFrame(rows)


def flat(facts: dict, prefix: str = "") -> pd.DataFrame:
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{name}: ").to_numpy().tolist()
        elif value is not None:
            rows.append([prefix + name, f"{value}"])
    return pd.DataFrame(rows, columns=["name", "value"])


def mistakes(said: pd.DataFrame, of: str) -> dict | None:
    """The ten commonest mistakes."""
    wrong = said[~said.video_right].groupby(["class_name", "video_pred"]).size().rename("test videos")
    if wrong.empty:
        return None
    wrong = wrong.sort_values(ascending=False, kind="stable").head(10).reset_index()
    wrong = wrong.rename(columns={"class_name": "true class", "video_pred": "said"})
    return table(wrong, f"Commonest mistakes of {of}")


def figure1(media: Media, mine: pd.DataFrame) -> dict:
    caption = "Video top-1 against the share of labels; a band spans the seeds"
    return media.picture(paper.figure1(mine, tuple(figures.TITLES)), "figure1", caption)


def curves(media: Media, run: runs.Run, name: str, of: str) -> dict:
    figure = figures.training_curves(pd.read_csv(run.log), pd.read_csv(run.metrics))
    return media.picture(figure, name, f"How {of} trained")


def gain(media: Media, run: runs.Run, baseline: runs.Run, name: str) -> dict:
    ours, theirs = (runs.read_table(r.per_class).set_index("class_name").clip_top1 for r in (run, baseline))
    figure = paper.figure6((ours - theirs).sort_values(ascending=False, kind="stable"))
    return media.picture(figure, name, "Gain per class over the supervised network of the same labels")


def matrix(media: Media, run: runs.Run, name: str, of: str) -> dict:
    said, classes = runs.read_table(run.predictions_test), list(runs.read_table(run.per_class).class_name)
    caption = f"{of}: rows are the true class, columns what the network said of the whole video"
    return media.picture(figures.confusion(said, classes), name, caption)


def store_of(run: runs.Run) -> frames.FrameStore:
    """Of the frames that the run saw, wherever its outputs folder has been moved to."""
    p = run.read_params()
    settings = frames.StoreSettings(p["frame_size"], p["jpeg_quality"], p["teacher_stride"])
    return frames.FrameStore(run.folder.parents[2] / "data", settings)


def films(media: Media, run: runs.Run, others: dict[str, runs.Run]) -> dict:
    """Figure 5 and the surest mistakes as films, with what the models tested on the same videos say."""
    own = runs.read_table(run.predictions_test)
    models = {m: runs.read_table(other.predictions_test) for m, other in others.items()}
    method = next(m for m, other in others.items() if other.folder == run.folder)
    models = {m: t for m, t in models.items() if m != method and list(t.video) == list(own.video)}
    if "supervised" in models:
        models = {"supervised": models.pop("supervised"), **models}
    models[method] = own
    store = store_of(run)
    wrong = own[~own.video_right].sort_values("video_confidence", ascending=False, kind="stable")
    better = (
        show.instructive(models, _FILMS) if next(iter(models)) == "supervised" != method else wrong.head(0)
    )
    told: dict = {"without": "", "better": [], "wrong": []}
    for kind, chosen in (("better", better), ("wrong", wrong.head(_FILMS))):
        for row in chosen.itertuples():
            if row.video not in store.table.index or not store.path(row.video).exists():
                told["without"] = (
                    "The frames of some videos are not here any more; data_prep makes them anew."
                )
                continue
            lines = show.answers(models, row.video)
            told[kind].append(media.film(store, row.video, title=row.class_name, lines=lines))
    return told
