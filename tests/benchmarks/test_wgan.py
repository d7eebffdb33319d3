"""The WGAN experiment, end to end with ``--quick``, and its distance."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if not (Path(__file__).parents[2] / "benchmarks" / "experiments").is_dir():
  pytest.skip("a tree without benchmarks/, such as an sdist", allow_module_level=True)


def load(name):
  return importlib.import_module(f"benchmarks.experiments.{name}")


@pytest.mark.slow
def test_quick_run_writes_figures_and_numbers(tmp_path, capsys):
  pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
  pytest.importorskip("matplotlib", reason="the experiment draws figures")
  load("__main__").main(["wgan", "--quick", "--steps", "55", "--out", str(tmp_path)])
  for name in ("wgan_samples.png", "wgan_training.png"):
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
  numbers = json.loads((tmp_path / "wgan.json").read_text())
  assert numbers["moments"] == [0, 50, 55]
  assert list(numbers["methods"]) == ["none", "clip", "penalty", "spectral"]
  norms = numbers["methods"]["spectral"]["sigma_by_moment"]
  assert np.shape(norms["layer_1"]) == (3, 2)
  for sigma in norms.values():
    np.testing.assert_allclose(sigma, 1, atol=0.05)
    np.testing.assert_allclose(sigma[0], 1, atol=1e-4)
  # An entry of at most 0.05 bounds the norm of 128 by 128 by 6.4.
  assert np.max(numbers["methods"]["clip"]["sigma_by_moment"]["layer_2"][1:]) <= 6.4
  distances = numbers["methods"]["penalty"]["sliced_distance_by_moment"]
  assert np.all(np.array(distances[-1]) < 0.75 * np.array(distances[0]))
  check = numbers["checks"]["normalized_norms_hold"]
  assert check["reached"] == (check["largest_deviation"] <= 0.02)
  assert "REACHED" in capsys.readouterr().out.upper()


def test_the_sliced_distance_of_a_shift_is_its_mean_projection():
  sliced_distance = load("wgan_evaluate").sliced_distance
  x = jax.random.normal(jax.random.key(0), (50, 16))
  assert float(sliced_distance(x, x[::-1])) == pytest.approx(0, abs=1e-6)
  # The mean of |θ₁| on the unit sphere of R¹⁶ is Γ(8) / (√π Γ(8.5)).
  shift = jnp.zeros(16).at[0].set(3.0)
  assert float(sliced_distance(x, x + shift)) == pytest.approx(3 * 0.2026, rel=0.1)


def test_the_tiles_of_the_sample_figure_keep_their_places():
  images = np.arange(64, dtype=float)[:, None].repeat(4, 1) / 64
  tiles = load("wgan_figure")._tiles(images, (2, 2))
  assert tiles.shape == (24, 24)
  assert tiles[3 * 3 + 1, 5 * 3 + 2] == (3 * 8 + 5) / 64
