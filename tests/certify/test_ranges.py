"""Between which numbers the entries of an array lie, primitive by primitive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reference import FLOAT, normal

import lipjax
from lipjax.certify.compiled import on_arrays

AT, TWICE = jnp.array([1, 4]), jnp.array([2, 2])
W = normal(0, (6, 6))

MOVES = {
  "tile": lambda x: jnp.tile(x, 2),
  "unstack": lambda x: jnp.unstack(x.reshape(2, 3))[1],
  "split": lambda x: jnp.split(x, 2)[1],
  "top_k": lambda x: lax.top_k(x, 2)[0],
  "sort": lambda x: jnp.sort(x),
  "scatter": lambda x: x.at[AT].set(3 * x[:2]),
  "scatter onto a constant": lambda x: jnp.ones_like(x).at[AT].set(x[:2]),
  "scatter out of bounds": lambda x: x.at[AT + 4].set(3 * x[:2]),
  "scatter-max": lambda x: x.at[TWICE].max(3 * x[1:3]),
  "scatter-min": lambda x: x.at[TWICE].min(3 * x[1:3]),
  "segment_max": lambda x: jax.ops.segment_max(x, jnp.array([0, 0, 1, 0, 1, 2]), 3),
  "cummax": lambda x: lax.cummax(x, reverse=True),
  "cummin": lambda x: lax.cummin(x),
  "gather": lambda x: x[AT],
  "the larger of two": lambda x: jnp.maximum(x, x[::-1]),
}
SUMS = {
  "scatter-add": lambda x: x.at[TWICE].add(3 * x[:2]),
  "scatter-sub": lambda x: jnp.ones_like(x).at[TWICE].subtract(x[:2]),
  "segment_sum": lambda x: jax.ops.segment_sum(x, jnp.array([0, 0, 1, 0, 1, 2]), 3),
  "cumsum": lambda x: jnp.cumsum(x),
  "cumlogsumexp": lambda x: lax.cumlogsumexp(x),
  "product": lambda x: W @ x,
}


def range_of(fn, x, radius=None, box=None):
  """Between which numbers the entries of the one result lie."""
  last = lambda graph, facts: facts[graph.outputs[0]].range.full(
    graph.nodes[graph.outputs[0]].shape
  )
  return [np.asarray(end, np.float64) for end in on_arrays(last, fn, 0, (x,), radius, box)[1]]


def sampled(fn, lower, upper):
  """The least and the largest value at corners of a box and at points inside."""
  rng = np.random.default_rng(0)
  shares = np.concatenate([rng.integers(0, 2, (200, 6)), rng.random((50, 6))])
  with jax.enable_x64(True):
    points = jnp.asarray(lower + shares * (np.float64(upper) - lower))
    values = np.asarray(jax.vmap(fn)(points))
  return values.min(0), values.max(0)


@pytest.mark.first(10)
@pytest.mark.parametrize("name", [*MOVES, *SUMS])
def test_ranges(name):
  fn = MOVES.get(name) or SUMS[name]
  x = np.asarray(normal(1, (6,)), np.float32)
  for width in (0.0, 1e-6, 0.7):
    lower, upper = x - np.float32(width), x + np.float32(width)
    low, high = range_of(fn, jnp.asarray(x, FLOAT), box=(lower, upper))
    least, most = sampled(fn, lower, upper)
    assert np.all(low <= least)
    assert np.all(most <= high)
    # The largest of n terms is taken for all of them.
    slack = np.log(6) if name == "cumlogsumexp" else 0
    assert np.all(high - low <= (most - least) * (1 if name in MOVES else 1.2) + slack + 1e-4)


def test_ranges_of_half_precision_hold_what_underflows():
  x = jnp.full(4, 1e-5, jnp.float16)
  low, high = range_of(lambda x: x * x[::-1], x, radius=1e-6)
  assert np.all(low <= 0.9e-10)
  assert np.all(high >= 1.1e-10)


def with_rule(fn):
  """With a derivative rule, which is not read."""
  custom = jax.custom_jvp(fn)
  custom.defjvps(lambda slope, _, x: slope[0])
  return custom


CALLS = {
  "jit": jax.jit,
  "checkpoint": jax.checkpoint,
  "custom_jvp": with_rule,
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_called_keeps_its_ranges(name):
  """The row of a loop is written out without a recipe, and the call has none to give."""
  last = CALLS[name](lambda x: lax.scan(lambda _, row: (row, None), x[0], x)[0])
  fn = lambda x: last(x) * last(x)[::-1]
  upper = float(lipjax.lipschitz_upper_bound(fn, radius=0.1)(jnp.ones((2, 3))))
  assert 2 <= upper < 2.5


@pytest.mark.first(2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("fn", [jax.nn.log_softmax, jax.nn.logsumexp, jax.nn.softmax])
def test_functions_of_a_row_in_half_precision(fn, dtype):
  """They are summed in single precision, and have the bounds that they have in it."""
  x = jnp.zeros((3, 4), dtype)
  for axis in (-1, 0, (0, 1)):
    row = lambda x, axis=axis: fn(x, axis=axis)
    wide = float(lipjax.lipschitz_upper_bound(row)(x.astype(jnp.float32)))
    assert float(lipjax.lipschitz_upper_bound(row)(x)) == pytest.approx(wide, rel=1e-5)
    assert float(lipjax.lipschitz_upper_bound(row, radius=0.1)(x)) <= wide * (1 + 1e-5)
