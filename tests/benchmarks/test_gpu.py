"""The benchmark for accelerators: its float64 reference and its section of soundness."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from reference import dense_convolution

if not (Path(__file__).parents[2] / "benchmarks" / "speed").is_dir():
  pytest.skip("a tree without benchmarks/, such as an sdist", allow_module_level=True)

soundness = importlib.import_module("benchmarks.speed.gpu_soundness")


@pytest.mark.parametrize("name", ["3x3", "3x3 circular", "3x3 strided", "5x5"])
def test_the_matrix_of_a_convolution(name):
  operator, (*taps, _, _) = soundness.CONVOLUTIONS[name]
  w = np.random.default_rng(0).standard_normal((*taps, 2, 3))
  matrix = soundness.convolution_matrix(operator, w)
  expected = dense_convolution(operator, w)
  expected = np.asarray(expected).reshape(matrix.shape)
  np.testing.assert_allclose(np.linalg.norm(matrix, 2), np.linalg.norm(expected, 2), rtol=1e-6)


def test_an_interval_that_misses_the_truth_is_counted(monkeypatch):
  monkeypatch.setattr(soundness, "CONVOLUTIONS", {})
  assert soundness.run(1, 16)["dense float32"]["outside"] == 0
  monkeypatch.setattr(soundness, "exact_norm", lambda operator, w: 1e3)
  assert soundness.run(1, 16)["dense float32"]["outside"] == 1
