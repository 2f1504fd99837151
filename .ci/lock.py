"""Print requirements.lock: the version of every package that the project needs, as installed here.

Needs are followed from the extra ``test``, which contains all others; nothing is downloaded.
"""

from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

HEAD = """\
# Versions that the tests pass with. Made by `make lock` from what is installed;
# used by `make setup LOCK=1`, or pip install -e '.[test]' -c requirements.lock
# Without it pip takes the newest versions that pyproject.toml allows.
# Python {python} or newer."""


def needed(requirement: Requirement, versions: dict[str, str], seen: set[tuple[str, str]]) -> None:
    """Add the requirement and all that it needs in turn."""
    name = canonicalize_name(requirement.name)
    package = distribution(name)
    versions[name] = package.version.partition("+")[0]
    for extra in requirement.extras | {""}:
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for further in map(Requirement, package.requires or []):
            if further.marker is None or further.marker.evaluate({"extra": extra}):
                needed(further, versions, seen)


def oldest_python(name: str) -> Version:
    """The oldest Python that the installed version of a package runs on."""
    needs = SpecifierSet(distribution(name).metadata["Requires-Python"] or "")
    return max((Version(need.version) for need in needs if need.operator == ">="), default=Version("0"))


if __name__ == "__main__":
    versions: dict[str, str] = {}
    needed(Requirement("videossl-lab[test]"), versions, set())
    del versions["videossl-lab"]
    head = HEAD.format(python=max(map(oldest_python, versions)))
    print(head, *(f"{name}=={version}" for name, version in sorted(versions.items())), sep="\n")
