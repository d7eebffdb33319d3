"""Decay of the singular values above a limit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import normal

import lipjax
from lipjax import Dense

WEIGHTS = {
  "wide": (Dense(), (6, 9)),
  "attention": (Dense((0,), (1, 2)), (8, 2, 4)),
  "stacked": (Dense((1,), (2,), (0,)), (3, 5, 4)),
}
PARAMS = {name: normal(i, shape) for i, (name, (_, shape)) in enumerate(WEIGHTS.items())}
LAYOUT = {name: operator for name, (operator, _) in WEIGHTS.items()}


def excess(params, limit):
  """The sum of all singular values' squared excess, half of it, differentiated by JAX."""
  matrices = (LAYOUT[name].matrix(w) for name, w in params.items())
  values = (jnp.linalg.svd(w, compute_uv=False) for w in matrices)
  return sum(0.5 * jnp.sum(jnp.square(jnp.maximum(s - limit, 0))) for s in values)


@pytest.mark.parametrize("method", ["clip_svd", "clip_sign"])
def test_it_is_the_gradient_of_the_excess(method):
  tx = lipjax.add_clip_decay(0.3, 1.2, method=method, layout=LAYOUT)
  updates, state = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
  slopes = jax.grad(excess)(PARAMS, 1.2)
  for name, update in updates.items():
    np.testing.assert_allclose(update, 1 + 0.3 * slopes[name], rtol=1e-4, atol=1e-5)
  assert state.count == 1


@pytest.mark.parametrize("limit", [1.2, "initial"])
def test_the_largest_values_are_followed(limit):
  """All that a matrix has are: the same as with its SVD."""
  grown = jax.tree.map(lambda w: 1.5 * w, PARAMS)
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  exact = lipjax.add_clip_decay(0.3, limit, layout=LAYOUT)
  want, _ = exact.update(zero, exact.init(PARAMS), grown)
  tx = lipjax.add_clip_decay(0.3, limit, method="clip_top_k", k=8, layout=LAYOUT)

  @jax.jit
  def update(state):
    return tx.update(zero, state, grown)

  state = tx.init(PARAMS)
  for _ in range(10):
    updates, state = update(state)
  for name, x in updates.items():
    np.testing.assert_allclose(x, want[name], atol=2e-3)
  read = lipjax.read_spectral_norms(state)["wide"]
  np.testing.assert_allclose(read, np.linalg.norm(grown["wide"], 2), rtol=1e-3)


def test_of_many_values_the_largest_ones_alone():
  values = jnp.array([5.0, 4.0, 3.0, 2.0, 0.5])
  params = {"kernel": jnp.diag(values), "scale": jnp.array([3.0, -2.0, 0.5])}
  layout = {"kernel": Dense(), "scale": lipjax.Diagonal()}
  tx = lipjax.add_clip_decay(1.0, 1.0, method="clip_top_k", k=2, layout=layout)
  state, zero = tx.init(params), jax.tree.map(jnp.zeros_like, params)
  for _ in range(10):
    updates, state = tx.update(zero, state, params)
  np.testing.assert_allclose(updates["kernel"].diagonal(), [4, 3, 0, 0, 0], atol=1e-2)
  np.testing.assert_allclose(updates["scale"], [2, -1, 0], atol=1e-6)


def test_convolutions_are_followed_too():
  params = {"kernel": 3 * normal(0, (3, 3, 2, 4))}
  layout = {"kernel": lipjax.Convolution((6, 6))}
  tx = optax.chain(
    lipjax.add_clip_decay(1.0, 2.0, method="clip_top_k", layout=layout),
    optax.scale_by_learning_rate(0.02),  # each weight is used at up to 36 places
  )

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return (optax.apply_updates(params, updates), state), None

  (after, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=60)
  before = lipjax.spectral_norms(params, layout=layout)["kernel"]
  assert before > 10
  assert lipjax.spectral_norms(after, layout=layout)["kernel"] < 2.2


def test_nothing_above_passes_bit_for_bit():
  updates = {"kernel": normal(3, (4, 4))}
  params = {"kernel": 0.1 * normal(4, (4, 4))}
  for strength, limit in ((1.0, 10.0), (0.0, 1e-3)):
    for method in ("clip_svd", "clip_top_k"):
      tx = lipjax.add_clip_decay(strength, limit, method=method)
      found, _ = tx.update(updates, tx.init(params), params)
      np.testing.assert_array_equal(found["kernel"], updates["kernel"])


def test_muon_beside_it_settles_where_it_is_said_to():
  """Updates of norm 1 for ever in one direction: σ comes to β + 1/λ."""
  params = {"kernel": 0.1 * jnp.eye(4)}
  tx = optax.chain(lipjax.add_clip_decay(0.5, 1.0), optax.scale_by_learning_rate(0.2))

  def step(carry, _):
    params, state = carry
    updates, state = tx.update({"kernel": -jnp.eye(4)}, state, params)
    return (optax.apply_updates(params, updates), state), None

  (after, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=200)
  np.testing.assert_allclose(np.linalg.svd(after["kernel"], compute_uv=False), 3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", ["clip_svd", "clip_sign"])
def test_half_precision_far_outside(method, dtype):
  """Where polynomials of caps turn signs around, above 3.56."""
  params = {"kernel": jnp.diag(jnp.array([300.0, 5.0, 0.5], dtype))}
  tx = lipjax.add_clip_decay(1.0, 1.0, method=method)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  assert updates["kernel"].dtype == dtype
  expected = np.diag([299.0, 4.0, 0.0])
  np.testing.assert_allclose(np.asarray(updates["kernel"], float), expected, rtol=1e-2, atol=1e-2)


def test_limits_and_strengths_per_operator_and_initial():
  params = {"kernel": normal(0, (4, 16))}
  zero, grown = jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda w: 3 * w, params)
  tx = lipjax.add_clip_decay(lipjax.PerOperator(1.0, power=0.0), "initial")
  state = tx.init(params)
  updates, _ = tx.update(zero, state, grown)
  left = np.linalg.svd(grown["kernel"] - updates["kernel"], compute_uv=False)
  assert left[0] == pytest.approx(np.linalg.norm(params["kernel"], 2), rel=1e-3)
  tx = lipjax.add_clip_decay(1.0, lipjax.PerOperator(0.5))
  updates, _ = tx.update(zero, tx.init(params), grown)
  left = np.linalg.svd(grown["kernel"] - updates["kernel"], compute_uv=False)
  np.testing.assert_allclose(left, 0.5 * 2, rtol=1e-3)


def test_a_nan_gets_nothing():
  params = {"kernel": jnp.ones((2, 2)).at[0, 0].set(jnp.nan)}
  tx = lipjax.add_clip_decay(1.0, 0.1)
  updates, _ = tx.update({"kernel": jnp.ones((2, 2))}, tx.init(params), params)
  np.testing.assert_array_equal(updates["kernel"], 1)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: lipjax.add_clip_decay(1.0, 0.0), "limit is 0"),
    (lambda: lipjax.add_clip_decay(1.0, 1.0, method="scale"), "'clip_svd', 'clip_sign'"),
    (lambda: lipjax.add_clip_decay(1.0, "first"), "or 'initial'"),
  ],
)
def test_wrong_options_raise(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_convolution_raises():
  params = {"kernel": jnp.ones((3, 3, 2, 2))}
  tx = lipjax.add_clip_decay(1.0, 1.0, layout={"kernel": lipjax.Convolution((4, 4))})
  with pytest.raises(ValueError, match="is no matrix"):
    tx.update(params, tx.init(params), params)
