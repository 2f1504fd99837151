"""A data set small enough to train in seconds, prepared once for all tests, and copies of the project.

Only processes that run tests load this: torch and the engine take seconds.
"""

import multiprocessing
import os
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from support import kernels
from support.helpers import TINY, project_copy
from videossl_core import params, paths, prepare, provenance, teacher

torch.set_num_threads(1)


def pytest_configure(config):
    """Processes that tests start are forks of one that has imported what they need, for a training also what
    its first step and view import. The fast lane only decodes in processes."""
    training = ["videossl_core.training", "torch._dynamo", "torchvision.transforms.v2"]
    fast = "not slow" in config.option.markexpr
    multiprocessing.set_forkserver_preload(["videossl_core.data.frames"] if fast else training)
    forkserver.ensure_running()  # before the engine starts one


@pytest.fixture(scope="session", autouse=True)
def read_once():
    """The tiny data set's teacher and the list of packages: a third of what hundreds of tiny runs compute."""
    build, name = teacher.Classifier, TINY["teacher"]

    @cache
    def shared() -> teacher.Classifier:
        classifier = build(name)
        classifier.to = lambda device: classifier if device == "cpu" else build(name).to(device)
        return classifier

    def classifier(*given):
        return shared() if given in [(name,), (name, None)] else build(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "Classifier", classifier)
        patch.setattr(provenance, "installed", cache(provenance.installed))
        yield


@pytest.fixture(scope="session")
def times(request) -> int:
    return request.config.getoption("--times")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """outputs folder with the tiny data set rendered, decoded and seen by the teacher; for all tests."""
    together = "PYTEST_XDIST_WORKER" in os.environ
    outputs = (
        tmp_path_factory.getbasetemp().parent / "prepared" if together else tmp_path_factory.mktemp("out")
    )
    with FileLock(f"{outputs}.lock"):
        prepare.prepare(params.load(**TINY | {"method": "probe"}, outputs=outputs))  # features of all videos
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
    beside = [paths.ROOT / "data", paths.ROOT.parent / "shared/data/splits"]
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
