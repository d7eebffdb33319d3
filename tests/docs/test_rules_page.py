"""The page about rules is made from the tables, and each rule says what its constant is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lipjax  # noqa: F401  (fills the records)
from lipjax.certify.primitives import RECORDS
from lipjax.certify.scalar.graph import NAMES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def rules_table(docs_module):
  return docs_module("rules_table")


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_every_rule_says_in_a_line_what_it_does(name):
  first = (RECORDS[name].transfer.__doc__ or "").split("\n\n")[0].strip()
  assert first
  assert "\n" not in first
  assert first.endswith(".")


def test_every_primitive_is_listed_once(rules_table):
  rows = [row.split("|")[1] for row in rules_table.primitives().splitlines() if row[:3] == "| `"]
  assert sorted(re.findall(r"`([^`]+)`", " ".join(rows))) == sorted(RECORDS)


def test_every_activation_has_a_row(rules_table):
  rows = [row for row in rules_table.activations().splitlines() if row.startswith("| `")]
  assert len(rows) == len(rules_table.ACTIVATIONS)
  assert "| `relu` | 0 | 1 | 1 |" in rows


def test_every_scalar_primitive_is_listed(rules_table):
  assert set(re.findall(r"`([^`]+)`", rules_table.scalar_primitives())) == set(NAMES)


def test_the_page_is_made_of_these_tables(rules_table):
  page = (DOCS / "rules.md").read_text(encoding="utf-8")
  called = re.findall(r"^Markdown\(rules_table\.(\w+)\(\)\)$", page, re.M)
  assert called == ["primitives", "activations", "scalar_primitives"]
  assert "Markdown(programs_table.programs())" in page
  assert re.search(r"^rules$", (DOCS / "index.md").read_text(encoding="utf-8"), re.M)
