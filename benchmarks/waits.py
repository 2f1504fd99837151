"""What a newcomer waits for, in a fresh clone: ``make waits``. It takes half an hour; let nothing else run.

Every time stands beside the machine's matrix rate while it was taken. Their product is the work, by which
machines can be compared: a machine with half the rate waits about twice as long.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd

from benchmarks.bench import machine
from videossl_core.data import files, pool
from videossl_core.paths import ROOT
from videossl_lab import estimate, page
from videossl_lab.live import duration
from videossl_lab.make_demo import WAITS

PUBLISHED = ROOT / "outputs" / "reference" / "bench" / WAITS
LABELS = 30


def label_some(clone: Path) -> None:
    """The labels of 30 videos, of each class in turn, as a person would leave them."""
    videos = sorted((clone / "outputs/my_videos/data/videos").glob("*.mp4"), key=lambda v: v.stem[-3:])
    rows = [f"{v.name},{v.stem.rsplit('_', 2)[0]}," for v in videos[:LABELS]]
    (videos[0].parent / "labels.csv").write_text("\n".join(["video,label,split", *rows]) + "\n")


def forget_the_demo(clone: Path) -> None:
    shutil.rmtree(clone / "outputs/demo", ignore_errors=True)


def nothing(clone: Path) -> None:
    pass


PAPERMILL = ".venv/bin/papermill --no-progress-bar notebooks"
# What is waited for: what to do in the clone beforehand, and the command.
WAITED: dict[str, tuple[Callable[[Path], None], str]] = {
    "set-up, packages cached": (nothing, "make setup"),
    "the tour, from nothing": (nothing, f"{PAPERMILL}/tour.ipynb outputs/tour.ipynb"),
    "the demo, from nothing": (forget_the_demo, "make demo"),
    "annotate, until the first clip": (nothing, f"{PAPERMILL}/annotate.ipynb outputs/annotate.ipynb"),
    f"annotate, {LABELS} labels, no network": (
        label_some,
        f"{PAPERMILL}/annotate.ipynb outputs/annotate.ipynb",
    ),
    f"annotate, {LABELS} labels, both networks": (
        label_some,
        f"{PAPERMILL}/annotate.ipynb outputs/annotate.ipynb -p networks true",
    ),
    "make test-fast": (nothing, "make test-fast"),
    "make test": (nothing, "make test"),
}


def measure(clone: Path, only: list[str]) -> pd.DataFrame:
    """A row for each that is waited for: its seconds, and the matrix rate in GFLOP/s, before and after."""
    rows = []
    for what, (before, command) in WAITED.items():
        if only and not any(words in what for words in only):
            continue
        before(clone)
        rates, start = [estimate.matrix_rate()], time.perf_counter()
        subprocess.run(command.split(), cwd=clone, check=True)
        seconds = time.perf_counter() - start
        rates.append(estimate.matrix_rate())
        gflops = round(sum(rates) / 2)
        row = {"what": what, "command": command, "seconds": round(seconds), "gflops": gflops}
        rows.append(row | {"machine": f"{pool.cores()} cores, {machine('cpu')}", "date": date.today()})
        print(f"{what}: {duration(seconds)} at {gflops} GFLOP/s", flush=True)
    return pd.DataFrame(rows)


def table(waits: pd.DataFrame) -> str:
    """The waits of each machine as Markdown: minutes, and the work, seconds times matrix rate, in TFLOP."""
    work = (waits.seconds * waits.gflops / 1000).round().astype(int).astype(str)
    cells = waits.assign(cell=waits.seconds.map(duration) + " (" + work + ")")
    wide = cells.pivot(index="what", columns="machine", values="cell").fillna("–")
    return page.markdown(
        wide.reindex([what for what in WAITED if what in wide.index]).rename_axis("wait (work, TFLOP)")
    )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waits", description=__doc__.splitlines()[0])
    parser.add_argument("--clone", type=Path, help="an earlier one to go on in; the default is a new one")
    parser.add_argument("only", nargs="*", help="words: those with one of them in their name")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        clone = args.clone or Path(folder) / "videossl"
        if not clone.exists():
            subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        waits = measure(clone, args.only)
        demo = clone / "outputs/demo/notebooks/seed0" / WAITS
        if demo.exists():
            shutil.copy(demo, PUBLISHED.parents[1] / "demo" / WAITS)
    if PUBLISHED.exists():  # what was measured elsewhere, and not again, stays
        waits = pd.concat([pd.read_csv(PUBLISHED), waits]).drop_duplicates(["what", "machine"], keep="last")
    files.write_text(PUBLISHED, waits.to_csv(index=False))
    text = page.fill(files.read_text(ROOT / "docs/speed.md"), {"waits": table(waits)})
    files.write_text(ROOT / "docs/speed.md", text)
    print(f"{table(waits)}\n\nWritten to {PUBLISHED} and docs/speed.md")


if __name__ == "__main__":
    main()
