"""Cells hold every slope and every value that is sampled on random intervals, and little more."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lipjax.certify.errors import CertifyError
from lipjax.certify.scalar.errors import UnknownPrimitiveError
from lipjax.certify.scalar.line import slope_cells
from lipjax.certify.scalar.search import slope_interval
from lipjax.certify.scalar.tracing import graph_of_jaxpr

NAMES = [
  "relu", "relu6", "gelu", "silu", "softplus", "elu", "selu", "celu", "leaky_relu", "mish",
  "hard_swish", "hard_tanh", "tanh", "sigmoid", "soft_sign", "log_sigmoid", "hard_sigmoid",
  "squareplus",
]  # fmt: skip
POLE = float(np.float32(3.1))  # between the borders of cells
LIPSCHITZ = {
  **{name: getattr(jax.nn, name) for name in NAMES},
  "gelu exact": functools.partial(jax.nn.gelu, approximate=False),
  "sin": jnp.sin,
  "relu at 1/3": lambda x: jax.nn.relu(3 * x - 1),
  "huber": lambda x: jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5),
  "waves": lambda x: jnp.abs(jnp.sin(x)),
}
STEEP = {
  "square": jnp.square,
  "cube": lambda x: x**3,
  "exp": jnp.exp,
  "log": jnp.log,
  "sqrt": jnp.sqrt,
  "rsqrt": lax.rsqrt,
  "reciprocal": lambda x: 1 / x,
  "pole near 3.1": lambda x: 1 / (x - POLE),
}
ALL = {**LIPSCHITZ, **STEEP}
KINKS = [-3.0, -1.0, 0.0, 1.0, 1 / 3, 3.0, POLE, 6.0, 2.0**24]


def intervals(dtype, seed=0):
  """Tiny, wide, around kinks, at kinks, far out and infinite: 8 times 40 of them."""
  rng = np.random.default_rng(seed)
  center, width = rng.normal(0, 4, 40), rng.exponential(1, 40)
  kink = rng.choice(KINKS, 40)
  far = rng.choice([-1, 1], 40) * np.exp(rng.uniform(2, 20, 40))
  lo, hi = np.concatenate(
    [
      [center, center + width],
      [center, center + 1e-4 * width],
      [center - 20 * width, center + 20 * width],
      [kink - 1e-2 * width, kink + 1e-4 * width],
      [kink, kink + width],
      [kink - width, kink],
      [far, far + abs(far) * width],
      [np.where(width < 1, -np.inf, center), np.where(width < 0.5, center, np.inf)],
    ],
    axis=-1,
  ).astype(dtype)
  return lo, np.maximum(lo, hi)


def samples(g, lo, hi):
  """Inputs in each interval, with values of g in float64."""
  lo, hi = np.clip(lo.astype(np.float64), -1e9, 1e9), np.clip(hi.astype(np.float64), -1e9, 1e9)
  t = np.linspace(0, 1, 41)
  x = np.clip(lo[:, None] + (hi - lo)[:, None] * t, lo[:, None], hi[:, None])
  near = np.clip(np.linspace(-9, 9, 41), lo[:, None], hi[:, None])
  x = np.sort(np.concatenate([x, near], axis=1), axis=1)
  with jax.enable_x64(True):
    return x, np.asarray(g(jnp.asarray(x)), np.float64)


def check_sound(cells, g, lo, hi, rounding=1e-6):
  """Up to the rounding of the samples, and that of constants of programs in float32."""
  x, y = samples(g, lo, hi)
  y = np.where(np.isfinite(y), y, np.nan)
  low, high = (np.asarray(end, np.float64)[:, None] for end in cells.values(lo, hi))
  slack = rounding * abs(y) + 1e-3 * rounding
  assert np.all((low <= y + slack) | np.isnan(y))
  assert np.all((y - slack <= high) | np.isnan(y))
  alpha, beta = (np.asarray(end, np.float64)[:, None] for end in cells.between(lo, hi))
  step = np.diff(x)
  with np.errstate(all="ignore"):
    slope = np.where(step > 1e-9 * (1 + abs(x[:, 1:])), np.diff(y) / step, np.nan)
    slack = rounding * abs(slope) + 1e-3 * rounding + 2e-15 * (abs(y) + abs(x))[:, 1:] / step
  assert np.all((alpha <= slope + slack) | np.isnan(slope))
  assert np.all((slope - slack <= beta) | np.isnan(slope))


@pytest.mark.parametrize("name", ALL)
def test_sound(name):
  check_sound(slope_cells(ALL[name]), ALL[name], *intervals(np.float32))


@pytest.mark.parametrize("name", ["relu at 1/3", "gelu", "elu", "log", "pole near 3.1"])
def test_sound_in_float64(name):
  with jax.enable_x64(True):
    cells = slope_cells(ALL[name], dtype=np.float64)
    lo, hi = intervals(np.float64, seed=1)
    check_sound(cells, ALL[name], lo, hi, rounding=1e-13)
    assert cells.between(lo, hi)[0].dtype == cells.values(lo, np.float32(hi))[1].dtype == "float64"


@pytest.mark.parametrize("name", ALL)
def test_tight(name):
  domains = [(-2.3, -0.55), (-0.9, 0.4), (0.7, 1.9)] if name in LIPSCHITZ else [(3.3, 5.9)]
  lo, hi = np.transpose(domains)
  found = slope_cells(ALL[name]).between(lo, hi)
  for a, b, alpha, beta in zip(lo, hi, *found, strict=True):
    # As tight as the slopes on an interval that is longer by a cell on both sides.
    known = slope_interval(ALL[name], lo=a - 1 / 32, hi=b + 1 / 32)
    slack = 2e-3 * max(map(abs, known))
    assert known.lower - slack <= alpha
    assert beta <= known.upper + slack


@pytest.mark.parametrize("name", ALL)
def test_values_are_tight(name):
  lo = np.linspace(0.53, 2.5, 400, dtype=np.float32)
  hi = lo + np.float32(0.4)
  low, high = slope_cells(ALL[name]).values(lo, hi)
  x = np.linspace(lo, hi, 200, axis=1)
  y = np.asarray(ALL[name](x))
  slack = 0.01 * (np.ptp(y, axis=1) + abs(y).max(axis=1))
  assert np.all(low >= y.min(axis=1) - slack)
  assert np.all(high <= y.max(axis=1) + slack)


def test_cells_at_the_ends_only():
  lo, hi = np.array([[1e-3, 2], [-2, -1e-3], [-2, 1e-3], [0, 1], [-1, 0], [-0.0, 1e-40]], "f4").T
  alpha, beta = slope_cells(jax.nn.relu).between(lo, hi)
  assert alpha.tolist() == [1, 0, 0, 1, 0, 1]
  assert beta.tolist() == [1, 0, 1, 1, 0, 1]
  # Also by numbers that processors take for 0.
  assert slope_cells(jax.nn.relu).between(-1.0, 1e-40)[1] == 1
  assert slope_cells(jax.nn.relu).between(-1e-40, 1.0)[0] == 0


def test_values_of_relu():
  lo, hi = np.array([[-0.3, 0.01], [-2, -1], [-1, math.inf], [0.25, 1e9]], "f4").T
  low, high = slope_cells(jax.nn.relu).values(lo, hi)
  np.testing.assert_allclose(low, [0, 0, 0, 0.25], rtol=2e-6)
  np.testing.assert_allclose(high, [0.01, 0, math.inf, 1e9], rtol=2e-6)


def test_transformations():
  cells = slope_cells(STEEP["pole near 3.1"])
  lo = jnp.asarray([-jnp.inf, -2.0, -1.0, -0.01, 0.0, 0.0, 2.0, jnp.nan, 5.0, -4.0], jnp.float32)
  hi = jnp.asarray([-1.0, -1.0, 1.0, 0.03, 0.0, 4.0, jnp.inf, 1.0, 3.0, 4.0], jnp.float32)
  for query in (cells.between, cells.values):
    found = query(lo, hi)
    again = jax.jit(jax.vmap(query))(lo.reshape(2, 5), hi.reshape(2, 5))
    np.testing.assert_array_equal(np.ravel(again), np.ravel(found))
    total = lambda lo, hi, query=query: sum(end.sum() for end in query(lo, hi))
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(lo, hi)
    assert np.isfinite(gradients).all()
    assert query == cells.values or not np.any(gradients)


def test_gradients_of_values_are_slopes():
  cells = slope_cells(jax.nn.gelu)
  low, high = jax.jit(jax.jacrev(lambda x: cells.values(-x, x)))(0.3)
  slope = jax.vmap(jax.grad(jax.nn.gelu))(jnp.array([-0.3, 0.3]))
  assert abs(low + slope[0]) < 0.03
  assert abs(high - slope[1]) < 0.03


def test_no_interval():
  cells = slope_cells(jnp.tanh)
  nan, inf = math.nan, math.inf
  for query in (cells.between, cells.values):
    low, high = query(jnp.asarray([nan, 0.0, nan, 2.0]), jnp.asarray([0.0, nan, nan, 1.0]))
    assert low.tolist() == [-inf] * 4
    assert high.tolist() == [inf] * 4
  assert cells.values(inf, inf)[1] == cells.values(-inf, -inf)[1] == inf
  assert cells.between(jnp.zeros((0, 3)), jnp.zeros((0, 1)))[0].shape == (0, 3)
  assert cells.values(jnp.zeros(0), 1.0)[0].shape == (0,)
  # One point has slopes on both sides of it.
  assert slope_cells(jax.nn.relu).between(0.0, 0.0) == (0, 1)
  low, high = cells.values(0.5, 0.5)
  assert math.tanh(0.5) - 1e-6 <= low <= high <= math.tanh(0.5) + 1e-6


def test_half_precision():
  ends = jnp.asarray([-1.0, 0.1], jnp.bfloat16), jnp.asarray([0.3, 2.0], jnp.bfloat16)
  alpha, _ = slope_cells(jax.nn.relu, dtype=jnp.bfloat16).between(*ends)
  assert alpha.dtype == jnp.float32
  assert alpha.tolist() == [0, 1]


def test_jumps_and_gaps():
  lo, hi = np.array([[0, 0.99], [0, 1], [1, 1.5], [2, 4]]).T
  alpha, beta = slope_cells(jnp.floor).between(lo, hi)
  assert beta.tolist() == [0, math.inf, 0, math.inf]
  assert np.isneginf(alpha).tolist() == [False, True, False, True]
  jumping = slope_cells(lambda x: jnp.where(x > 1, x + 0.25, x))
  alpha, beta = jumping.between(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
  assert (alpha[0], beta[0], beta[1]) == (1, 1, math.inf)
  # Close to a pole, and where a slope is infinite.
  assert -2e6 < slope_cells(STEEP["reciprocal"]).between(2e-3, 1.0)[0] < -1 / 4e-6
  assert slope_cells(jnp.sqrt).between(1.0, math.inf) == pytest.approx((0, 0.5), abs=1e-3)
  # The slopes on either side of a pole say nothing of those across.
  for g in (
    STEEP["reciprocal"],
    lambda x: jnp.tanh(1 / x),
    lambda x: x**-3,
    STEEP["pole near 3.1"],
  ):
    assert slope_cells(g).between(-4.0, 4.0) == (-math.inf, math.inf)


def test_built_once():
  cells = slope_cells(lambda x: jax.nn.gelu(2 * x) + 1)
  assert slope_cells(jax.jit(lambda y: 1 + jax.nn.gelu(y * 2))) is cells
  assert slope_cells(lambda x: jax.nn.gelu(3 * x) + 1) is not cells
  seen = []

  @jax.jit
  def f(x):
    seen.append(slope_cells(lambda y: jnp.sqrt(4.0) * jnp.tanh(y)))
    return seen[0].between(-x, x)[1]

  assert f(1.0) == pytest.approx(2, rel=1e-3)


def test_errors():
  with pytest.raises(UnknownPrimitiveError, match="lgamma"):
    slope_cells(lambda x: lax.lgamma(x))
  mask = jnp.array([True, False, True])
  masked = jax.make_jaxpr(lambda x: jnp.where(mask & (x > 0), x, 0))(jnp.ones(3))
  with pytest.raises(CertifyError, match="one number each"):
    graph_of_jaxpr(masked)
