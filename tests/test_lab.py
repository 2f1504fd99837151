"""``make lab``: JupyterLab on the tour, on localhost only, for who has the token."""

import json
import time
from contextlib import closing, suppress
from http.client import HTTPConnection
from urllib.parse import urlsplit

import psutil
import pytest
from support import server


def get(url: str) -> tuple[int, str, bytes]:
    """Status, address redirected to, content."""
    host = urlsplit(url).netloc
    with closing(HTTPConnection(host, timeout=20)) as connection:
        connection.request("GET", url.removeprefix(f"http://{host}"))
        answer = connection.getresponse()
        return answer.status, answer.getheader("Location", ""), answer.read()


@pytest.mark.slow
def test_make_lab(lab, tmp_path):
    with server.jupyterlab(lab, tmp_path) as jupyter:
        until, listening = time.monotonic() + 30, []
        while jupyter.port not in [address.port for address in listening]:
            assert time.monotonic() < until, listening
            time.sleep(0.2)
            process = psutil.Process(jupyter.process.pid)
            family = [process, *process.children(recursive=True)]
            listening = []
            for member in family:
                with suppress(psutil.NoSuchProcess):  # one of make's may have ended meanwhile
                    listening += [c.laddr for c in member.net_connections() if c.status == "LISTEN"]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert "/lab/tree/notebooks/tour.ipynb?token=" in (tmp_path / "log.txt").read_text()

        status, _, content = get(jupyter.url("api/contents/notebooks"))
        assert status == 200
        assert "train.ipynb" in [entry["name"] for entry in json.loads(content)["content"]]
        assert get(jupyter.url("api/contents/notebooks", token=False))[0] == 403
        status, where, _ = get(jupyter.url("lab", token=False))
        assert (status, where.partition("?")[0]) == (302, "/login")
        assert get(jupyter.url("api/contents/notebooks", token=False) + "?token=guess")[0] == 403
