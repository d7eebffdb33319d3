"""Dense and ReshapedKernel against their dense matrices."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import check_operator, normal, operator_sigma, rtol_of

import lipjax
from lipjax import Dense, ReshapedKernel


@st.composite
def axis_splits(draw):
  """A Dense with random roles and a random order of 2 to 4 axes, and a shape."""
  n = draw(st.integers(2, 4))
  axes = draw(st.permutations(range(n)))
  n_in = draw(st.integers(1, n - 1))
  n_out = draw(st.integers(1, n - n_in))
  # Sizes from a small fixed table keep the number of compilations low.
  shape = tuple(draw(st.permutations((2, 3, 1, 4)))[:n])
  split = Dense(axes[:n_in], axes[n_in : n_in + n_out], axes[n_in + n_out :])
  return split, shape


@settings(max_examples=8, deadline=None, derandomize=True)
@given(axis_splits())
def test_any_split_of_axes_is_its_matrix(case):
  operator, shape = case
  w = normal(0, shape)
  matrices = check_operator(operator, w)
  moved = np.asarray(w, np.float64).transpose(
    (*operator.batch_axes, *operator.out_axes, *operator.in_axes)
  )
  np.testing.assert_array_equal(matrices, moved.reshape(matrices.shape))
  np.testing.assert_array_equal(operator.matrix(w), matrices.astype(w.dtype))
  norms = lipjax.spectral_norms({"w": w}, layout={"w": operator}, method="svd")
  np.testing.assert_allclose(norms["w"], operator_sigma(operator, w), rtol=rtol_of(w))


@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_two_batch_axes_keep_the_order_in_which_they_are_listed(order):
  batch_axes = tuple((0, 2)[i] for i in order)
  operator = Dense((1,), (3,), batch_axes)
  w = normal(3, (2, 3, 4, 5)) * np.arange(1, 9).reshape(2, 1, 4, 1)
  for method in ("lanczos", "svd", "power_iteration"):
    sigma = lipjax.spectral_norms({"w": w}, layout={"w": operator}, method=method)["w"]
    assert sigma.shape == operator.batch_shape(w.shape)
    # Power iteration stops on its change, so its error is larger by 1/(1 - ratio^2).
    rtol = 1e-3 if method == "power_iteration" else rtol_of(w)
    np.testing.assert_allclose(sigma, operator_sigma(operator, w), rtol=rtol)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (0, 3), (3, 0)])
def test_degenerate_shapes(shape):
  check_operator(Dense(), normal(4, shape))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_weights_are_computed_wide(dtype):
  w = normal(5, (6, 4), dtype)
  assert Dense().apply(w, normal(1, (6,), "float32")).dtype == np.float32
  np.testing.assert_allclose(
    Dense().apply(w, normal(1, (6,), "float32")),
    np.asarray(w, np.float64).T @ np.asarray(normal(1, (6,), "float32"), np.float64),
    rtol=1e-5,
    atol=1e-6,  # six products of order 1, each rounded at 6e-8
  )


@pytest.mark.parametrize(
  ("shape", "out_axis"), [((3, 4, 5), 2), ((3, 2, 4, 5), 3), ((3, 2, 5, 4), 2), ((5, 4, 3), 0)]
)
def test_reshaped_kernel_is_out_times_everything_else(shape, out_axis):
  rest = tuple(a for a in range(len(shape)) if a != out_axis)
  operator = ReshapedKernel(rest, (out_axis,))
  w = normal(6, shape)
  matrix = check_operator(operator, w)
  flat = np.moveaxis(np.asarray(w, np.float64), out_axis, 0).reshape(shape[out_axis], -1)
  np.testing.assert_array_equal(matrix, flat)


def test_reshaped_kernel_says_that_it_is_not_the_convolution():
  # METHODS section 6: an all-ones 3x3 kernel reads 3 for a true 8.98.
  kernel = np.ones((3, 3, 1, 1), np.float32)
  sigma = lipjax.spectral_norms({"Conv_0": {"kernel": kernel}})["Conv_0/kernel"]
  np.testing.assert_allclose(sigma, 3.0, rtol=1e-5)
  assert "NOT the convolution" in ReshapedKernel.meaning
  assert "NOT the convolution" in lipjax.describe({"Conv_0": {"kernel": kernel}})


@pytest.mark.parametrize(
  "axes",
  [
    {"in_axes": (0,), "out_axes": (0,)},
    {"in_axes": (0, 0), "out_axes": (1,)},
    {"in_axes": (0,), "out_axes": (1,), "batch_axes": (1,)},
    {"in_axes": (), "out_axes": (1,)},
    {"in_axes": (0,), "out_axes": ()},
  ],
)
def test_impossible_axes_raise(axes):
  with pytest.raises(ValueError, match="Dense"):
    Dense(**axes)


def test_lists_and_integers_are_taken_for_tuples():
  assert Dense([0], [1, 2]) == Dense((0,), (1, 2))
  assert hash(Dense([0], [1, 2])) == hash(Dense((0,), (1, 2)))
  assert Dense(0, 1) == Dense()


@pytest.mark.parametrize(
  ("operator", "shape"),
  [
    (Dense(), (2, 3, 4)),
    (Dense(), (2,)),
    (Dense((0,), (-1,)), (2, 3)),
    (Dense((0,), (2,)), (2, 3)),
  ],
)
def test_a_leaf_of_another_rank_raises_with_its_shape(operator, shape):
  with pytest.raises(ValueError, match=r"\(2,"):
    operator.validate(shape)
  with pytest.raises(lipjax.LayoutError, match="'w'"):
    lipjax.spectral_norms({"w": np.ones(shape, np.float32)}, layout={"w": operator})


def test_apply_works_inside_transformations():
  w = normal(7, (3, 4, 2))
  operator = Dense((0,), (1, 2))
  x = normal(8, (5, 3))
  batched = jax.jit(jax.vmap(operator.apply, in_axes=(None, 0)))(w, x)
  np.testing.assert_allclose(batched, np.einsum("iop,bi->bop", w, x), rtol=1e-4)
