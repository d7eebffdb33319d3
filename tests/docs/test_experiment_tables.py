"""The tables of the page about experiments are drawn from what the experiments wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = (
  "large_batches",
  "wrong_labels",
  "robustness",
  "right_norm",
  "following",
  "supervised",
  "critics",
  "gans",
  "certified",
  "plasticity",
)


@pytest.fixture(scope="module")
def tables(docs_module):
  return docs_module("experiment_tables")


def cells(table):
  return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


@pytest.mark.parametrize("name", TABLES)
def test_rows_have_as_many_cells_as_the_head(name, tables):
  for table in getattr(tables, name)().split("\n\n"):
    if table.startswith("|"):
      head, _, *rows = cells(table)
      assert rows
      assert all(len(row) == len(head) and all(row) for row in rows)


def test_numbers_and_sentences_are_those_of_the_files(tables):
  run = json.loads((tables.RESULTS / "claims.json").read_text())
  small = run["tasks"][0]["methods"]
  means = [x["chosen"]["clean"]["mean_and_standard_error"]["test"][0] for x in small.values()]
  first = tables.large_batches().split("\n\n")[0]
  assert [row[1].split(" ± ")[0] for row in cells(first)[2:]] == [f"{x:.1f}" for x in means]
  for claim, sentences in run["findings"].items():
    assert all(sentence in tables.findings("claims", claim) for sentence in sentences)


def test_what_has_not_been_run_is_said(tables, monkeypatch, tmp_path):
  monkeypatch.setattr(tables, "RUNS", {"digits": tmp_path})
  assert tables.certified() == "No run of it is kept yet.\n"


def test_the_page_shows_each_table_and_each_claim(tables):
  page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
  assert all(f"tables.{name}()" in page for name in TABLES)
  for claim in tables.runs("claims")["digits"]["findings"]:
    assert f'tables.findings("claims", "{claim}")' in page
  for setting in tables.runs("plasticity")["digits"]["findings"]:
    assert f'tables.findings("plasticity", "{setting}")' in page
