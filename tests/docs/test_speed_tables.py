"""The tables of the page about speed are drawn from what the benchmarks wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def speed_tables(docs_module):
  return docs_module("speed_tables")


def cells(table):
  return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


@pytest.mark.parametrize("name", ["updates", "norms", "layers", "convolutions", "parametrizations"])
def test_rows_have_as_many_cells_as_the_head(name, speed_tables):
  head, _, *rows = cells(getattr(speed_tables, name)())
  assert rows
  assert all(len(row) == len(head) and row[1] for row in rows)


def test_numbers_are_those_of_the_files(speed_tables):
  updates = json.loads((speed_tables.RESULTS / "update.json").read_text())["results"]
  rows = cells(speed_tables.updates())[2:]
  ratios = [f"{x['rows']['spectral_decay']['ratio_to_adamw']:.2f}" for x in updates]
  assert [row[1] for row in rows] == ratios
  (result,) = json.loads((speed_tables.RESULTS / "convolutions.json").read_text())["results"]
  assert [row[0] for row in cells(speed_tables.convolutions())[2:]] == list(result["rows"])


def test_the_page_shows_each_table_and_its_machine(speed_tables):
  page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
  for name, file in [
    ("updates", "update"),
    ("norms", "norms"),
    ("layers", "spectral_norm"),
    ("convolutions", "convolutions"),
    ("parametrizations", "parametrizations"),
  ]:
    assert f'speed_tables.{name}() + "\\n" + speed_tables.machine("{file}")' in page
    assert "JAX" in speed_tables.machine(file)
