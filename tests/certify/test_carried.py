"""Bounds with multipliers that are carried on: sound at each step, soon as tight as others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, normal

import lipjax

X = jnp.zeros(6, FLOAT)


def net(weights, x):
  for w in weights[:-1]:
    x = jax.nn.relu(w @ x)
  return weights[-1] @ x


def network(seed, widths=(6, 16, 16, 4)):
  shapes = enumerate(itertools.pairwise(widths), start=seed)
  return [normal(i, (n, m), FLOAT, m**-0.5) for i, (m, n) in shapes]


BOUNDS = lipjax.carried_margin_upper_bounds(net, 1)
INIT, UPDATE = jax.jit(BOUNDS.init), jax.jit(BOUNDS.update)


def steepest(weights, n=200):
  """The largest norms of differences of rows of Jacobians, over patterns of active units."""
  rng, (a, b, c) = np.random.default_rng(0), [np.asarray(w, np.float64) for w in weights]
  on = rng.uniform(size=(2, n, 16)) < np.linspace(1, 0.3, n)[:, None]
  jacobians = c @ (on[0][:, :, None] * (b @ (on[1][:, :, None] * a)))
  return np.linalg.norm(jacobians[:, :, None] - jacobians[:, None], axis=-1).max(axis=0)


def test_sound_and_tight_while_weights_move():
  weights = network(0)
  state = INIT(weights, X)
  for k in range(30):
    drift = network(100 + 10 * k)
    weights = [w + 0.03 * step for w, step in zip(weights, drift, strict=True)]
    pairs, state = UPDATE(state, weights, X)
    assert np.all(pairs >= steepest(weights) * (1 - 1e-5))
  # One ellipsoid for all pairs, as that is by default.
  alone = lipjax.margin_upper_bounds(net, 1)(weights, X)
  np.testing.assert_array_equal(pairs, pairs.T)
  assert np.sum(pairs) <= 1.01 * np.sum(alone)
  # Where weights rest, multipliers become the best ones.
  for _ in range(50):
    pairs, state = UPDATE(state, weights, X)
  assert np.sum(pairs) <= np.sum(alone)


def test_sound_for_multipliers_of_other_weights():
  state = INIT(network(0), X)
  weights = [10.0**k * w for k, w in zip((3, -8, 9), network(7), strict=True)]
  for _ in range(3):
    pairs, state = UPDATE(state, weights, X)
    assert np.all(np.isfinite(pairs))
    assert np.all(pairs >= steepest(weights) * (1 - 1e-5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_with_weights_that_are_no_numbers(bad):
  weights = network(0)
  broken = [weights[0].at[0, 0].set(bad), *weights[1:]]
  pairs, state = UPDATE(INIT(weights, X), broken, X)
  assert np.all(pairs[np.triu_indices(4, 1)] == np.inf)
  after, _ = UPDATE(state, weights, X)
  assert np.all(np.isfinite(after))


@pytest.mark.thorough
def test_derivatives_and_scan():
  def loss(weights, state):
    pairs, state = BOUNDS.update(state, weights, X)
    return jnp.sum(pairs), state

  def step(carry, _):
    weights, state = carry
    (value, state), slopes = jax.value_and_grad(loss, has_aux=True)(weights, state)
    weights = [w - 1e-3 * slope for w, slope in zip(weights, slopes, strict=True)]
    return (weights, state), (value, jax.tree.map(jnp.vdot, weights, slopes))

  start = network(3), INIT(network(3), X)
  _, (values, products) = jax.jit(lambda start: jax.lax.scan(step, start, length=20))(start)
  assert np.all(np.diff(values) < 0)
  # A bound of twice the weights in a layer is twice as large.
  for product in products:
    np.testing.assert_allclose(product[5:], values[5:], rtol=0.1)


def test_what_has_no_ellipsoid():
  for fn in (lambda w, x: w @ x, lambda w, x: jnp.sum(w) + 0 * x[:4]):
    bounds = lipjax.carried_margin_upper_bounds(fn, 1)
    w = normal(0, (4, 6))
    state = bounds.init(w, X)
    assert state is None
    pairs, state = bounds.update(state, w, X)
    assert state is None
    np.testing.assert_allclose(pairs, lipjax.margin_upper_bounds(fn, 1)(w, X), rtol=1e-6)


@pytest.mark.slow
def test_on_a_ball():
  fn = lambda weights, x: net(weights, x + 1)
  bounds = lipjax.carried_margin_upper_bounds(fn, 1, radius=0.1, n_steps=2)
  weights = network(5)
  state = bounds.init(weights, X)
  pairs, _ = bounds.update(state, weights, X)
  whole, _ = UPDATE(INIT(weights, X), weights, X)
  assert np.sum(pairs) < np.sum(whole)


@pytest.mark.parametrize("other", [None, BOUNDS.init(network(0, (6, 24, 4)), X), {"a": X}])
def test_states_of_other_functions_raise(other):
  for update in (BOUNDS.update, UPDATE):
    with pytest.raises(ValueError, match="The state is not that of this function"):
      update(other, network(0), X)


def test_errors():
  with pytest.raises(ValueError, match="n_steps is -1; expected at least 0"):
    lipjax.carried_margin_upper_bounds(net, 1, n_steps=-1)
