"""``make report``: a page that needs neither a kernel nor a network, from two tiny runs."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from support.helpers import TINY

from videossl_core import params, training
from videossl_lab import report, results

VOID = {"meta", "img", "br", "hr", "link"}


class Page(HTMLParser):
    """Tags with their attributes, and whether every one that is opened is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.tags, self.open, self.words = text, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.slow
def test_report_page(project):
    """The numbers of the runs, the paper's beside them, every picture described, films inside, no request."""
    which = {"dataset": "tiny", "label_pct": 50, "outputs": project / "outputs"}
    for method in ("supervised", "videossl"):
        training.train(params.load(**TINY | which, method=method))
    training.train(params.load(**TINY | which | {"label_pct": 30}))
    command = [sys.executable, "-m", "videossl_lab.report", "tiny"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    path = project / "outputs/report/tiny.html"
    assert f"Report: {path}" in done.stdout

    page = Page(path.read_text())
    assert page.open == []
    words = " ".join(page.words)
    for row in results.find(project / "outputs", "tiny").itertuples():
        assert f"{row.clip_top1:.1f}" in words
        assert f"{row.video_top1:.1f}" in words
    assert "(42.0)" not in words  # the paper has no such data set
    assert "import pandas" not in words
    images = page.all("img")
    assert len(images) >= 6  # Figure 1, curves and confusion of two runs, gain by class
    for image in images:
        assert len(image["alt"].split()) >= 8
        assert image["src"].startswith("data:image/png;base64,")
    films = {film["src"].partition(",")[0] for film in page.all("video")}
    assert films == {"data:video/mp4;base64"}
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    assert not re.search(r"url\(|@import|https?://", page.text)


def test_report_without_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"no finished run in .*birds: make demo makes two"):
        report.main(["birds"])
