"""An index as long as Kinetics-400's: 300,000 entries, made of links to four videos."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from support.helpers import TINY, small_videos

from videossl_core.data.frames import FrameStore, StoreSettings

ENTRIES = 300_000

START = """
import json, sys, time
from pathlib import Path
import pandas as pd
import psutil
from videossl_core import batches, methods, params, prepare, training
me = psutil.Process()
given = json.loads(sys.argv[1])
small = prepare.prepare(params.load(**given | {"lists": given["lists"] + ".few", "dataset": "few"}))
before, start, cpu = me.memory_info().rss, time.perf_counter(), time.process_time()
p = params.load(**given)
data = prepare.prepare(p)
steps = batches.Batches(p, methods.METHODS[p.method], data.split, data.store, data.targets)
for step in range(3):
    steps[step]
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
grown = (me.memory_info().rss - before) / 2**20
least = time.process_time()  # what no start can do without: read the list and the table, look at each file
names = pd.read_csv(given["lists"]).sort_values("video").video
pd.read_csv(data.store.table_path)
assert all(Path(data.store.folder, f"{name}.frames").exists() for name in names)
least = time.process_time() - least
print(json.dumps({"rows": len(data.split), "seconds": seconds, "ratio": cpu / least, "mb": grown}))
"""


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory) -> dict:
    """Parameters of a data set whose frames are in the store already, as after a first preparation."""
    folder = tmp_path_factory.mktemp("many")
    four = small_videos(folder / "four", [f"{i}.mp4" for i in range(4)])
    settings = StoreSettings(TINY["frame_size"], 90, 8)
    given = TINY | {"dataset": "many", "source": "csv", "method": "supervised", "label_pct": 10}
    paths = {"root": "root", "lists": "many.csv", "outputs": "outputs"}
    given |= {name: str(folder / path) for name, path in paths.items()}
    classes, files = [f"class {i:03d}" for i in range(400)], [f"youtube_id_{i:07d}.mp4" for i in range(750)]
    names = [f"{c}/{f}" for f in files for c in classes]
    for dataset, count in (("many", ENTRIES), ("few", 800)):
        store = FrameStore(folder / "outputs" / dataset / "data", settings)
        store.add(four, folder / "four", workers=1)
        sources = [folder / "four" / video for video in four]
        for parent, targets, ending in (
            (folder / "root", sources, ""),
            (store.folder, [store.path(video) for video in four], ".frames"),
        ):
            links = folder / f"{dataset}{ending} links"  # one folder of links, and every class a link to it
            links.mkdir()
            parent.mkdir(exist_ok=True)
            for i, name in enumerate(files):
                os.symlink(targets[i % 4], links / f"{name}{ending}")
            for name in classes:
                (parent / name).unlink(missing_ok=True)
                os.symlink(links, parent / name)
        table = store.table.iloc[np.arange(count) // 400 % 4].copy()
        table.index = pd.Index(names[:count], name="video")
        table.sort_index().to_csv(store.table_path)
        lists = pd.DataFrame({"video": names[:count]})
        lists["split"] = np.where(lists.index % 100 > 90, "test", "train")
        lists["label"] = lists.video.str.partition("/")[0]
        lists.to_csv(given["lists"] + ("" if dataset == "many" else ".few"), index=False)
    return given


@pytest.mark.slow
def test_start_with_300_000_videos(kinetics):
    """It takes less than three times the reading that no start can do without (ten seconds where this was
    written; another machine's seconds differ), and little memory."""
    command = [sys.executable, "-c", START, json.dumps(kinetics)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    print(result.stdout)
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["rows"] == ENTRIES
    assert measured["ratio"] < 3
    assert measured["mb"] < 300
