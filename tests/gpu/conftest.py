"""What a GPU computes, compared with the CPU: ``make test-gpu``. Without one nothing is tested.

``make test-gpu ARGS="--device cpu"`` tries the tests themselves on the CPU.
"""

import pytest

from videossl_core import devices, params


def pytest_addoption(parser):
    parser.addoption("--device", default="cuda", help="where to train: cuda, or cpu to try the tests")


def pytest_configure(config):
    # on a GPU PyTorch may warn of what no CPU shows; our own warnings stay errors
    config.addinivalue_line("filterwarnings", "default::UserWarning:torch.*")
    try:
        devices.device(params.load(device=config.option.device))
    except params.ParameterError as error:
        pytest.exit(f"no GPU that PyTorch can use here: nothing was tested. {error}".strip(), returncode=0)


@pytest.fixture(scope="session")
def device(request) -> str:
    return request.config.option.device


@pytest.fixture
def gpu(device) -> str:
    """For what a CPU cannot do."""
    if device == "cpu":
        pytest.skip("needs a GPU")
    return device
