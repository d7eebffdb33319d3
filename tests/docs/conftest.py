"""Modules of docs/, which is no package: the build puts it on the path."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def docs_module():
  """From a name to the module."""

  def load(name):
    spec = importlib.util.spec_from_file_location(f"lipjax_docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  return load
