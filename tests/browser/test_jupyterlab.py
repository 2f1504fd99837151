"""Every notebook in JupyterLab, run by a click on "Run All Cells", as it comes from the repository."""

import pytest

from videossl_core.params import ROOT

pytestmark = pytest.mark.browser
OWN = {"annotate", "qualitative", "tour"}  # run by a test of their own
NAMES = sorted({path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - OWN)


@pytest.mark.parametrize("name", NAMES)
def test_run_all(notebook, name):
    book = notebook(name)
    book.run_all(seconds=240)
    book.check()
