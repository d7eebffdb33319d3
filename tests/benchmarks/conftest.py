"""Makes `benchmarks`, which is not installed, importable."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _repository_root_on_path(monkeypatch):
  monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
