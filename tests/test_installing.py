"""The ways to install of docs/installing.md, as far as they go without Docker and PyTorch's index."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from videossl_core.paths import ROOT

INDEX = "https://download.pytorch.org/whl/cpu"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = dict(re.findall(r"^(torch|torchvision)==(.*)$", (ROOT / "requirements.lock").read_text(), re.M))


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Without the settings of pip, and of the make that runs the tests."""
    own = {name: value for name, value in os.environ.items() if not re.match("PIP_|MAKE|MFLAGS", name)}
    command = ["make", f"PYTHON={sys.executable}", *words]
    return subprocess.run(command, cwd=folder, env=own | environment, capture_output=True, text=True)


def would_run(command: str) -> str:
    """What a ``make ...`` would run where there is no environment yet."""
    done = make(ROOT, "--dry-run", "--always-make", *command.split()[1:])
    assert done.returncode == 0, done.stderr
    return done.stdout


def wheel(index: Path, name: str, cuda: str | None) -> None:
    """A package with nothing but what PyTorch's own says of CUDA."""
    file, info = f"{name}-{LOCK[name]}-py3-none-any.whl", f"{name}-{LOCK[name]}.dist-info"
    (index / name).mkdir(parents=True)
    (index / name / "index.html").write_text(f"<a href={file}>{file}</a>")
    with zipfile.ZipFile(index / name / file, "w") as archive:
        archive.writestr(f"{name}/version.py", f"cuda = {cuda!r}")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {LOCK[name]}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


CASES = {
    "unreachable": ("no index", "No PyTorch without CUDA from file:"),
    "CUDA from elsewhere": ("13.0", "AssertionError: pip took a PyTorch with CUDA"),
    "good": (None, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize(("cuda", "says"), CASES.values(), ids=CASES.keys())
def test_setup_without_cuda(tmp_path, cuda, says):
    """Without the index, or with a PyTorch that has CUDA, it stops before the other packages."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    if cuda != "no index":
        for name in LOCK:
            wheel(tmp_path / "index", name, cuda)
    index, nowhere = ((tmp_path / name).as_uri() for name in ("index", "nowhere"))
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": nowhere}
    done = make(tmp_path, "setup", "CPU=1", f"CPU_INDEX={index}", **settings)
    assert done.returncode != 0  # for want of the other packages at the latest
    assert re.search("^" + says, done.stdout + done.stderr, re.M)
    assert ("-e '.[test]'" in done.stdout) == (cuda is None)


def test_only_pytorch_comes_from_its_index():
    commands = [line for line in would_run("make setup CPU=1").splitlines() if f"--index-url {INDEX}" in line]
    assert len(commands) == 1
    assert f"--no-deps --index-url {INDEX} $(grep -E '^torch(vision)?==' requirements.lock)" in commands[0]
    assert INDEX not in would_run("make setup CPU=")


def test_small_environment_is_not_compiled():
    for words, times in (("CPU=1", 2), ("CPU=", 0)):
        commands = would_run(f"make setup {words}")
        assert commands.count("pip install --quiet --disable-pip-version-check --no-compile ") == times


def test_conda_without_cuda():
    """The comment of environment.yml, taken in."""
    text = (ROOT / "environment.yml").read_text().replace("# - --", "- --")
    assert yaml.safe_load(text)["dependencies"][-1] == {"pip": [f"--extra-index-url {INDEX}", "-e .[test]"]}


def test_pytorch_versions_are_those_tried():
    """The range begins at the oldest pair in CONTRIBUTING.md and holds all but those said to be outside."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (2\.\d+\.\d+) \| (0\.\d+\.\d+) \| .* \| (.*) \|$", text, re.M)
    ranges = [Requirement(line).specifier for line in PROJECT["dependencies"][:2]]
    for version, specifier in zip(rows[0], ranges, strict=False):
        assert ">=" + version.removesuffix(".0") in str(specifier).split(",")
    for torch, vision, result in rows:
        inside = ranges[0].contains(torch) and ranges[1].contains(vision)
        assert inside == ("not in the range" not in result)


# ---- Containers


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, as (name, words)."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", "")
    return [(name, words) for name, _, words in (line.partition(" ") for line in text.splitlines() if line)]


def test_dockerfile():
    """Its sources are in the repository, its make command exists, and Jupyter starts by an ordinary user."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    found, stages = instructions(), {"python:3.11-slim"}
    for name, words in found:
        assert name in {"FROM", "RUN", "USER", "WORKDIR", "COPY", "ARG", "ENV", "EXPOSE", "CMD"}
        if name == "FROM":
            image, _, stage = words.split()
            assert image in stages
            stages.add(stage)
        elif name == "COPY":
            *sources, _ = [word for word in words.split() if not word.startswith("--")]
            assert all(source == "." or source in tracked for source in sources)
        elif words.startswith("make "):
            assert "-e '.[grid]' -c requirements.lock" in would_run(words)
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11")
    assert [words for name, words in found if name == "USER"] == ["lab"]
    assert ("EXPOSE", "8888") in found
    program, *options = json.loads(found[-1][1])
    assert (Path(sys.executable).parent / program).exists()
    assert not any("token" in option for option in options)  # Jupyter's own, a new one each time


def test_image_leaves_out_what_git_does():
    git, docker = (
        {
            line.replace("**/", "").replace("!/", "!").strip("/")
            for line in text.splitlines()
            if line[0] != "#"
        }
        for text in ((ROOT / name).read_text() for name in (".gitignore", ".dockerignore"))
    )
    assert docker == git


def test_dev_container():
    path = ROOT / ".devcontainer/devcontainer.json"
    made = json.loads(path.read_text())
    build = made["build"]
    assert (path.parent / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (path.parent / build["context"]).resolve() == ROOT
    assert any(words.endswith(f" AS {build['target']}") for name, words in instructions() if name == "FROM")
    assert ("USER", made["remoteUser"]) in instructions()
    assert "-e '.[test]' -c requirements.lock" in would_run(made["postCreateCommand"])


# ---- As a library


@pytest.fixture
def installed(tmp_path):
    """Run Python in a folder, with the packages as ``pip install .`` leaves them: without the project."""
    for name in ("videossl_core", "videossl_lab"):
        shutil.copytree(ROOT / name, tmp_path / "site" / name, ignore=shutil.ignore_patterns("__pycache__"))

    def run(folder: Path, *words: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    return run


def printed() -> str:
    """The example of docs/installing.md, and what became of it."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs/installing.md").read_text(), re.S)[1]
    return (
        example
        + "\nfrom videossl_core import paths\nprint(params.__file__, paths.ROOT, p.root, p.outputs, sep='|')"
    )


def test_library_starts_in_the_current_folder(installed, tmp_path):
    place, root, videos, outputs = installed(tmp_path, "-c", printed()).strip().split("|")
    assert Path(place).is_relative_to(tmp_path / "site")
    assert (root, videos, outputs) == (str(tmp_path), f"{tmp_path}/videos", f"{tmp_path}/outputs")


def test_library_in_a_clone_uses_the_clone(installed, tmp_path):
    """Also from notebooks/, where JupyterLab starts a kernel."""
    place, root, *_ = installed(ROOT / "notebooks", "-c", printed()).split("|")
    assert Path(place).is_relative_to(tmp_path / "site")
    assert root == str(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["videossl_core"], ["videossl_lab.make_demo", "demo"]], ids=lambda words: words[0]
)
def test_command_without_the_clone_says_so(installed, tmp_path, words):
    out = installed(tmp_path, "-m", *words)
    assert (
        f"{tmp_path} has no params/*.yaml: clone the project, pip install -e . in it" in out.splitlines()[-1]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
