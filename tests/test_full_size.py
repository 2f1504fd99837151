"""The commands of README, docs and parameter files for the paper's data sets, as they stand there.

Real: the official lists of UCF101 and HMDB51, the authors' label lists, the parameter files, the network, its
crop, papermill, torchrun and make. Linked: every listed video is one of four grey clips of 24 frames, which
are rendered here, decoded and seen by the teacher once. Kinetics has the 144,952 names of the authors' lists
at hand. Weights lie where a download would have put them, and are random. Added to each command: one step of
two clips a process in fp32 (``auto`` first checks bf16); it is interrupted when it evaluates all test videos.
"""

import json
import os
import re
import shutil
import sys

import pytest
import torch
from support.helpers import small_videos
from torchvision.models import get_model

from benchmarks import rehearsal
from videossl_core import evaluation, params, prepare, runs, training
from videossl_core.data.datasets import SOURCES
from videossl_core.paths import ROOT

pytestmark = pytest.mark.slow
FULL = r"(?:-p dataset |DATASET=)(?:ucf101|hmdb51|kinetics100|kinetics400)\b"
PLACES = {  # what the commands call a folder, and where the parameter files expect it
    "<UCF-101>": "data/UCF-101",
    "/data/ucf101": "data/UCF-101",
    "<ucfTrainTestlist>": "data/ucfTrainTestlist",
    "/data/lists": "data/ucfTrainTestlist",
    "<the authors' lists>": "data/videossl/ucf101",
}
TRAIN = "papermill notebooks/train.ipynb outputs/train.ipynb"
STEPS = "-p steps 1 -p precision fp32 -p batch_size"
ROLES = {  # of a data set, its pool, its classes and the share of labels: labelled, unlabelled, test videos
    ("ucf101", "videossl", 101, 5): (476, 9061, 3783),
    ("ucf101", "videossl", 101, 10): (953, 8584, 3783),
    ("hmdb51", "videossl", 51, 40): (2094, 3142, 1530),
    ("hmdb51", "official", 51, 40): (1428, 2142, 1530),
    ("kinetics100", "videossl", 100, 10): (8757, 79281, 4706),
    ("kinetics400", "videossl", 100, 10): (8757, 79281, 4706),
    ("kinetics400", "videossl", 400, 10): (22427, 126339 - 22427, 18613),
}


def commands() -> list[str]:
    """Whole commands, and parameters within the text, which ``train`` is to take."""
    found = []
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("params/*.yaml")]:
        text = re.sub(r" *\\\n#? *", " ", path.read_text())
        found += re.findall(r"(?:papermill notebooks|torchrun|make grid)[^`\n]*", text)
        found += [
            f"{TRAIN} {given}" for given in re.findall(r"(?:`|[:#] +)(-p dataset [^`\n]*[^`.\n])", text)
        ]
    return sorted({command for command in found if re.search(FULL, command)})


PORT = str(20_000 + os.getpid() % 20_000)  # of torchrun


@pytest.fixture(scope="module")
def full_size(published_lists, lab):
    """A copy of the project that has all videos below data/, and their frames and targets below outputs/."""
    data, downloads = lab / "data", lab / "torch/hub/checkpoints"
    for folder in (data, downloads):
        folder.mkdir(parents=True)
    for name in ("ucfTrainTestlist", "testTrainMulti_7030_splits", "videossl"):
        (data / name).symlink_to(published_lists / name)
    (lab / ".venv").symlink_to(sys.prefix)
    for name, file in (("resnet50", "resnet50-0676ba61.pth"), ("r3d_18", "r3d_18-b3b3357e.pth")):
        torch.save(get_model(name).state_dict(), downloads / file)
    few = [lab / "few" / video for video in small_videos(lab / "few", [f"{i}.mp4" for i in range(4)], 24)]
    given = {"outputs": lab / "outputs", "teacher_weights": downloads / "resnet50-0676ba61.pth"}
    for name, root, lists in (
        ("ucf101", "UCF-101", "ucfTrainTestlist"),
        ("hmdb51", "hmdb51", "testTrainMulti_7030_splits"),
        ("kinetics400", "kinetics400", "videossl/kinetics"),
    ):
        p = params.load(dataset=name, root=data / root, lists=data / lists, **given)
        if name == "kinetics400":
            lines = "\n".join(path.read_text() for path in p.lists.glob("*.lst")).split("\n")
            videos = sorted({line.rpartition("*")[0] for line in lines if line})
        else:
            videos = [video for video, *_ in SOURCES[name](p).rows]
        rehearsal.link(p, videos, few)
    (lab / "outputs/kinetics100").mkdir()
    (lab / "outputs/kinetics100/data").symlink_to(lab / "outputs/kinetics400/data")
    yield lab
    for name in ("data/UCF-101", "data/hmdb51", "data/kinetics400", "outputs"):  # half a million links
        shutil.rmtree(lab / name)


def run_until(project, done, command: str) -> None:
    for name, place in PLACES.items():
        command = command.replace(name, place)
    rehearsal.run_until(done, command, project, TORCH_HOME=str(project / "torch"), PET_MASTER_PORT=PORT)


@pytest.mark.parametrize("command", commands())
def test_command(full_size, project, command):
    """Index, split and a step, by the published counts; of a grid, what all its runs begin with."""
    if command.startswith("make grid"):
        command = command.replace("grid", "--old-file=.venv/ready grid", 1)
        run_until(project, lambda: False, f'{command} ARGS="--nolock --until prepare"')
        assert (project / "outputs/ucf101/grid/prepared.done").exists()
        return

    def logs():
        return [log for log in project.glob("outputs/*/*/*/seed0/log.csv") if rehearsal.last_step(log) == 1]

    run_until(project, logs, f"{command} {STEPS} {8 if 'torchrun' in command else 2}")
    run = runs.Run(logs()[0].parent)
    p, split, checkpoint = params.Params(**run.read_params()), run.read_split(), run.read_checkpoint()
    assert not run.finished
    shutil.rmtree(run.folder)
    expected = ROLES[p.dataset, p.hmdb51_pool, split.label.nunique(), p.label_pct]
    assert tuple(split.role.value_counts()[["labelled", "unlabelled", "test"]]) == expected
    assert checkpoint["step"] == 1


def test_interrupted_run_resumes(full_size, project):
    """All else is as in params/ucf101.yaml. A handful of test videos is evaluated after the first step and
    from the last checkpoint."""
    given = {"seed": 1, "steps": 2, "batch_size": 2, "eval_every": 1, "eval_videos": 2}
    words = " ".join(f"-p {name} {value}" for name, value in given.items())
    run = runs.Run(project / "outputs/ucf101/videossl/10/seed1")
    for done in (
        lambda: rehearsal.last_step(run.metrics) == 1,
        lambda: "resumed" in run.read_provenance() and rehearsal.last_step(run.log) == 2,
    ):
        run_until(project, done, f"{TRAIN} -p dataset ucf101 -p label_pct 10 {words}")
    recorded = json.loads(run.params.read_text().replace(str(project), str(ROOT)))
    usual = params.load(dataset="ucf101", label_pct=10).model_dump(mode="json")
    changed = {name: value for name, value in recorded.items() if value != usual[name]}
    assert changed.keys() - given.keys() <= {"lists", "label_list"}  # which are links here
    assert {name: changed[name] for name in given} == given
    evaluated = runs.read_table(run.metrics)
    assert list(evaluated.subset) == ["test", "unlabelled"]
    assert list(evaluated.videos) == [2, 2]
    p = params.Params(**run.read_params())
    predict, classes = training.load_predictor(run, p)
    few = evaluation.evenly_spaced(run.read_split().query("role == 'test'"), 3)
    predictions = predict(few, prepare.open_store(p, p.data_dir))
    assert predictions.video_probs.shape == (3, len(classes)) == (3, 101)
