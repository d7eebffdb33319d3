"""operator_norm of linear functions against their dense Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reference import FLOAT, jacobian, normal, rtol_of, top_sigma

import lipjax

A = normal(0, (5, 7))
KERNEL = normal(1, (3, 2, 4))


def conv(x, strides=(1,), padding="SAME"):
  numbers = ("NWC", "WIO", "NWC")
  kernel = KERNEL
  return lax.conv_general_dilated(x[None], kernel, strides, padding, dimension_numbers=numbers)[0]


CASES = {
  "matmul": (lambda x: A @ x, (7,)),
  "conv": (conv, (8, 2)),
  "strided conv": (lambda x: conv(x, (2,), "VALID"), (9, 2)),
  "fft": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.arange(5)), (8,)),
  "gather": (lambda x: x[jnp.array([0, 0, 0, 1])], (3,)),
  "roll and difference": (lambda x: jnp.roll(x, 1) - x, (6,)),
  "scan": (lambda x: lax.scan(lambda c, a: (0.5 * c + a, c), 0.0 * x[0], x)[1], (6,)),
  "scalar": (lambda x: 3.0 * x, ()),
  "identity": (lambda x: x, (4,)),
  "zero": (lambda x: 0.0 * x, (4,)),
  "to a scalar": (jnp.sum, (9,)),
}


@pytest.mark.first(3)
@pytest.mark.parametrize("name", CASES)
def test_against_the_dense_jacobian(name):
  fn, shape = CASES[name]
  x = jnp.zeros(shape, FLOAT)
  sigma = lipjax.operator_norm(fn, x)
  assert sigma.shape == ()
  assert sigma.dtype == FLOAT
  np.testing.assert_allclose(sigma, top_sigma(jacobian(fn, x)), rtol=rtol_of(x))


@pytest.mark.parametrize("n", [1, 4, 50])
def test_cumsum_has_its_closed_form(n):
  sigma = lipjax.operator_norm(jnp.cumsum, jax.ShapeDtypeStruct((n,), FLOAT))
  expected = 1 / (2 * np.sin(np.pi / (4 * n + 2)))
  np.testing.assert_allclose(sigma, expected, rtol=rtol_of(sigma))


def test_pytrees_in_and_out():
  def fn(tree):
    return {"sum": tree["a"] @ A + tree["b"], "twice": (2 * tree["b"],)}

  x = {"a": jnp.zeros(5, FLOAT), "b": jnp.zeros(7, FLOAT)}
  eye = np.eye(7)
  dense = np.block([[np.asarray(A, np.float64).T, eye], [np.zeros((7, 5)), 2 * eye]])
  np.testing.assert_allclose(lipjax.operator_norm(fn, x), top_sigma(dense), rtol=rtol_of(A))


def test_linearize_makes_any_function_measurable():
  x0 = normal(2, (7,))
  fn = lambda x: jnp.tanh(A @ x)
  sigma = lipjax.operator_norm(jax.linearize(fn, x0)[1], x0)
  np.testing.assert_allclose(sigma, top_sigma(jacobian(fn, x0)), rtol=4 * rtol_of(x0))


def test_gradient_in_closed_over_arrays():
  def norm(w, c):
    return lipjax.operator_norm(lambda x: c * (jnp.roll(x, 1) @ w), jnp.zeros(5, FLOAT))

  def truth(w, c):
    return np.linalg.norm(c * np.roll(np.eye(5), 1, axis=1) @ np.asarray(w, np.float64), 2)

  c = jnp.asarray(1.5, FLOAT)
  gradient, in_c = jax.grad(norm, argnums=(0, 1))(A, c)
  direction = normal(3, A.shape)
  step = 1e-6
  w64, d64 = np.asarray(A, np.float64), np.asarray(direction, np.float64)
  slope = (truth(w64 + step * d64, 1.5) - truth(w64 - step * d64, 1.5)) / (2 * step)
  # Vectors converge to the square root of sigma's tolerance: 1e-3 in float32.
  np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=2e-3)
  np.testing.assert_allclose(in_c, truth(w64, 1.0), rtol=1e-4)
  _, tangent = jax.jvp(lambda w: norm(w, c), (A,), (direction,))
  np.testing.assert_allclose(tangent, slope, rtol=2e-3)


def test_under_jit_and_vmap():
  norm = lambda w: lipjax.operator_norm(lambda x: w @ x, jnp.zeros(7, FLOAT))
  np.testing.assert_allclose(jax.jit(norm)(A), top_sigma(A), rtol=rtol_of(A))
  np.testing.assert_allclose(
    jax.vmap(norm)(jnp.stack([A, 2 * A])), [top_sigma(A), 2 * top_sigma(A)], rtol=rtol_of(A)
  )
  np.testing.assert_allclose(jax.jit(jax.grad(norm))(A), jax.grad(norm)(A), atol=1e-3)


def test_zero_map_has_gradient_zero():
  gradient = jax.grad(lambda w: lipjax.operator_norm(lambda x: w @ x, jnp.zeros(3)))
  assert not gradient(jnp.zeros((2, 3))).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_functions(dtype):
  w = A.astype(dtype)
  sigma = lipjax.operator_norm(lambda x: w @ x, jnp.zeros(7, dtype))
  # The function itself rounds each product to 8 (11) bits.
  np.testing.assert_allclose(sigma, top_sigma(w), rtol=4 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
  ("fn", "message"),
  [
    (lambda x: x + 1.0, "adds a constant"),
    (jnp.tanh, "linearize"),
    (lambda x: x * x, "linearize"),
    (lambda x: jnp.maximum(x, 0), "linearize"),
    (lambda x: x / 0.0 * 0.0 + x[::-1] * x, "linearize"),
  ],
)
def test_what_is_not_linear_raises(fn, message):
  with pytest.raises(ValueError, match=message):
    lipjax.operator_norm(fn, jnp.zeros(3))


def test_integer_input_raises():
  with pytest.raises(ValueError, match="int32"):
    lipjax.operator_norm(lambda x: 2 * x, jnp.zeros(3, jnp.int32))


def test_complex_output_is_never_silently_cut_to_its_real_part():
  # The norm of x -> ix is 1; its real part is 0.
  with pytest.raises(ValueError, match="complex"):
    lipjax.operator_norm(lambda x: 1j * x, jnp.zeros(3))


def test_the_pair_that_the_complex_error_asks_for():
  def fn(x):
    y = jnp.fft.fft(x)
    return y.real, y.imag

  np.testing.assert_allclose(lipjax.operator_norm(fn, jnp.zeros(8)), np.sqrt(8), rtol=1e-5)


def test_empty_input_and_output():
  assert float(lipjax.operator_norm(lambda x: x, jnp.zeros(0))) == 0
  assert float(lipjax.operator_norm(lambda x: x[:0], jnp.zeros(3))) == 0
