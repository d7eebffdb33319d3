"""Every consumer takes a convolution for the map that it is, when told its input's size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import FLOAT, jacobian, normal, operator_sigma, rtol_of

import lipjax

OPERATORS = {
  "same": (lipjax.Convolution((6, 5)), (3, 3, 2, 3)),
  "strided_groups": (lipjax.Convolution((7, 6), strides=2, feature_group_count=2), (3, 2, 2, 4)),
  "circular": (lipjax.Convolution((4, 4), padding="CIRCULAR"), (3, 3, 2, 2)),
  "transposed": (lipjax.Convolution.transposed((3, 3), (4, 4), strides=2), (4, 4, 2, 2)),
  "equinox": (lipjax.Convolution((5, 5), in_axis=1, out_axis=0), (3, 2, 3, 3)),
}
# Two in the default run, all of them with ``pytest -m "slow or not slow"``.
pytestmark = pytest.mark.parametrize(
  "name",
  [
    name if name in ("strided_groups", "transposed") else pytest.param(name, marks=pytest.mark.slow)
    for name in OPERATORS
  ],
)


def setup(name):
  operator, shape = OPERATORS[name]
  return operator, normal(7, shape), {"layout": {"kernel": operator}}


def dense_norm(operator, w):
  """The norm as a differentiable function, by the SVD of the operator's matrix."""
  x = jnp.zeros(operator.input_shape(w.shape), FLOAT)
  matrix = jax.jacobian(lambda x: operator.apply(w, x))(x).reshape((-1, x.size))
  return jnp.linalg.svd(matrix, compute_uv=False)[0]


@pytest.mark.first(1)
def test_decay_adds_the_gradient_of_the_squared_norm(name):
  operator, w, layout = setup(name)
  tx = lipjax.add_spectral_decay(0.3, n_steps=100, **layout)
  updates, state = tx.update({"kernel": 0 * w}, tx.init({"kernel": w}), {"kernel": w})
  expected = jax.grad(lambda w: 0.15 * dense_norm(operator, w) ** 2)(w)
  scale = float(jnp.max(jnp.abs(expected)))
  np.testing.assert_allclose(updates["kernel"], expected, atol=2e-4 * scale)
  sigma = lipjax.read_spectral_norms(state)["kernel"]
  np.testing.assert_allclose(sigma, operator_sigma(operator, w), rtol=1e-5)


@pytest.mark.first(1)
def test_normalized_norm_is_the_target(name):
  operator, w, layout = setup(name)
  vectors = lipjax.init_singular_vectors({"kernel": w}, start="converged", **layout)
  normalize = lambda w: lipjax.spectral_normalize({"kernel": w}, vectors, target=2.0, **layout)
  normalized = normalize(w)["kernel"]
  np.testing.assert_allclose(operator_sigma(operator, normalized), 2, rtol=rtol_of(w))
  weight = normal(8, w.shape)
  found = jax.grad(lambda w: jnp.vdot(weight, normalize(w)["kernel"]))(w)
  expected = jax.grad(lambda w: jnp.vdot(weight, 2 * w / dense_norm(operator, w)))(w)
  np.testing.assert_allclose(found, expected, atol=2e-4 * float(jnp.max(jnp.abs(expected))))


def test_projected_into_the_ball_by_scaling_and_by_nothing_else(name):
  operator, w, layout = setup(name)
  projected = lipjax.project_spectral_ball({"kernel": w}, 1.5, method="scale", **layout)
  np.testing.assert_allclose(operator_sigma(operator, projected["kernel"]), 1.5, rtol=rtol_of(w))
  inside = lipjax.project_spectral_ball({"kernel": w}, 1e3, method="scale", **layout)["kernel"]
  np.testing.assert_array_equal(inside, w)
  for method in ("clip_svd", "clip_sign", "clip_top"):
    with pytest.raises(ValueError, match="method='scale'"):
      lipjax.project_spectral_ball({"kernel": w}, 1.5, method=method, **layout)


def test_kept_in_the_ball_while_training(name):
  operator, w, layout = setup(name)
  ball = lipjax.keep_params_in_spectral_ball(1.0, method="scale", **layout)
  tx = optax.chain(optax.sgd(0.1), ball)
  params, state = {"kernel": w}, tx.init({"kernel": w})
  for i in range(2):
    updates, state = tx.update({"kernel": normal(i, w.shape)}, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(operator_sigma(operator, params["kernel"]), 1, rtol=0.01)


def test_norms_penalties_and_the_function_agree(name):
  operator, w, layout = setup(name)
  truth = operator_sigma(operator, w)
  norm = lipjax.spectral_norms({"kernel": w}, **layout)["kernel"]
  np.testing.assert_allclose(norm, truth, rtol=rtol_of(w))
  x = jnp.zeros(operator.input_shape(w.shape), FLOAT)
  np.testing.assert_allclose(
    lipjax.operator_norm(lambda x: operator.apply(w, x), x), truth, rtol=rtol_of(w)
  )
  vectors = lipjax.init_singular_vectors({"kernel": w}, start="converged", **layout)
  triplets = lipjax.singular_triplets({"kernel": w}, vectors, **layout)
  np.testing.assert_allclose(triplets["kernel"].sigma, truth, rtol=rtol_of(w))
  np.testing.assert_allclose(
    lipjax.frobenius_norms({"kernel": w}, **layout)["kernel"], np.linalg.norm(w), rtol=1e-6
  )
  assert jacobian(lambda x: operator.apply(w, x), x).shape[1] == x.size
