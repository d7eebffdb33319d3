"""Modules of docs/, which is no package: the build puts it on the path."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def session_patch():
  """What is patched for as long as there are tests."""
  with pytest.MonkeyPatch.context() as patch:
    yield patch


@pytest.fixture(scope="session")
def docs_module(session_patch):
  """From a name to the module; a test whose module draws what is not there is skipped."""

  # They import one another.
  session_patch.syspath_prepend(DOCS)

  def load(name):
    spec = importlib.util.spec_from_file_location(f"lipjax_docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not getattr(module, "RESULTS", DOCS).exists():
      pytest.skip("a tree without benchmarks/, such as an sdist")
    return module

  return load
