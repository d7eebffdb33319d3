"""Diagonal against its dense matrix and its closed form against an SVD."""

import jax
import numpy as np
import pytest
from reference import check_operator, normal, operator_sigma

import lipjax
from lipjax import Diagonal


@pytest.mark.parametrize(
  ("shape", "batch_axes"),
  [((4,), ()), ((2, 3), ()), ((1, 1, 1, 3), ()), ((3, 4), (0,)), ((2, 3, 4), (0, 1)), ((3,), (0,))],
)
def test_it_is_a_diagonal_matrix_and_the_norm_its_largest_entry(shape, batch_axes):
  operator = Diagonal(batch_axes)
  w = normal(0, shape)
  matrices = check_operator(operator, w)
  for index in np.ndindex(*operator.batch_shape(shape)):
    np.testing.assert_array_equal(
      matrices[index], np.diag(np.asarray(w[index], np.float64).ravel())
    )
  sigma, u, v = operator.closed_form(w)
  truth = operator_sigma(operator, w)
  # A maximum does not round; the reference's scaling before its SVD does.
  np.testing.assert_allclose(sigma, truth, rtol=4 * float(np.finfo(w.dtype).eps))
  dims = tuple(range(len(batch_axes), len(shape)))
  np.testing.assert_array_equal(np.sum(u * operator.apply(w, v), axis=dims), sigma)
  for vector in (u, v):
    np.testing.assert_array_equal(np.sum(np.square(vector), axis=dims), np.ones_like(sigma))


def test_ties_give_one_unit_vector():
  sigma, _, v = Diagonal().closed_form(np.array([2.0, -2.0, 2.0], np.float32))
  assert float(sigma) == 2.0
  assert float(np.sum(np.square(v))) == 1.0


def test_zero_and_empty():
  gradient = jax.grad(lambda w: lipjax.spectral_norms({"scale": w})["scale"])
  assert gradient(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
  empty = np.zeros((0,), np.float32)
  assert float(lipjax.spectral_norms({"scale": empty})["scale"]) == 0.0
  assert gradient(empty).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_entry_stays_in_its_slice(bad):
  w = np.ones((3, 4), np.float32)
  w[1, 2] = bad
  sigma = lipjax.spectral_norms({"w": w}, layout={"w": Diagonal((0,))})["w"]
  assert np.isnan(sigma[1])
  np.testing.assert_array_equal(sigma[np.array([0, 2])], 1.0)


@pytest.mark.parametrize(
  ("batch_axes", "shape"), [((1,), (2, 3)), ((1, 0), (2, 3)), ((0, 1), (2,))]
)
def test_batch_axes_that_do_not_lead_raise(batch_axes, shape):
  with pytest.raises(ValueError, match="leading axes"):
    Diagonal(batch_axes).validate(shape)


def test_lists_are_taken_for_tuples():
  assert hash(Diagonal([0])) == hash(Diagonal((0,)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype):
  w = np.asarray([0.5, -1.5], dtype)
  value, gradient = jax.value_and_grad(lambda w: lipjax.spectral_norms({"scale": w})["scale"])(w)
  assert (float(value), gradient.dtype, gradient.tolist()) == (1.5, w.dtype, [0.0, -1.0])
