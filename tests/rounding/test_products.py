"""Products lose no more than is said, powers of two nothing."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, normal, top_sigma

from lipjax.rounding.powers import exponent_of, times_power_of_two
from lipjax.rounding.products import product, product_lost


@pytest.mark.parametrize("k", [1, 20, 70, 900])
def test_products_lose_no_more_than_said(k):
  a, b = normal(0, (20, k), jnp.float32), normal(1, (k, 33), jnp.float32)
  exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
  error = np.asarray(product(a, b), np.float64) - exact
  assert top_sigma(error) <= product_lost(a, b) <= 3e-4 * top_sigma(exact)


def test_what_became_zero_is_lost():
  a = jnp.full((3, 3), 1e-25, jnp.float32)
  assert product_lost(a, a) >= 9e-50
  assert product_lost(a, a) > 0


def test_powers_of_two_are_exact():
  info = jnp.finfo(FLOAT)
  x = jnp.asarray([info.tiny, info.max, 1.0, 0.75, 0.0], FLOAT)
  k = exponent_of(x)
  np.testing.assert_array_equal(k, [info.minexp + 1, info.maxexp, 1, 0, 0])
  scaled = times_power_of_two(x, -k)
  np.testing.assert_array_equal(scaled, np.ldexp(np.asarray(x), -np.asarray(k)))
  np.testing.assert_array_equal(times_power_of_two(scaled, k), x)
  np.testing.assert_array_equal(times_power_of_two(x[2:4], jnp.int32(10**6)), np.inf)
