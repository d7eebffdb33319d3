"""Numbers whose squares and products are too small to be normal make no bound too small."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal

import lipjax
from lipjax.certify.bounds.graph import liplt_bounds
from lipjax.certify.facts import Depends, Facts, LipschitzPart
from lipjax.certify.graph import Node
from lipjax.certify.lipschitz import bounds_by_engine
from lipjax.certify.maps import Known
from lipjax.rounding.numbers import norm_above, times_above

pytestmark = pytest.mark.thorough

TINY = float(np.finfo(np.float32).tiny)
A, B = (np.asarray(normal(seed, (4, 4)), np.float32) for seed in (0, 1))
SMALL = np.float32(1e-22)


def mixed(x):
  """A product of entries, whose slope is as large as they are."""
  return x * x[::-1]


def attention(x):
  return jax.nn.softmax(x @ x.T) @ x - x.mean(0)


def normalized(x):
  return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


ANYWHERE = {
  "two weights": lambda x: B * SMALL @ jax.nn.relu(A * SMALL @ x),
  "a product of them": lambda x: B * SMALL @ (A * SMALL @ x),
  "two ways": lambda x: B * SMALL @ jnp.concatenate([x, SMALL * jnp.tanh(x)])[2:-2],
  "a scaling folded in": lambda x: (A * SMALL @ x) * (SMALL * jnp.arange(4.0)),
  "scalings": lambda x: jnp.tanh(SMALL * jnp.tanh(SMALL * x)),
  "softmax": lambda x: jax.nn.softmax(A * SMALL @ x),
  "maximum": lambda x: SMALL * jnp.maximum(SMALL * x, SMALL * x[::-1]),
}
LOCAL = {
  "product of entries": (mixed, (4,)),
  "gate": (lambda x: x * jax.nn.sigmoid(A @ x), (4,)),
  "three": (lambda x: jnp.outer(x, x) @ x, (4,)),
  "attention": (attention, (3, 4)),
  "layer norm": (normalized, (3, 4)),
  "layer norm of little": (lambda x: normalized(SMALL * x), (3, 4)),
  "weights": (ANYWHERE["two weights"], (4,)),
}


def truth(fn, points):
  """The largest norm of the Jacobian in float64."""
  with jax.enable_x64(True):
    found = [np.asarray(flat_jacobian(fn)(p)) for p in np.float64(points)]
  return max(np.linalg.norm(j.reshape((j.shape[0], -1)), 2) for j in found)


@functools.cache
def flat_jacobian(fn):
  return jax.jit(jax.jacfwd(lambda x: fn(x).ravel()))


def around(center, radius):
  away = np.random.default_rng(0).standard_normal((6, *center.shape))
  lengths = np.linalg.norm(away.reshape(6, -1), axis=1).reshape((6, *[1] * center.ndim))
  return np.float64(center) + away * radius / lengths


@pytest.mark.parametrize("name", ANYWHERE)
def test_tiny_weights(name):
  fn = ANYWHERE[name]
  least = truth(fn, np.ones((1, 4)))
  assert least > 0
  bounds = bounds_by_engine(fn, 0, (jnp.ones(4, jnp.float32),))
  bounds |= {f"{k} on a ball": v for k, v in bounds_by_engine(fn, 0, (jnp.ones(4),), 1e-25).items()}
  for engine, bound in bounds.items():
    assert float(bound) >= least, engine
    assert float(bound) <= max(4 * least, 1e4 * TINY), engine


QUICK = ("layer norm of little", "weights")


@pytest.mark.parametrize(
  "name", [pytest.param(x, marks=[] if x in QUICK else pytest.mark.slow) for x in LOCAL]
)
def test_tiny_balls_and_boxes(name):
  fn, shape = LOCAL[name]
  x = np.zeros(shape, np.float32)
  ball = jax.jit(lambda r: lipjax.lipschitz_upper_bound(fn, radius=r)(x))
  box = jax.jit(lambda r: lipjax.lipschitz_upper_bound(fn, box=(-r, r))(x))
  for radius in (1e-18, 1e-25, 1e-38, 1e-42):
    least = truth(fn, around(x, radius))
    assert least > 0
    for upper in (ball, box):
      # Finite, as nothing is steep.
      assert least <= float(upper(np.float32(radius))) < np.inf


def test_balls_around_tiny_inputs():
  x = np.asarray(normal(3, (3, 4)), np.float32) * np.float32(1e-21)
  for fn in (attention, mixed, normalized):
    least = truth(fn, around(x, 1e-25))
    upper = float(lipjax.lipschitz_upper_bound(fn, radius=1e-25)(x))
    assert least <= upper < np.inf


NORMS = [
  [0.0, 0.0],
  [1e-25, 1e-25],
  [TINY, TINY],
  [1e-42, 1e-44],
  [1e-42, 3.0],
  [3e38, 1e-3],
  [3e38, 3e38],
  [np.inf, np.inf],
  [np.inf, 0.0],
  [-4.0, 3.0],
]


@pytest.mark.parametrize("entries", NORMS)
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_norms_are_rounded_up(entries, n):
  x = np.tile(np.float32(entries), n)
  exact = float(np.linalg.norm(np.float64(x)))
  for found in (norm_above(x), jax.jit(norm_above)(x), norm_above(x[:, None], 0)[0]):
    found = float(found)
    assert found >= exact
    if exact * 1.01 < float(np.finfo(np.float32).max):
      assert found == 0 if exact == 0 else found <= max(exact * (1 + 3e-5), n * 2 * TINY)


def test_norms_over_axes_and_their_derivative():
  x = normal(2, (2, 3, 4))
  np.testing.assert_allclose(norm_above(x, (0, 2)), np.linalg.norm(x, axis=(0, 2)), rtol=5e-6)
  assert norm_above(x, 1).shape == (2, 4)
  assert norm_above(jnp.zeros((2, 0)), 1).tolist() == [0, 0]
  slope = jax.grad(lambda x: norm_above(x).sum())
  np.testing.assert_allclose(slope(x), x / np.linalg.norm(np.ravel(x)), rtol=1e-5)
  assert np.all(np.asarray(slope(jnp.zeros(3))) == 0)
  assert np.isnan(norm_above(jnp.array([jnp.nan, 1.0])))


def test_products_are_rounded_up():
  pairs = [(1e-25, 1e-25), (TINY, 0.5), (0, 3), (0, TINY), (2, 3), (np.inf, 1e-30)]
  for a, b in pairs:
    for found in (
      times_above(np.float32(a), np.float32(b)),
      jax.jit(times_above)(np.float32(a), b),
    ):
      exact = float(np.float32(a)) * float(np.float32(b))
      assert exact <= float(found)
      assert (float(found) == 0) == (exact == 0)


@pytest.mark.parametrize(
  "fn", [lambda x: A @ x, *(pytest.param(x, marks=pytest.mark.slow) for x in (jnp.tanh, attention))]
)
def test_radii_that_are_none(fn):
  """A traced radius cannot raise."""
  x = jnp.ones((4, 4))
  bounds = jax.jit(
    lambda x, r: lipjax.lipschitz_bounds(fn, radius=r, n_starts=2, n_ascent_steps=2)(x)[:2]
  )
  for radius in (-1.0, -1e-30, np.nan):
    lower, upper = bounds(x, radius)
    assert upper == np.inf
    assert lower == 0
  assert bounds(x, 0.5)[1] < np.inf
  pairs = lambda x, r: lipjax.margin_upper_bounds(lambda x: fn(x)[0], radius=r)(x)
  assert jax.jit(pairs)(x, -1.0)[0, 1] == np.inf
  for box in ((1.0, 0.0), (np.nan, 1.0)):
    upper = jax.jit(lambda lo, hi: lipjax.lipschitz_upper_bound(fn, box=(lo, hi))(x))(*box)
    assert upper == np.inf


def test_a_bound_that_is_no_number_does_not_hide_another():
  """A linear map of 0 after an infinite slope is NaN in the product, and 0 by its rows."""
  nodes = [Node("input", shape=(2,)), Node("", (0,), shape=(2,))]
  y = Facts(depends=Depends(LipschitzPart((2.0,)), (0,)), bound=jnp.asarray(jnp.nan))
  bounds = liplt_bounds(Known(nodes, [Facts(), y]), [0, 1], [1])
  assert float(bounds[1]) == pytest.approx(2)


@pytest.mark.parametrize("scale", [1e18, 1e20, 1e30])
def test_variances_that_overflow(scale):
  """A variance that is infinite as computed made the bound of a normalization 0."""
  x = np.asarray(normal(4, (3, 4)), np.float32) * np.float32(scale)
  upper = float(lipjax.lipschitz_upper_bound(normalized, radius=1.0)(x))
  assert truth(normalized, x[None]) <= upper < np.inf
