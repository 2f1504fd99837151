"""A data set small enough to train in seconds, prepared once and shared by all tests."""

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

# before torch: tests run side by side, and the same bits need the same threads
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from support import kernels
from support.helpers import TINY, project_copy

from videossl_core import params, prepare

torch.set_num_threads(1)
# What a training imports, and what it does at its first step or view; a second each, once for all processes.
multiprocessing.set_forkserver_preload(
    ["videossl_core.training", "torch._dynamo", "torchvision.transforms.v2"]
)

# Files whose tests take longest begin, so that at the end no processor waits for the other's.
LONGEST = [
    "test_notebooks",
    "test_faults",
    "test_grid",
    "test_distributed",
    "test_installing",
    "test_own_method",
]

FAULTS: list[tuple[str, int, str]] = []


def pytest_configure(config):
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # tests run here
        forkserver.ensure_running()  # before the engine starts one without torch


def pytest_addoption(parser):
    parser.addoption("--times", type=int, default=4, help="how often each random fault is provoked")


@pytest.fixture(scope="session")
def times(request) -> int:
    return request.config.getoption("--times")


@pytest.fixture
def fault():
    """Note for the table at the end: what was done to the engine, how often, and what it lost."""
    return lambda what, times, lost: FAULTS.append((what, times, lost))


def pytest_collection_modifyitems(items):
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def pytest_terminal_summary(terminalreporter):
    if FAULTS:
        terminalreporter.section("faults provoked")
        for what, times, lost in FAULTS:
            terminalreporter.line(f"{what:<72} {times:>6}   lost: {lost}")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """outputs folder with the tiny data set rendered, decoded and seen by the teacher."""
    outputs = tmp_path_factory.mktemp("outputs")
    prepare.prepare(params.load(**TINY, outputs=outputs), with_teacher=True)
    return outputs


@pytest.fixture
def tiny(prepared, tmp_path):
    """Make parameters for the tiny data set whose runs land in this test's own folder."""

    def make(**given) -> params.Params:
        p = params.load(**TINY | {"outputs": tmp_path / "outputs"} | given)
        if not p.data_dir.exists():
            p.data_dir.parent.mkdir(parents=True)
            p.data_dir.symlink_to(prepared / "tiny" / "data")
        return p

    return make


@pytest.fixture(scope="session")
def published_lists() -> Path:
    """Folder with the official and the authors' lists, where the machine has them."""
    beside = [params.ROOT / "data", params.ROOT.parent / "shared/data/splits"]
    for folder in filter(None, [os.environ.get("VIDEOSSL_LISTS"), *beside]):
        if (Path(folder) / "ucfTrainTestlist").is_dir():
            return Path(folder)
    pytest.skip("no published lists: set VIDEOSSL_LISTS to the folder that holds ucfTrainTestlist/")


@pytest.fixture(scope="session")
def forked_kernels(tmp_path_factory):
    """Notebooks get kernels that start in a second."""
    folder = tmp_path_factory.mktemp("kernels")
    server = kernels.start(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        yield folder
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def lab(prepared, tmp_path_factory):
    """A copy of the project whose params/ knows the tiny data set, away from the real outputs."""
    return project_copy(tmp_path_factory.mktemp("lab"), prepared)


@pytest.fixture
def project(lab, forked_kernels, request, monkeypatch):
    """Work in that copy, kernels included: it comes before the installed package on the path."""
    if request.node.get_closest_marker("kill"):
        monkeypatch.delenv("JUPYTER_PATH")  # a real kernel, as a user's is, to be killed or interrupted
    monkeypatch.setenv("PYTHONPATH", str(lab))
    monkeypatch.chdir(lab)
    return lab
