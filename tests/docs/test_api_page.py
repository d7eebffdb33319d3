"""The API page and the public names are the same list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "api.md"


@pytest.fixture(scope="module")
def public_names(docs_module):
  """docs/public_names.py, which the build of the documentation runs too."""
  return docs_module("public_names")


def test_page_lists_every_public_name_once_and_no_other(public_names):
  public_names.check(PAGE)


def test_public_names_are_found(public_names):
  names = public_names.public_names()
  assert {"spectral_norms", "Dense", "AmbiguousLeafError", "add_spectral_decay"} <= names
  assert not names & {"operators", "measure", "regularize"}


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (lambda text: text.replace(".. autofunction:: describe\n", ""), "not on the page: describe"),
    (lambda text: text + "\n.. autofunction:: certify\n", "not public: certify"),
    (lambda text: text + "\n.. autoclass:: lipjax.Dense\n", "more than once: Dense"),
  ],
  ids=["missing", "unknown", "twice"],
)
def test_a_page_that_differs_is_refused(public_names, tmp_path, edit, message):
  page = tmp_path / "api.md"
  page.write_text(edit(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
  with pytest.raises(ValueError, match=re.escape(message)):
    public_names.check(page)


def test_configuration_runs_the_check():
  text = (DOCS / "conf.py").read_text(encoding="utf-8")
  assert re.search(r"def setup\(app\):.*public_names\.check\(HERE / \"api\.md\"\)", text, re.S)


def test_names_on_all_pages_are_public():
  """Sphinx leaves a role that points nowhere as it is."""
  import lipjax

  pages = {page.name: page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")}
  names = {
    (page, name)
    for page, text in pages.items()
    for name in re.findall(r"{py:obj}`~?lipjax\.(\w+)`", text)
  }
  assert len({name for page, name in names if page == "guarantees.md"}) >= 8
  assert {x for x in names if not hasattr(lipjax, x[1])} == set()


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("  The table as text: path, shape", ["  The table as", "  text: path, shape"]),
    ("  ``{path: norm}``, of each", ["  ``{path: norm}``, of each"]),
    ("  ``{a: b}`` as :math:`x`", ["  ``{a: b}`` as", "  :math:`x`"]),
  ],
)
def test_a_colon_in_what_is_returned_makes_no_type(line, expected, docs_module, monkeypatch):
  """Seen in a browser: napoleon took "The table as text" for one."""
  # The configuration sets both, for what it starts.
  monkeypatch.setenv("PYTHONPATH", "")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  lines = ["A sentence: one.", "", "Returns:", line, "  more: of it"]
  docs_module("conf")._keep_colons(None, "function", "f", None, None, lines)
  assert lines == ["A sentence: one.", "", "Returns:", *expected, "  more: of it"]
