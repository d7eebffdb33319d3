"""The benchmark of parametrizations runs, on small layers."""

import importlib
from pathlib import Path

import pytest

if not (Path(__file__).parents[2] / "benchmarks" / "speed").is_dir():
  pytest.skip("a tree without benchmarks/, such as an sdist", allow_module_level=True)


def test_every_layer_has_a_row_beside_its_plain_one(monkeypatch):
  module = importlib.import_module("benchmarks.speed.parametrizations")
  for name, sizes in (
    ("DENSE", ((2, 4),)),
    ("RESIDUAL", ((2, 4, 6),)),
    ("CONVOLUTION", ((1, 4, 2),)),
  ):
    monkeypatch.setattr(module, name, sizes)
  result = module.run(blocks=2)
  assert len(result["rows"]) == 3
  for rows in result["rows"].values():
    assert "plain" in rows
    assert all(row["median_ms"] > 0 for row in rows.values())
  module.show(result)
