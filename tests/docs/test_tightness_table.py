"""The table of the page about ellipsoids has what the benchmark measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tightness_table(docs_module):
  return docs_module("tightness_table")


def test_every_network_has_its_row(tightness_table):
  if not tightness_table.RESULTS.exists():
    pytest.skip("a tree without benchmarks/, such as an sdist")
  (result,) = json.loads(tightness_table.RESULTS.read_text())["results"]
  names = [line.split("|")[1].strip() for line in tightness_table.table().splitlines()[2:]]
  assert list(dict.fromkeys(x.split(", radius")[0] for x in names)) == list(result["rows"])


def test_balls_and_what_is_missing(tightness_table, tmp_path):
  engines = {"product": 9.0, "liplt": 8.0, "ellipsoid": 3.0}
  ball = {"lower": 2.0, "default": {"engines": engines, "upper": 3.0}}
  row = {
    "on_balls": {"0.1": ball},
    "peers_on_balls": {"0.1": {"LipSDP-Neuron by cvxopt": {"left_out": "large"}}},
    "auto_LiRPA": {"on_balls": {"0.1": {"bound": 5.0}}},
  }
  path = tmp_path / "certify.json"
  path.write_text(json.dumps({"results": [{"rows": {"net": row}}]}))
  last = tightness_table.table(path).splitlines()[-1]
  assert last == "| net, radius 0.1 | 2 | 8 | 3 |  | too large | auto_LiRPA 5 |"
