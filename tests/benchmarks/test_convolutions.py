"""The benchmark of convolutions: its exact norms, and a run of it on small ones."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if not (Path(__file__).parents[2] / "benchmarks" / "speed").is_dir():
  pytest.skip("a tree without benchmarks/, such as an sdist", allow_module_level=True)


def load(name):
  return importlib.import_module(f"benchmarks.speed.{name}")


def test_resnet18_has_20_convolutions():
  assert sum(row.count for row in load("convolutions_rows").RESNET18.values()) == 20


@pytest.mark.parametrize(
  "numbers",
  [
    {"stride": 2, "groups": 2},
    {"kernel_dilation": 2},
    {"input_dilation": 2},
    {"circular": True},
    {"circular": True, "stride": 2, "groups": 2},
    {"circular": True, "input_dilation": 2, "kernel_dilation": 2},
  ],
  ids=str,
)
def test_exact_norms_are_those_of_the_matrix(numbers):
  # At float64's precision of the symbols, float32's of the operator that lipjax describes.
  truth = load("convolutions_truth")
  pads = (numbers.get("kernel_dilation", 1) * 2, 0) if "circular" in numbers else (1, 2)
  row = load("convolutions_rows").Row(6, 3, 4, 2, pads, **numbers)
  kernel = row.kernel("any")
  operator = row.operator()
  x = jnp.zeros(operator.input_shape(kernel.shape))
  matrix = jax.jacfwd(lambda x: operator.apply(jnp.asarray(kernel), x).ravel())(x)
  matrix = np.asarray(matrix, np.float64).reshape((-1, x.size))
  exact = np.linalg.svd(matrix, compute_uv=False)[0]
  assert truth.exact_norm(row, kernel)["norm"] == pytest.approx(exact, rel=1e-5)
  circle = np.linalg.svd(truth.symbols(np, row, kernel), compute_uv=False).max()
  assert circle >= exact * (1 - 1e-5)


def test_lanczos_finds_what_the_dense_svd_finds(monkeypatch):
  truth = load("convolutions_truth")
  row = load("convolutions_rows").Row(6, 3, 2, 2, (1, 1), input_dilation=2)
  kernel = row.kernel("any")
  dense = truth.exact_norm(row, kernel)
  monkeypatch.setattr(truth, "DENSE_ENTRIES", 0)
  lanczos = truth.exact_norm(row, kernel)
  assert (dense["how"], lanczos["how"]) == ("dense", "lanczos")
  assert lanczos["norm"] == pytest.approx(dense["norm"], rel=1e-12)


@pytest.mark.slow
def test_quick_run_measures_every_case(monkeypatch):
  convolutions = load("convolutions")
  result = convolutions.run(quick=True, blocks=1)
  convolutions.show(result)
  assert result["summary"]["violated"] == []
  for row in json.loads(json.dumps(result))["rows"].values():
    assert row["lipjax"]["lower"] <= row["truth"]["norm"] <= row["lipjax"]["value"]
    assert set(row["peers"]) == {"FFT and SVD", "reshaped kernel"}
    assert min(row["lipjax"]["median_ms"], row["lipjax"]["interval_median_ms"]) > 0
    assert row["lipjax"]["temp_bytes"] > 0
