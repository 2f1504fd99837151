"""Tables of finished runs as Markdown, written into a page of ``docs/`` between ``<!-- name -->`` marks."""

import re

import pandas as pd

from videossl_core.methods import METHODS
from videossl_lab import claims, results
from videossl_lab.plots import TITLES


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table with the index as its first column."""
    lines = [[table.index.name or "", *table.columns], ["---"] * (table.shape[1] + 1)]
    lines += [[str(cell) for cell in row] for row in table.itertuples(name=None)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def over_seeds(values: pd.Series) -> str:
    """Mean ± standard deviation (seeds), or the value of one seed."""
    spread = f" ± {values.std():.1f} ({len(values)})" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}"


def video_top1(rows: pd.DataFrame) -> pd.DataFrame:
    """Label fractions by method: video_top1 over the seeds."""
    plain = rows[rows.variant == ""]
    cells = plain.groupby(["label_pct", "method"]).video_top1.agg(over_seeds).unstack()
    cells = cells[[name for name in METHODS if name in cells]].fillna("–")
    cells.index = [f"{pct:g}" for pct in cells.index]
    return cells.rename(columns=TITLES).rename_axis("% labels")


def nouns_and_verbs(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the demo's runs, by method: the share of test videos whose noun, verb and both are known."""
    plain = rows[rows.variant == ""]
    shares = results.nouns_and_verbs(results.predicted_classes(plain))
    method = [name.split("/")[0] for name in shares.index]
    cells = shares.groupby(method).agg(over_seeds).rename_axis("method")
    return cells.loc[[name for name in METHODS if name in cells.index]].rename(index=TITLES)


def tables(rows: pd.DataFrame) -> dict[str, str]:
    """The tables of one data set's runs, by the name of their mark."""
    predicted = results.predicted_classes(rows)
    if len(results.nouns_and_verbs(predicted)):
        return {"nouns_and_verbs": markdown(nouns_and_verbs(rows))}
    runs = claims.Runs(rows, predicted)
    made = {
        "video_top1": markdown(video_top1(rows)),
        "claims": markdown(claims.claims(runs).set_index("section")),
        "variants": markdown(runs.variants().rename(index="`{}`".format)),
    }
    tuned = results.as_plain(rows, predicted, "tuned")
    if len(tuned[0]):
        judged = claims.claims(claims.Runs(*tuned))
        made["tuned"] = markdown(video_top1(tuned[0]))
        made["tuned_claims"] = markdown(judged[judged.pairs > 0].set_index("section"))
    return made


def fill(text: str, tables: dict[str, str]) -> str:
    """The page with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced by the tables.

    Raises:
        ValueError: the page has no such mark.
    """
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        text, count = re.subn(pattern, lambda m, t=table: f"{m[1]}{t}{m[2]}", text, flags=re.S)
        if not count:
            raise ValueError(f"the page has no <!-- {name} --> for this table")
    return text
