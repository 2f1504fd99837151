"""Every notebook in JupyterLab, run by a click on "Run All Cells", as it comes from the repository."""

import pytest
from PIL import Image

from videossl_core.params import ROOT

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_run_all(notebook, name):
    book = notebook(name)
    book.run_all(seconds=240)
    assert book.broken() == []
    assert book.page.abroad == []
    with Image.open(book.screenshot()) as picture:
        assert picture.height > 900
