"""Frobenius norms: values and gradients at every scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal

import lipjax
from lipjax import Dense, Diagonal


def frobenius(w, operator=None):
  return lipjax.frobenius_norms({"w": w}, layout={"w": operator or Dense()})["w"]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_value_and_gradient(scale):
  w = normal(0, (5, 3), jnp.float32, scale)
  value, gradient = jax.value_and_grad(frobenius)(w)
  w64 = np.asarray(w, np.float64)
  truth = np.linalg.norm(w64)
  # 15 squares are summed: some eps of float32.
  np.testing.assert_allclose(value, truth, rtol=2e-6)
  np.testing.assert_allclose(gradient, w64 / truth, rtol=4e-6)


@pytest.mark.parametrize("shape", [(3, 2), (0, 3), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_zero_and_empty_have_gradient_zero(shape, dtype):
  value, gradient = jax.value_and_grad(frobenius)(jnp.zeros(shape, dtype))
  assert float(value) == 0
  assert gradient.dtype == dtype
  np.testing.assert_array_equal(gradient, np.zeros(shape))


def test_one_norm_a_slice_and_zero_slices_are_safe():
  w = normal(1, (3, 4, 2)).at[1].set(0)
  operator = Dense((1,), (2,), (0,))
  gradient = jax.grad(lambda w: jnp.sum(frobenius(w, operator)))(w)
  np.testing.assert_allclose(
    frobenius(w, operator), np.linalg.norm(np.asarray(w, np.float64), axis=(1, 2)), rtol=2e-6
  )
  assert np.isfinite(gradient).all()
  assert not gradient[1].any()


def test_subnormal_gives_no_nan():
  value, gradient = jax.value_and_grad(frobenius)(jnp.full((4, 3), 1e-40, jnp.float32))
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_it_bounds_the_spectral_norm():
  params = {"kernel": normal(2, (6, 4)), "scale": normal(3, (5,))}
  sigmas, norms = lipjax.spectral_norms(params), lipjax.frobenius_norms(params)
  for path, rank in (("kernel", 4), ("scale", 5)):
    assert sigmas[path] <= norms[path] <= np.sqrt(rank) * sigmas[path] * (1 + 1e-6)


def test_second_axis_stack():
  w = normal(4, (4, 3, 2))
  np.testing.assert_allclose(
    frobenius(w, Dense((0,), (2,), (1,))),
    np.linalg.norm(np.asarray(w, np.float64), axis=(0, 2)),
    rtol=2e-6,
  )
  assert frobenius(w, Diagonal((0,))).shape == (4,)


def test_low_precision_is_accumulated_in_float32():
  w = jnp.full((512, 512), 1.0, jnp.bfloat16)  # bfloat16 sums stop growing at 256
  assert float(frobenius(w)) == 512
