"""The k largest singular values from cold, and the stable rank, against float64 SVDs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, dense_convolution, normal

import lipjax
from lipjax import Convolution, Dense, Diagonal

STRIDED = Convolution((5, 6), strides=(2, 1))
LEAVES = {
  "dense": (Dense(), (40, 30)),
  "stacked": (Dense((1,), (2,), (0,)), (3, 20, 10)),
  "thin": (Dense(), (2, 7)),
  "diagonal": (Diagonal(), (5,)),
  "convolution": (STRIDED, (3, 3, 2, 4)),
}
PARAMS = {name: normal(i, shape) for i, (name, (_, shape)) in enumerate(LEAVES.items())}
LAYOUT = {name: operator for name, (operator, _) in LEAVES.items()}


def exact_values(name, w):
  w = np.asarray(w, np.float64)
  if name == "diagonal":
    return np.sort(np.abs(w))[::-1]
  matrix = dense_convolution(STRIDED, w)[0] if name == "convolution" else w
  return np.linalg.svd(matrix, compute_uv=False)


def first(values, k):
  """The first k, with zeros where there are fewer."""
  missing = max(k - values.shape[-1], 0)
  return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])[..., :k]


@pytest.mark.parametrize("k", [1, 4])
def test_the_largest_values_of_every_operator(k):
  found = lipjax.spectral_norms(PARAMS, layout=LAYOUT, k=k)
  for name, w in PARAMS.items():
    expected = first(exact_values(name, w), k)
    assert found[name].shape == expected.shape
    np.testing.assert_allclose(found[name], expected, atol=3e-6 * expected.max(), err_msg=name)


@pytest.mark.parametrize("method", ["lanczos", "svd"])
def test_ties_zeros_and_nans(method):
  norms = lambda w, k: lipjax.spectral_norms({"kernel": w}, k=k, method=method)["kernel"]
  np.testing.assert_allclose(norms(jnp.eye(4, dtype=FLOAT), 5), [1, 1, 1, 1, 0], atol=1e-6)
  np.testing.assert_array_equal(norms(jnp.zeros((3, 4), FLOAT), 2), [0, 0])
  np.testing.assert_array_equal(norms(jnp.zeros((0, 4), FLOAT), 2), [0, 0])
  assert np.isnan(norms(jnp.full((3, 4), jnp.nan, FLOAT), 2)).all()
  for scale in (1e-30, 1e30):
    found = norms(scale * jnp.diag(jnp.asarray([3, 2, 1], FLOAT)), 2)
    np.testing.assert_allclose(found / scale, [3, 2], rtol=1e-5)


@pytest.mark.thorough
def test_first_and_second_derivatives():
  w = normal(9, (6, 5))
  found = lambda w: lipjax.spectral_norms({"kernel": w}, k=3)["kernel"]
  exact = lambda w: jnp.linalg.svd(w, full_matrices=False)[1][:3]
  np.testing.assert_allclose(jax.jacrev(found)(w), jax.jacrev(exact)(w), atol=1e-4)
  for outer in (jax.jacfwd, jax.jacrev):
    np.testing.assert_allclose(outer(jax.jacrev(found))(w), jax.hessian(exact)(w), atol=1e-4)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"k": 0}, "k is 0; expected an integer of at least 1"),
    ({"k": 2, "method": "power_iteration"}, "measures one value; use 'lanczos'"),
  ],
)
def test_wrong_arguments_raise(options, message):
  with pytest.raises(ValueError, match=message):
    lipjax.spectral_norms({"kernel": jnp.ones((2, 2))}, **options)


def test_stable_ranks():
  found = lipjax.stable_ranks(PARAMS, layout=LAYOUT)
  for name, w in PARAMS.items():
    sigma = exact_values(name, w)
    expected = np.square(sigma).sum(-1) / np.square(sigma[..., 0])
    np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)


def test_stable_ranks_at_the_edges():
  rank = lambda w: lipjax.stable_ranks({"kernel": w})["kernel"]
  value, gradient = jax.value_and_grad(rank)(jnp.zeros((3, 2), FLOAT))
  assert float(value) == 0
  assert not gradient.any()
  for scale in (1e-30, 1e30):
    np.testing.assert_allclose(rank(scale * jnp.eye(3, dtype=FLOAT)), 3, rtol=1e-5)
  assert rank(jnp.eye(3, dtype=jnp.bfloat16)).dtype == jnp.float32
  assert np.isnan(rank(jnp.full((2, 2), jnp.nan, FLOAT)))
