"""A smaller dose of ``make fuzz``."""

import pytest
from support import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS, ids=lambda kind: kind.__name__)
def test_broken_input(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sandbox").mkdir()
    assert kind(fuzz.KINDS[kind] // 15, tmp_path / "sandbox") == []
