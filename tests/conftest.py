"""A data set small enough to train in seconds, prepared once and shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

from videossl_core import params, prepare

TINY = {
    "dataset": "tiny",
    "source": "demo",
    "demo_per_class": 3,
    "frame_size": 32,
    "crop_size": 24,
    "clip_frames": 8,
    "teacher": "efficientnet_lite0",
    "backbone": "resnet10",
    "width": 0.125,
    "batch_size": 4,
    "steps": 4,
    "label_pct": 50.0,
    "eval_every": 2,
    "eval_videos": 4,
    "log_every": 1,
}

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """outputs folder with the tiny data set rendered, decoded and seen by the teacher."""
    outputs = tmp_path_factory.mktemp("outputs")
    prepare.prepare(params.load(**TINY, outputs=outputs), with_teacher=True)
    return outputs


@pytest.fixture
def tiny(prepared, tmp_path):
    """Make parameters for the tiny data set whose runs land in this test's own folder."""
    data = tmp_path / "outputs" / "tiny" / "data"
    data.parent.mkdir(parents=True)
    data.symlink_to(prepared / "tiny" / "data")

    def make(**given) -> params.Params:
        return params.load(**TINY | {"outputs": tmp_path / "outputs"} | given)

    return make


@pytest.fixture(scope="session")
def published_lists() -> Path:
    """Folder with the official and the authors' lists, where the machine has them."""
    places = [
        os.environ.get("VIDEOSSL_LISTS"),
        params.ROOT / "data",
        params.ROOT.parent / "shared/data/splits",
    ]
    for place in places:
        if place and (Path(place) / "ucfTrainTestlist").is_dir():
            return Path(place)
    pytest.skip(
        "the published lists are not here: set VIDEOSSL_LISTS to the folder that holds ucfTrainTestlist/"
    )
