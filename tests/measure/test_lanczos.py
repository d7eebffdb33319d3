"""The engine alone: triplets, restarts and its stopping rule."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, normal, rtol_of, top_sigma, with_spectrum

from lipjax.measure.lanczos import MAX_BASIS, golub_kahan_lanczos


def run(matrix, start=None, **options):
  a = jnp.asarray(matrix, FLOAT)
  start = normal(0, (a.shape[1],)) if start is None else jnp.asarray(start, FLOAT)
  options = {"tol": 8 * float(jnp.finfo(FLOAT).eps)} | options
  return golub_kahan_lanczos(lambda x: a @ x, lambda y: y @ a, start, a.shape[0], **options)


@pytest.mark.parametrize(("rows", "columns"), [(20, 12), (12, 20)])
def test_a_singular_triplet(rows, columns):
  matrix = np.random.default_rng(1).standard_normal((rows, columns))
  sigma, u, v = run(matrix)
  np.testing.assert_allclose(sigma, top_sigma(matrix), rtol=rtol_of(sigma))
  np.testing.assert_allclose([u @ u, v @ v], 1, rtol=rtol_of(sigma))
  np.testing.assert_allclose(u @ jnp.asarray(matrix, FLOAT) @ v, sigma, rtol=rtol_of(sigma))


def test_it_restarts_when_the_basis_is_full():
  n = 4 * MAX_BASIS
  # A flat spectrum: far more steps are needed than one basis holds.
  matrix = with_spectrum(2, n, n, np.r_[1.0, 1 - 1e-3 * np.arange(1, n) / 16])
  np.testing.assert_allclose(run(matrix).sigma, 1, rtol=rtol_of(jnp.zeros((), FLOAT)))


def test_max_steps_stops_below_the_answer():
  matrix = with_spectrum(3, 200, 200, np.linspace(1, 0.99, 200))
  early = run(matrix, max_steps=8).sigma
  assert 0.9 < early < 1.0


def test_an_invariant_start_gives_the_value_of_its_space():
  # A breakdown (an exhausted Krylov space) neither divides by zero nor runs on.
  sigma, u, v = run(np.diag([1.0, 2.0, 3.0, 4.0]), start=[0, 1, 0, 0])
  assert float(sigma) == 2.0
  np.testing.assert_array_equal(np.abs(v), [0, 1, 0, 0])
  np.testing.assert_array_equal(u, v)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_map_stops_at_once(bad):
  matrix = np.ones((5, 5))
  matrix[2, 2] = bad
  assert np.isnan(run(matrix).sigma)


def test_zero():
  sigma, u, v = run(np.zeros((5, 4)))
  assert float(sigma) == 0
  assert not np.isnan(u).any()
  assert not np.isnan(v).any()
