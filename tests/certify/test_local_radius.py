"""The radius that a ball's own bounds prove: above the global one, and no attack succeeds in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, normal

import lipjax
from lipjax import local_certified_radius

WEIGHTS = [normal(0, (16, 4)), normal(1, (12, 16), scale=0.3), normal(2, (3, 12), scale=0.3)]


def net(weights, x):
  for w in weights[:-1]:
    x = jax.nn.relu(w @ x + 0.5)
  return weights[-1] @ x


def nearest_flip(x, n=20_000):
  """How far the nearest of many points is that have another class."""
  rng = np.random.default_rng(0)
  steps = rng.standard_normal((n, 4))
  steps *= (rng.uniform(0, 4, n) / np.linalg.norm(steps, axis=1))[:, None]
  logits = np.asarray(x, np.float64) + steps
  for w in map(np.asarray, WEIGHTS[:-1]):
    logits = np.maximum(logits @ w.T.astype(np.float64) + 0.5, 0)
  logits = logits @ np.asarray(WEIGHTS[-1], np.float64).T
  flips = logits.argmax(axis=1) != int(jnp.argmax(net(WEIGHTS, x)))
  return np.linalg.norm(steps[flips], axis=1).min(initial=np.inf)


@jax.jit
@jax.vmap
def radii(x):
  everywhere = lipjax.margin_upper_bounds(net, 1)(WEIGHTS, x)
  local = local_certified_radius(net, 1, up_to=4.0)(WEIGHTS, x)
  return lipjax.certified_radius(net(WEIGHTS, x), everywhere), local


@pytest.mark.thorough
def test_a_batch_under_jit():
  points = normal(3, (8, 4), scale=2.0)
  everywhere, local = map(np.asarray, radii(points))
  # Bisected 8 times, and the optimizer may stop elsewhere on a ball.
  assert np.all(local >= 0.99 * everywhere)
  assert np.median(local / everywhere) > 1.1
  assert all(radius <= nearest_flip(x) for radius, x in zip(local, points, strict=True))


@pytest.mark.slow
def test_alone_and_traced_are_the_same():
  x = normal(3, (8, 4), scale=2.0)[0]
  alone = local_certified_radius(net, 1, up_to=4.0, n_steps=3)(WEIGHTS, x)
  traced = jax.jit(local_certified_radius(net, 1, up_to=4.0, n_steps=3))(WEIGHTS, x)
  np.testing.assert_allclose(alone, traced, rtol=1e-3)


def test_every_step_is_a_proof():
  x = normal(3, (8, 4), scale=2.0)[1]
  flip = nearest_flip(x)
  found = [
    float(local_certified_radius(net, 1, up_to=4.0, n_steps=n)(WEIGHTS, x)) for n in (1, 2, 6)
  ]
  assert 0 < found[0] <= found[1] <= found[2] <= flip


def test_linear_functions_are_exact():
  w = normal(4, (3, 4))
  x = normal(5, (4,), scale=3.0)
  logits = np.asarray(w @ x, np.float64)
  order = np.argsort(-logits)
  truth = min(
    (logits[order[0]] - logits[j]) / np.linalg.norm(np.asarray(w, np.float64)[order[0]] - w[j])
    for j in order[1:]
  )
  found = local_certified_radius(lambda x: w @ x, up_to=100.0)(x)
  assert truth * (1 - 1e-3) <= found <= truth * (1 + 1e-5)
  assert local_certified_radius(lambda x: w @ x, up_to=0.01)(x) == pytest.approx(0.01)


def test_what_has_no_bound_everywhere():
  def fn(x):
    return jnp.stack([jnp.sum(x * x), jnp.asarray(1.0, x.dtype)])

  # x² reaches 1 at a distance of 0.5 from 0.5.
  found = local_certified_radius(fn, up_to=3.0, n_steps=20)(jnp.full((1,), 0.5, FLOAT))
  assert 0.3 < found <= 0.5


@pytest.mark.parametrize("logits", [[1.0, 1.0], [np.nan, 0.0], [np.inf, 0.0]])
def test_no_strict_argmax(logits):
  fn = lambda x: jnp.asarray(logits, FLOAT) + 0 * x.sum()
  assert local_certified_radius(fn, up_to=1.0)(jnp.zeros(2, FLOAT)) == 0


def test_constant_logits():
  fn = lambda x: jnp.asarray([1.0, 0.0], FLOAT) + 0 * x.sum()
  assert local_certified_radius(fn, up_to=1.0)(jnp.zeros(2, FLOAT)) == 1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"up_to": 0.0}, "up_to is 0.0; expected a positive number"),
    ({"up_to": np.inf}, "up_to is inf"),
    ({"up_to": 1.0, "n_steps": 0}, "n_steps is 0; expected at least 1"),
    ({"up_to": 1.0, "effort": "most"}, "effort is 'most'"),
  ],
)
def test_errors(options, message):
  with pytest.raises(ValueError, match=message):
    local_certified_radius(lambda x: x, **options)


def test_several_logits_only():
  with pytest.raises(ValueError, match="Pass one example, not a batch"):
    local_certified_radius(lambda x: x, up_to=1.0)(jnp.zeros((3, 2), FLOAT))
