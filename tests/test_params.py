"""Parameters: validation, precedence of files and notebooks, and no drift between the three."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import nbformat
import pytest
import yaml
from papermill.inspection import inspect_notebook

from videossl_core import __main__, image_classifiers, methods, models, params, paths, predict
from videossl_core.data import sources, splits
from videossl_core.params import ParameterError, Params, WhichRun
from videossl_core.paths import ROOT
from videossl_lab import notebook
from videossl_lab.notebook import FigureParams

# Defaults that a notebook does not share with the others: a short run of its own, the user's own data set
OWN = {(stem, name) for stem in ("tour", "own_method") for name in ("steps", "eval_every", "variant")}
OWN |= {("annotate", "dataset")}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FILES = sorted((ROOT / "params").glob("*.yaml"))


def parameters_cell(path: Path) -> str:
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    return cells[0].source


def test_ground_floor():
    """A misspelt parameter is refused within a moment: nothing heavy is imported on the way."""
    code = (
        "import sys; from videossl_core import params\n"
        "ours = {m for m in sys.modules if m.startswith('videossl_core.')}\n"
        "assert ours == {'videossl_core.params', 'videossl_core.paths'}, ours\n"
        "heavy = {'torch', 'torchvision', 'pandas', 'numpy', 'IPython'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (params.MethodName, methods.METHODS),
        (params.SourceName, sources.SOURCES),
        (params.DrawName, splits.DRAWS),
        (params.TeacherName, image_classifiers.TEACHERS),
        (params.BackboneName, models.BACKBONES),
    ],
)
def test_names_match_tables(names, table):
    assert list(get_args(names)) == list(table)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_pctt": 10}, "unknown parameter 'label_pctt'; did you mean 'label_pct'"),
        ({"method": "video_ssl"}, "method = 'video_ssl' is not one of .*; did you mean 'videossl'"),
        ({"label_pct": 0}, "label_pct = 0: .*greater than 0"),
        ({"label_pct": 101}, "label_pct = 101: .*less than or equal to 100"),
        ({"label_pct": "ten"}, "label_pct = 'ten'"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"crop_size": 200}, "crop_size = 200 is larger than frame_size"),
        ({"label_draw": "list"}, "needs label_list"),
        ({"source": "folder"}, "needs root"),
        ({"backbone": "mvit_v1_b", "clip_frames": 8}, "takes clip_frames = 16 and crop_size = 224 only"),
        ({"backbone": "s3d"}, "'s3d' takes clip_frames from 14 and crop_size from 224 up"),
        ({"init": "kinetics400"}, "'kinetics400' is for r3d_18, .*swin3d_b; not for 'resnet10'"),
        ({"dataset": "ucf11"}, "no params/ucf11.yaml; did you mean 'ucf101'"),
        ({"dataset": "../elsewhere"}, "dataset = '../elsewhere'"),
        ({"split": 4}, "split = 4"),
        ({"device": "gpu"}, "device = 'gpu'"),
    ],
)
def test_wrong_value_is_named(given, message):
    with pytest.raises(ParameterError, match=message):
        params.load(**given)


def test_but_validates():
    p = params.load()
    assert p.but(delta=0.8, method="sd") == params.load(delta=0.8, method="sd")
    wrong = {"delta": (3, "delta = 3"), "detla": (0.8, "did you mean 'delta'")}
    wrong["crop_size"] = (100, "crop_size = 100 is larger than frame_size")
    for name, (value, message) in wrong.items():
        with pytest.raises(ParameterError, match=message):
            p.but(**{name: value})


def test_run_names_take_nothing_else():
    """A parameter of the training is refused by name, not ignored."""
    message = r"'delta': it belongs to the training. Here only .*label_pct"
    for model in (WhichRun, FigureParams, notebook.PredictParams):
        assert params.load(model, dataset="ucf101", seed=3).seed == 3
        with pytest.raises(ParameterError, match=message):
            params.load(model, delta=0.8)


def test_defaults_are_the_papers():
    p = Params()
    paper = {
        "frame_size": 136, "crop_size": 112, "clip_frames": 16, "batch_size": 128, "backbone": "resnet18",
        "lr": 0.01, "momentum": 0.9, "weight_decay": 0.001, "lr_drop_every": 40_000, "width": 1,
        "T": 10, "tau": 2 / 3, "delta": 0.95, "lambda_d": 1, "teacher": "resnet50", "hflip": False,
        "below_threshold": "soft",
    }  # fmt: skip
    assert {k: getattr(p, k) for k in paper} == paper


def test_precedence_of_files(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "params/one.yaml").write_text("source: demo\nlr: 0.5\nsteps: 7\n")
    (tmp_path / "params/two.yaml").write_text("base: one\nsteps: 8\n")
    p = params.load(dataset="two", T=3.0, delta=None)
    assert (p.lr, p.steps, p.T, p.delta) == (0.5, 8, 3.0, 0.95)
    assert params.load(dataset="mine", base="one").steps == 7
    (tmp_path / "params/bad.yaml").write_text("stepps: 8\n")
    with pytest.raises(ParameterError, match=r"bad.yaml: unknown parameter 'stepps'; did you mean 'steps'"):
        params.load(dataset="bad")
    (tmp_path / "params/bad.yaml").write_text("steps: [8\n")
    with pytest.raises(ParameterError, match=r"bad.yaml: not readable as YAML"):
        params.load(dataset="bad")
    (tmp_path / "params/bad.yaml").write_text("- steps\n")
    with pytest.raises(ParameterError, match=r"'name: value' lines"):
        params.load(dataset="bad")


def test_lists_as_text():
    assert params.load(classes="a, b,c").classes == ["a", "b", "c"]
    assert params.load(FigureParams, methods="sd,videossl").methods == ["sd", "videossl"]
    with pytest.raises(ParameterError, match="did you mean 'videossl'"):
        params.load(FigureParams, methods="sd,videosl")


def test_paths_start_at_the_project():
    assert params.load(outputs="outputs").outputs == ROOT / "outputs"
    assert params.load(label_pct=2.5, seed=3).run_dir == ROOT / "outputs/demo/videossl/2.5/seed3"


@pytest.fixture
def stands(tmp_path, monkeypatch):
    """A project and a user who stands elsewhere; both are empty."""
    project, user = tmp_path / "project", tmp_path / "user"
    (project / "params").mkdir(parents=True)
    (project / "notebooks").mkdir()
    user.mkdir()
    monkeypatch.setattr(paths, "ROOT", project)
    monkeypatch.chdir(user)
    return project, user


@pytest.mark.parametrize(
    ("given", "exist", "expected"),
    [
        ("a.mp4", ["user/a.mp4", "project/a.mp4"], "user/a.mp4"),
        ("a.mp4", ["project/a.mp4"], "project/a.mp4"),
        ("../user/a.mp4", ["user/a.mp4"], "user/a.mp4"),
        ("deep/a.mp4", ["user/deep/a.mp4"], "user/deep/a.mp4"),
        # new ones go where their folder is
        ("new.csv", [], "user/new.csv"),
        ("outputs/new.csv", ["user/outputs/x", "project/outputs/x"], "user/outputs/new.csv"),
        ("outputs/new.csv", [], "project/outputs/new.csv"),
        # as the disk spells it, in the name and on the way
        ("caf\u00e9/u\u0308.mp4", ["user/cafe\u0301/\u00fc.mp4"], "user/cafe\u0301/\u00fc.mp4"),
    ],
)
def test_given_paths_start_where_the_user_stands(stands, tmp_path, given, exist, expected):
    for name in exist:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for value in (given, Path(given)):
        assert params.load(notebook.PredictParams, videos=value).videos == tmp_path / expected


def test_paths_of_parameter_files_start_at_the_project(stands):
    project, user = stands
    (project / "params/birds.yaml").write_text("source: folder\nroot: data\n")
    for folder in stands:
        (folder / "data").mkdir()
    assert params.load(dataset="birds").root == project / "data"
    assert params.load(dataset="birds", root="data").root == user / "data"
    assert params.load(dataset="birds").outputs == project / "outputs"


def test_nothing_is_written_beside_the_notebooks(stands, monkeypatch):
    project, _ = stands
    monkeypatch.chdir(project / "notebooks")
    assert params.load(notebook.PredictParams, into="new.csv").into == project / "new.csv"
    (project / "notebooks/a.mp4").touch()
    assert params.load(notebook.PredictParams, videos="a.mp4").videos == project / "notebooks/a.mp4"


def test_missing_path_names_both_folders(stands):
    project, user = stands
    (project / "params/birds.yaml").write_text("source: csv\nroot: data\n")
    both = f"a relative path starts in {user}, or else in {project}"
    p = params.load(dataset="birds", root="nowhere", lists="t.csv")
    with pytest.raises(sources.DatasetError, match=f"{user}/nowhere: no such folder .*; {both}"):
        sources.open_root(p)
    with pytest.raises(sources.DatasetError, match=rf"No such file or directory \({both}\): .*{user}/t.csv"):
        sources.SOURCES["csv"](p)
    with pytest.raises(ParameterError, match=f"no such file or folder; {both}"):
        predict.predict_files(p, params.load(notebook.PredictParams, videos="a.mp4").videos)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("variant", 1, "1"),
        ("variant", 0.5, "0.5"),
        ("dataset", 2024, "2024"),
        ("classes", 7, ["7"]),
        ("classes", [7, "a "], ["7", "a"]),
        ("lists", 7, "7"),
        ("root", 2024, "2024"),
        ("label_list", 7, "7"),
    ],
)
def test_numbers_that_are_names(stands, name, value, expected):
    """papermill makes numbers of what looks like one."""
    project, _ = stands
    for stem, steps in (("2024", 7), ("demo", 8)):
        (project / f"params/{stem}.yaml").write_text(f"source: demo\nsteps: {steps}\n")
    p = params.load(**{name: value})
    found = getattr(p, name)
    assert (found.name if isinstance(found, Path) else found) == expected
    assert p.steps == (7 if name == "dataset" else 8)
    assert params.load(dataset="mine", base=2024).steps == 7
    with pytest.raises(ParameterError, match="device = '0'"):
        params.load(device=0)


def test_words_of_a_shell(monkeypatch):
    """``python -m videossl_core`` takes 01 for a name, and reads numbers, truth and nothing as they are."""
    load, words = (
        params.load,
        "variant 01 steps 7 lr 1e-2 tune false classes null num_workers None hflip True",
    )
    pairs = zip(*[iter(words.split())] * 2, strict=True)
    monkeypatch.setattr(sys, "argv", ["train", *(word for pair in pairs for word in ("-p", *pair))])
    loaded = []
    monkeypatch.setattr(params, "load", lambda **given: loaded.append(load(**given)) or sys.exit())
    with pytest.raises(SystemExit):
        __main__.main()
    p = load(variant="01", steps=7, lr=0.01, tune=False, hflip=True)
    assert loaded == [p]


@pytest.mark.parametrize("path", FILES, ids=lambda f: f.stem)
def test_parameter_file(path):
    p = params.load(dataset=path.stem, root="videos")
    assert p.dataset == path.stem
    text = path.read_text()
    if p.source != "demo":
        assert f"-p dataset {path.stem}" in text
    assert "dataset" not in yaml.safe_load(text)  # the file's name says it


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebook_parameters(path):
    """Names and defaults of each parameters cell agree with the model, and each has a help text."""
    cell = parameters_cell(path)
    assert cell.startswith("# Parameters of this notebook")
    name = re.search(r"notebook\.parameters\((?:\w+\.(\w+))?\)", path.read_text())[1] or "Params"
    model = getattr(params, name, None) or getattr(notebook, name)
    lines = [line for line in cell.splitlines() if not line.startswith("#")]
    for node, line in zip(ast.parse(cell).body, lines, strict=True):
        name, default = node.target.id, ast.literal_eval(node.value)
        assert name in (*model.model_fields, "base")
        assert "  # " in line, f"{name} has no help text"
        value = getattr(params.load(model), name, None)
        if name == "base":
            assert (ROOT / f"params/{default}.yaml").exists()
        elif default is not None and (path.stem, name) not in OWN and not isinstance(value, Path):
            assert value in (default, default.split(",") if isinstance(default, str) else default)


OWN_CELL = "# Parameters of this notebook\nseed: int = 1\nsteps: int = None  # iterations"
CHECK = "p = notebook.parameters()"


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        ([OWN_CELL, "import os"], {"seed": 1, "steps": None}),
        ([OWN_CELL, "# Parameters\nseed = 5"], {"seed": 5, "steps": None}),
        ([OWN_CELL, "# Parameters\nsead = 5"], {"seed": 1, "steps": None, "sead": 5}),
        # mended and run again: the old cell counts no more
        ([OWN_CELL, "# Parameters\nsead = 5", CHECK, "# Parameters\nseed = 6"], {"seed": 6, "steps": None}),
        ([OWN_CELL, CHECK, "import os", OWN_CELL.replace("1", "9")], {"seed": 9, "steps": None}),
        # however the cell begins
        (["%%time\nseed = 2\nsteps = 3"], {"seed": 2, "steps": 3}),
        (["# Paramètres\nseed = 2\nsteps = 3"], {"seed": 2, "steps": 3}),
        (["seed = 2\nsteps = 3", "import os"], {"seed": 2, "steps": 3}),
        # however it assigns
        (["seed, steps = 2, 3"], {"seed": 2, "steps": 3}),
        (["seed = steps = 3"], {"seed": 3, "steps": 3}),
        (["seed = 1 + len('a')\nsteps = 3"], {"seed": 2, "steps": 3}),
        # in a cell of its own
        (["seed = 2"], {"seed": 2}),
        ([OWN_CELL, "delta = 0.5"], {"seed": 1, "steps": None, "delta": 0.5}),
        ([OWN_CELL, "detla = 0.5"], {"seed": 1, "steps": None, "detla": 0.5}),
        ([OWN_CELL, "delta = 0.5", CHECK, "import os", CHECK], {"seed": 1, "steps": None, "delta": 0.5}),
        # beside other work
        (["import os\nseed = 2\nsteps = 3"], {"seed": 2, "steps": 3}),
        (["import os\nseed = 2\nsteps = 3", "# Parameters\nsteps = 5"], {"seed": 2, "steps": 5}),
        (["if True:\n    seed = 2\nprint(seed)"], {"seed": 2}),
        # in several cells, of which none sets all that the one before did
        (["seed = 2\nsteps = 3\nlr = 1", "seed = 4\nT = 1"], {"seed": 4, "steps": 3, "lr": 1, "T": 1}),
        ([OWN_CELL, CHECK, "delta = 0.5\nT = 1"], {"seed": 1, "steps": None, "delta": 0.5, "T": 1}),
        # the notebook's own cell, run again with a line less; a cell of one's own replaces nothing
        (["dataset = 'a'\nseed = 2", CHECK, "dataset = 'a'\nT = 1"], {"dataset": "a", "T": 1}),
        (["dataset = 'a'\nseed = 2", CHECK, "seed = 3\nT = 1"], {"dataset": "a", "seed": 3, "T": 1}),
        # what later cells do with the same names is not about parameters
        ([OWN_CELL, CHECK, "steps = [1]\nprint(steps)"], {"seed": 1, "steps": None}),
    ],
)
def test_parameters_from_cells(cells, values):
    namespace: dict = {"get_ipython": lambda: None, "notebook": notebook}
    for cell in cells:
        if cell != CHECK:
            exec("\n".join(line for line in cell.splitlines() if line[:1] != "%"), namespace)
    assert notebook.given(["", *cells], namespace) == values
    if not {"sead", "detla"} & values.keys():
        return
    with pytest.raises(ParameterError, match="did you mean"):
        params.load(**values)


@pytest.mark.parametrize("cells", [[], [""], ["import os"], ["x = 3"]])
def test_no_parameters_is_an_error(cells):
    with pytest.raises(ParameterError, match="no parameters found"):
        notebook.given(cells, {})


def test_parameters_of_a_run(tmp_path):
    p = params.load(outputs=tmp_path, method="sd", lr=0.5)
    which = params.load(WhichRun, dataset="of_another_user")  # its runs may be looked at
    assert which.run_dir == ROOT / "outputs/of_another_user/videossl/10/seed0"
    with pytest.raises(ParameterError, match=r"train it: papermill .* -p method sd"):
        params.of_run(p)
    p.run_dir.mkdir(parents=True)
    (p.run_dir / "params.json").write_text(json.dumps(p.model_dump(mode="json") | {"outputs": "/moved/away"}))
    asked = params.load(outputs=tmp_path, method="sd", num_workers=1)
    assert params.of_run(asked) == p.but(num_workers=1)
    assert p.differing(json.loads((p.run_dir / "params.json").read_text())) == {}
    assert asked.differing(p.model_dump(mode="json")) == {"lr": (0.5, 0.05)}
    before = p.model_dump(
        mode="json", exclude={"augment", "teacher_view"}
    )  # recorded before there were these
    assert p.differing(before) == {}
    assert p.but(augment="standard").differing(before) == {"augment": ("crop", "standard")}


def test_conda_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, *others = environment["dependencies"]
    assert python.startswith("python=3.")
    assert others == ["pip", {"pip": ["-e .[test]"]}]


def test_help_of_a_notebook():
    parameter = inspect_notebook(ROOT / "notebooks/train.ipynb")["label_pct"]
    assert parameter["default"] == "10"
    assert "label" in parameter["help"]
