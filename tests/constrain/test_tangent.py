"""Steps along manifolds: tangent updates, and where retractions lead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import normal

import lipjax
from lipjax import Dense

WEIGHTS = {
  "tall": (Dense(), (4, 9)),
  "wide": (Dense(), (9, 4)),
  "square": (Dense(), (5, 5)),
  "attention": (Dense((0,), (1, 2)), (8, 2, 4)),
  "stacked": (Dense((1,), (2,), (0,)), (3, 5, 4)),
}
LAYOUT = {name: operator for name, (operator, _) in WEIGHTS.items()}
PARAMS = lipjax.orthogonalize(
  {name: normal(i, shape) for i, (name, (_, shape)) in enumerate(WEIGHTS.items())}, layout=LAYOUT
)
GRADIENTS = {name: normal(9 + i, w.shape) for i, (name, w) in enumerate(PARAMS.items())}


def matrices(tree, name):
  """Tall ones."""
  with jax.enable_x64(True):
    matrix = LAYOUT[name].matrix(jnp.asarray(tree[name], jnp.float64))
    return np.asarray(
      matrix if matrix.shape[-2] >= matrix.shape[-1] else jnp.swapaxes(matrix, -1, -2)
    )


def test_updates_are_tangent_and_the_nearest_ones():
  tx = lipjax.keep_updates_tangent(layout=LAYOUT)
  updates, _ = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
  again, _ = tx.update(updates, optax.EmptyState(), PARAMS)
  for name in PARAMS:
    w, g = matrices(PARAMS, name), matrices(updates, name)
    inner = np.swapaxes(w, -1, -2) @ g
    np.testing.assert_allclose(inner + np.swapaxes(inner, -1, -2), 0, atol=1e-5)
    # Orthogonal to what was taken away.
    away = matrices(GRADIENTS, name) - g
    assert abs(np.sum(away * g)) < 1e-4
    np.testing.assert_allclose(again[name], updates[name], atol=1e-5)


def test_a_curve_on_the_manifold_has_such_slopes():
  a = normal(0, (5, 5))
  curve = lambda t: jax.scipy.linalg.expm(t * (a - a.T)) @ PARAMS["square"]
  slope = {"kernel": jax.jacobian(curve)(0.0)}
  tx = lipjax.keep_updates_tangent()
  found, _ = tx.update(slope, optax.EmptyState(), {"kernel": PARAMS["square"]})
  np.testing.assert_allclose(found["kernel"], slope["kernel"], atol=1e-5)


@pytest.mark.first(2)
@pytest.mark.parametrize("direction", [optax.trace(0.9), optax.scale_by_adam()])
@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_a_thousand_steps_stay_on_it(direction, shape):
  params = lipjax.orthogonalize({"kernel": normal(0, shape)})
  wave = normal(1, shape)
  loss = lambda params: jnp.sum(jnp.sin(3 * params["kernel"] * wave))
  tangent = lipjax.keep_updates_tangent()
  rate = optax.scale_by_learning_rate(0.02)
  tx = optax.chain(tangent, direction, tangent, rate, lipjax.keep_params_orthogonal())

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), (params["kernel"], loss(params))

  (params, _), (weights, losses) = jax.lax.scan(step, (params, tx.init(params)), length=1000)
  values = np.linalg.svd(np.asarray(weights, np.float64), compute_uv=False)
  np.testing.assert_allclose(values, 1, atol=1e-6)
  # Where it has come to the gradient is normal to the manifold.
  slopes, _ = tangent.update(jax.grad(loss)(params), optax.EmptyState(), params)
  assert losses[-1] < 5 * losses[0] < 0
  assert np.linalg.norm(slopes["kernel"]) < 0.05 * np.linalg.norm(jax.grad(loss)(params)["kernel"])


def test_the_frobenius_sphere():
  params = {"kernel": normal(0, (3, 5, 4)), "scale": normal(1, (4,))}
  layout = {"kernel": Dense((1,), (2,), (0,)), "scale": lipjax.Diagonal()}
  tx = lipjax.keep_updates_tangent(manifold="frobenius", layout=layout)
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
  inner = np.sum(np.asarray(updates["kernel"] * params["kernel"]), axis=(1, 2))
  np.testing.assert_allclose(inner, 0, atol=1e-5)
  assert abs(float(updates["scale"] @ params["scale"])) < 1e-5


@pytest.mark.parametrize("manifold", ["orthogonal", "frobenius"])
def test_zeros_nans_and_half_precision(manifold):
  tx = lipjax.keep_updates_tangent(manifold=manifold)
  ones = {"kernel": jnp.ones((3, 2))}
  for value in (0.0, jnp.nan):
    params = {"kernel": jnp.full((3, 2), value)}
    updates, _ = tx.update(ones, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], 1)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), ones)
  assert tx.update(params, tx.init(params), params)[0]["kernel"].dtype == jnp.bfloat16


def test_wrong_calls_raise():
  with pytest.raises(ValueError, match="'orthogonal', 'frobenius'"):
    lipjax.keep_updates_tangent(manifold="sphere")
  params = {"kernel": jnp.ones((3, 3, 1, 1))}
  tx = lipjax.keep_updates_tangent(layout={"kernel": lipjax.Convolution((4, 4))})
  with pytest.raises(ValueError, match="is no matrix"):
    tx.update(params, tx.init(params), params)
  with pytest.raises(ValueError, match="params"):
    tx.update(params, optax.EmptyState())
