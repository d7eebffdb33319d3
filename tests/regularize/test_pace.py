"""When the tracked norms are refreshed: rarely where weights rest, at once where they move."""

import jax
import jax.numpy as jnp
import numpy as np
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
