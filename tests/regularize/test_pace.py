"""When the tracked norms are refreshed: rarely where weights rest, at once where they move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import normal

import lipjax
from lipjax.operators.paths import float_leaves

PARAMS = {
  "Dense_0": {"kernel": normal(0, (20, 30))},
  "LayerNorm_0": {"scale": jnp.linspace(0.5, 2.0, 30)},
}


def follow(weights_at, n_updates, **options):
  """Largest relative lag at every update, with weights moved from outside, and the state."""
  tx = lipjax.add_spectral_decay(0.1, **options)
  params = weights_at(0)
  state, update = tx.init(params), jax.jit(tx.update)
  zeros, lags = jax.tree.map(jnp.zeros_like, params), []
  for i in range(n_updates):
    params = weights_at(i)
    _, state = update(zeros, state, params)
    exact = {path: exact_norm(w) for path, w in float_leaves(params).items()}
    tracked = lipjax.read_spectral_norms(state)
    lags.append(max(abs(float(tracked[path]) / exact[path] - 1) for path in exact if exact[path]))
  return np.array(lags), state


def exact_norm(w):
  w = np.asarray(w, np.float64)
  return np.linalg.norm(w, 2 if w.ndim == 2 else np.inf)


def test_weights_at_rest_are_left_alone_also_where_some_are_zero():
  params = PARAMS | {
    "Dense_1": {"kernel": jnp.zeros((30, 10))},
    "LayerNorm_1": {"scale": jnp.zeros(10)},
  }
  _, state = follow(lambda _: params, 40)
  assert state.pace.interval == 16
  refreshes = 6  # at 0, 1, 3, 7, 15 and 31
  assert state.vectors.steps <= 10 + refreshes


@pytest.mark.first(4)
@pytest.mark.parametrize("moving", ["Dense_0", "LayerNorm_0"])
@pytest.mark.parametrize("rate", [5e-4, 2e-3, 6e-3, 0.03])
def test_weights_that_grow_or_shrink_are_followed_within_a_percent(moving, rate):
  for signed in (rate, -rate):
    grown = lambda i, signed=signed: (
      PARAMS | {moving: jax.tree.map(lambda w: w * (1 + signed) ** i, PARAMS[moving])}
    )
    lags, state = follow(grown, 40)
    assert lags[1:].max() < 0.01
    assert (state.pace.interval > 3) == (rate < 2e-3)


def test_a_pace_of_the_users_own():
  lags, state = follow(lambda i: jax.tree.map(lambda w: w * 1.1**i, PARAMS), 9, every=4)
  np.testing.assert_allclose(lags[[0, 4, 8]], 0, atol=1e-2)
  np.testing.assert_allclose(lags[[1, 2, 3]], 1 - 1.1 ** -np.arange(1, 4), atol=1e-2)
  assert state.vectors.steps >= 3


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("every", [None, 10])
def test_an_ensemble_waits_as_one_network_does(every, depth):
  """Under vmap a branch became a select, and the steps were taken at every update."""
  tx = lipjax.add_spectral_decay(0.1, every=every)
  params = {"kernel": normal(0, (3, 2, 8, 6)[2 - depth :])}
  init, update = tx.init, tx.update
  for _ in range(depth):
    init, update = jax.vmap(init), jax.vmap(update)
  update, state, zeros = jax.jit(update), init(params), jax.tree.map(jnp.zeros_like, params)
  assert update.lower(zeros, state, params).as_text().count("stablehlo.case") == 1
  # One member's weights start to grow: all are measured when it is due, each by itself.
  for i in range(12):
    if i > 5:
      params = {"kernel": params["kernel"].at[(0,) * depth].multiply(1.02)}
    _, state = update(zeros, state, params)
  steps = np.asarray(state.vectors.steps)
  assert 2 <= steps.max() < 40
  # What the loop does for one of them, the others keep.
  assert (steps == steps.max()).all()
  exact = np.linalg.norm(np.asarray(params["kernel"], np.float64), 2, axis=(-2, -1))
  found = np.asarray(lipjax.read_spectral_norms(state)["kernel"])
  # The last of `every` ten was one update ago, which the one member grew by 2 % in.
  np.testing.assert_allclose(found, exact, rtol=0.01 if every is None else 0.021)


def test_derivatives_pass_through_an_update():
  tx = optax.chain(lipjax.add_spectral_decay(0.1), optax.sgd(0.1))
  start = {"kernel": normal(1, (6, 4))}

  def after_two(scale):
    params, state = start, tx.init(start)
    for _ in range(2):
      updates, state = tx.update(jax.tree.map(lambda w: scale * w, params), state, params)
      params = optax.apply_updates(params, updates)
    return jnp.sum(jnp.square(params["kernel"]))

  slope = jax.grad(after_two)(0.3)
  numeric = (after_two(0.31) - after_two(0.29)) / 0.02
  np.testing.assert_allclose(slope, numeric, rtol=1e-2)
  np.testing.assert_allclose(jax.jvp(after_two, (0.3,), (1.0,))[1], slope, rtol=1e-5)
