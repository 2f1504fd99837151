"""What the process that hands out the tests needs to know; the fixtures are those of ``support.fixtures``."""

import os

# before torch: tests run side by side, and the same bits need the same threads
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

# Files whose tests take longest begin, so that at the end no processor waits for the other's.
LONGEST = [
    "test_full_size",
    "test_notebooks",
    "test_faults",
    "test_grid",
    "test_distributed",
    "test_installing",
    "test_own_method",
]

FAULTS: list[tuple[str, int, str]] = []


def pytest_configure(config):
    import videossl_lab  # noqa: F401 - before nbformat, which then loads a second faster

    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # tests run here
        config.pluginmanager.import_plugin("support.fixtures")


def pytest_addoption(parser):
    parser.addoption("--times", type=int, default=4, help="how often each random fault is provoked")


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
