"""Convolutions' matrices in blocks, and the bound by a Cholesky factor, against dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, dense_convolution, normal, top_sigma

import lipjax
from lipjax import Convolution
from lipjax.measure import cholesky, factors
from lipjax.measure.block_matrix import block_levels, block_plan, level_block
from lipjax.measure.cholesky import eigenvalue_upper_bound, norm_upper_bound

KINDS = {
  "zeros": (Convolution((7, 5)), (3, 3, 2, 3)),
  "folded circle": (Convolution((9, 9), padding="CIRCULAR", strides=2), (3, 3, 3, 2)),
  "reflect": (Convolution((6, 4), padding="REFLECT"), (5, 3, 2, 2)),
  "replicate": (Convolution((6,), padding=3, padding_mode="replicate"), (3, 4, 2)),
  "transposed": (Convolution.transposed((4, 4), (3, 3), strides=2), (3, 3, 2, 1)),
  "three axes": (Convolution((3, 5, 4), padding=1, kernel_dilation=(1, 2, 1)), (2, 3, 2, 1, 2)),
  "smaller than the kernel": (Convolution((2, 3)), (5, 5, 1, 2)),
}


def plan_of(operator, w):
  return block_plan(operator.windows(w.shape), *operator.kernel(w).shape[-2:])


def in_order(plan, square):
  """The square with its rows in the order of the levels, trivial rows at the end."""
  shape = (*plan.sizes, plan.features)
  index = np.moveaxis(np.arange(len(square)).reshape(shape), plan.axis, 0)
  order = index[np.argsort(plan.places)].ravel()
  return square[np.ix_(order, order)]


@pytest.mark.first(4)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_the_dense_square(kind):
  operator, shape = KINDS[kind]
  w = normal(0, shape)
  plan = plan_of(operator, w)
  matrix = dense_convolution(operator, w)[0]
  square = in_order(plan, matrix.T @ matrix if plan.of_inputs else matrix @ matrix.T)
  levels = block_levels(plan, operator.kernel(w))
  q, n = plan.block, len(square)
  found = np.zeros((plan.n_levels * q,) * 2)
  for i in range(plan.n_levels):
    found[i * q : i * q + q, i * q : i * q + q] = level_block(levels.rows, levels.diagonal[i])
    if i:
      below = np.asarray(level_block(levels.rows, levels.below[i]))
      found[i * q : i * q + q, i * q - q : i * q] = below
      found[i * q - q : i * q, i * q : i * q + q] = below.T
  assert np.linalg.norm(found[:n, :n] - square, 2) <= levels.error
  assert not found[n:].any()
  assert np.linalg.norm(square, 2) <= levels.magnitude


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_tight_and_holds(kind):
  operator, shape = KINDS[kind]
  w = normal(1, shape)
  truth = top_sigma(dense_convolution(operator, w)).max()
  levels = block_levels(plan_of(operator, w), operator.kernel(w) / truth)
  bound = float(norm_upper_bound(levels))
  assert 1 <= bound <= 1.0001


def test_a_shift_below_the_eigenvalue_says_nothing():
  operator, shape = KINDS["folded circle"]
  w = normal(1, shape)
  truth = top_sigma(dense_convolution(operator, w)).max()
  levels = block_levels(plan_of(operator, w), operator.kernel(w) / truth)
  assert eigenvalue_upper_bound(levels, jnp.asarray(0.999, FLOAT)) == jnp.inf
  # A much too small estimate: what is left is the row sum of magnitudes.
  levels = block_levels(plan_of(operator, w), 100 * operator.kernel(w) / truth)
  assert 100 <= norm_upper_bound(levels) <= 1000


@pytest.mark.parametrize("error", [1e-6, 1e-3, 1e-1])
def test_the_bound_holds_whatever_the_factor_is(error, monkeypatch):
  # A factor that is wrong costs width and no guarantee.
  exact = factors.cholesky
  wrong = lambda x: exact(x) + error * jnp.tril(normal(3, x.shape))
  monkeypatch.setattr(cholesky, "cholesky", wrong)
  operator, shape = KINDS["reflect"]
  w = normal(1, shape)
  truth = top_sigma(dense_convolution(operator, w)).max()
  levels = block_levels(plan_of(operator, w), operator.kernel(w) / truth)
  bound = float(norm_upper_bound(levels))
  assert bound >= 1
  assert bound > 1 + error / 100


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_zero_and_extreme_scales(scale):
  operator, shape = KINDS["reflect"]
  w = scale * normal(1, shape)
  truth = top_sigma(dense_convolution(operator, w)).max()
  bounds = lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]
  assert bounds.lower <= truth <= bounds.upper <= 1.001 * truth
  assert bounds.names == "matrix"


@pytest.mark.parametrize(
  "operator",
  [
    Convolution((15, 15), padding="CIRCULAR", strides=2),
    Convolution((16, 16), padding="REFLECT"),
    Convolution((16, 16), padding=1, padding_mode="replicate"),
    Convolution((4, 4)),
  ],
  ids=["circular strided", "reflect", "replicate", "tiny"],
)
def test_what_symbols_cannot_see_is_within_a_tenth_of_a_per_cent(operator):
  # Symbols are 15 % to 100 % wide here.
  shape = (3, 3, 32, 32) if operator.spatial_shape == (4, 4) else (3, 3, 6, 8)
  bounds = lipjax.spectral_norm_bounds({"w": normal(2, shape)}, layout={"w": operator})["w"]
  assert bounds.lower <= bounds.upper <= 1.001 * bounds.lower
  assert bounds.names == "matrix"


def test_many_groups_and_stacks():
  operator = Convolution((6, 6), padding="REFLECT", feature_group_count=8, batch_axes=(0,))
  w = normal(0, (3, 3, 3, 1, 8)) * jnp.array([1.0, 0.0, 1e-3])[:, None, None, None, None]
  bounds = lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]
  truth = [top_sigma(dense_convolution(operator.slice_operator(), x)).max() for x in w]
  for lower, true, upper in zip(bounds.lower, truth, bounds.upper, strict=True):
    assert lower <= true <= upper <= 1.001 * true


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("operator", "taps"),
  [
    (Convolution((10**6,), padding="REFLECT"), 3),
    (Convolution((512,), padding="REFLECT"), 511),  # its taps meet 10⁸ times
    (Convolution((4,), padding=400, padding_mode="replicate"), 3),
  ],
  ids=["line", "kernel", "padding"],
)
def test_what_is_too_long_is_not_laid_out(operator, taps):
  w = normal(0, (taps, 1, 1))
  bounds = lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]
  assert bounds.lower <= bounds.upper < jnp.inf
  assert bounds.names != "matrix"


def test_the_bound_has_the_derivative_of_the_norm():
  operator, shape = KINDS["reflect"]
  w = normal(0, shape)

  def end(w, name):
    return getattr(lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"], name)

  lower, upper = (jax.grad(end)(w, name) for name in ("lower", "upper"))
  np.testing.assert_allclose(upper, lower, rtol=2e-3, atol=1e-5)
