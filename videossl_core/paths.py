"""Where the project lies, where a relative path starts, and how the disk spells a name."""

import os
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The project folder, where the relative paths of defaults and of ``params/*.yaml`` start."""
if not (ROOT / "params/demo.yaml").exists():  # after a plain `pip install .`: where it is used
    _above = [Path.cwd(), *Path.cwd().parents]
    ROOT = next((folder for folder in _above if (folder / "params/demo.yaml").exists()), _above[0])


def clean_name(name: str) -> str:
    """As names of classes are compared: without spaces around, and with letters and their accents composed
    (macOS takes them apart in names of files)."""
    return unicodedata.normalize("NFC", name).strip()


def _on_disk(path: Path) -> Path:
    """The path as the disk spells its accents, of which ``clean_name`` speaks."""
    if str(path).isascii() or path.exists():
        return path
    parent = _on_disk(path.parent)
    names = os.listdir(parent) if parent.is_dir() else []
    return parent / next((name for name in names if clean_name(name) == clean_name(path.name)), path.name)


def from_here(path: str | Path) -> Path:
    """A path as the user gives it: relative ones are looked for where he stands, then in the project; a new
    file goes where its folder is. papermill starts a kernel in the folder of the shell or of ``--cwd``."""
    here, project = (_on_disk(start / Path(path).expanduser()) for start in (Path.cwd(), ROOT))
    if here.exists() or project.exists():
        return here if here.exists() else project
    # JupyterLab starts a kernel beside the notebooks: what lies there is found, but nothing is written there
    return here if here.parent.is_dir() and Path.cwd() != ROOT / "notebooks" else project


def places() -> str:
    """For the message that a path leads nowhere."""
    return f"a relative path starts in {', or else in '.join(dict.fromkeys(map(str, (Path.cwd(), ROOT))))}"


def in_project(path: Path) -> Path:
    """A path of the parameters as an absolute one: a relative one starts in the project."""
    return _on_disk((ROOT / path.expanduser()).resolve())
