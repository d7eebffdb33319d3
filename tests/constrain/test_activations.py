"""GroupSort and reflections, and what our certifier says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal

import lipjax


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_groups_are_sorted(size, axis):
  x = normal(0, (6, 6, 6))
  found = np.moveaxis(np.asarray(lipjax.group_sort(x, size, axis)), axis, -1)
  groups = np.moveaxis(np.asarray(x), axis, -1).reshape((6, 6, -1, size))
  np.testing.assert_array_equal(found, np.sort(groups, -1).reshape((6, 6, 6)))


def test_pairs_are_max_and_min():
  x = normal(1, (4, 10))
  found = lipjax.group_sort(x)
  np.testing.assert_array_equal(found[:, 0::2], jnp.minimum(x[:, 0::2], x[:, 1::2]))
  np.testing.assert_array_equal(found[:, 1::2], jnp.maximum(x[:, 0::2], x[:, 1::2]))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_deep_orthogonal_network_is_proved_to_be_1_lipschitz(size, dtype):
  raw = {f"dense_{i}": {"kernel": normal(i, (8, 8))} for i in range(6)}
  kernels = [x["kernel"] for x in lipjax.orthogonalize(raw).values()]

  def network(x):
    for kernel in kernels:
      x = lipjax.group_sort(x @ kernel.astype(x.dtype), size)
    return x

  rounding = 6 * 4 * float(jnp.finfo(dtype).eps) * 8**0.5
  found = lipjax.lipschitz_upper_bound(network, effort="fast")(jnp.zeros(8, dtype))
  assert found <= 1.002 + rounding
  slopes = np.linalg.svd(jax.jacobian(network)(normal(9, (8,))), compute_uv=False)
  np.testing.assert_allclose(slopes, 1, atol=1e-5)


@pytest.mark.parametrize("size", [0, 4])
def test_sizes_that_do_not_fit_raise(size):
  with pytest.raises(ValueError, match=f"group_size is {size}; expected .* divides 6"):
    lipjax.group_sort(jnp.ones(6), size)


@pytest.mark.parametrize("axis", [-1, 0])
def test_pairs_are_reflected(axis):
  x, angles = normal(0, (6, 4, 6)), np.asarray([0.3, -2.0, 4.0])
  found = np.moveaxis(np.asarray(lipjax.householder(x, jnp.asarray(angles), axis)), axis, -1)
  pairs = np.moveaxis(np.asarray(x), axis, -1).reshape((-1, 3, 2))
  cos, sin = np.cos(angles), np.sin(angles)
  mirrors = np.moveaxis(np.asarray([[cos, sin], [sin, -cos]]), -1, 0)
  side = pairs[..., 0] * np.sin(angles / 2) - pairs[..., 1] * np.cos(angles / 2)
  reflected = np.einsum("kij,nkj->nki", mirrors, pairs)
  expected = np.where(side[..., None] > 0, pairs, reflected)
  np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)


def test_at_a_right_angle_it_is_max_and_min():
  x = normal(1, (4, 10))
  found = lipjax.householder(x, jnp.pi / 2)
  np.testing.assert_allclose(found[:, 0::2], jnp.maximum(x[:, 0::2], x[:, 1::2]), atol=1e-6)
  np.testing.assert_allclose(found[:, 1::2], jnp.minimum(x[:, 0::2], x[:, 1::2]), atol=1e-6)
  assert lipjax.householder(x.astype(jnp.bfloat16), jnp.pi / 2).dtype == jnp.bfloat16


@pytest.mark.thorough
def test_a_reflecting_network_is_proved_to_be_1_lipschitz():
  raw = {f"dense_{i}": {"kernel": normal(i, (8, 8))} for i in range(2)}
  kernels = [x["kernel"] for x in lipjax.orthogonalize(raw).values()]

  def network(angles, x):
    for kernel, angle in zip(kernels, angles, strict=True):
      x = lipjax.householder(x @ kernel.astype(x.dtype), angle)
    return x

  angles = normal(7, (2, 4))
  x = jnp.zeros(8, jnp.float32)
  layer = lambda angle, x: lipjax.householder(x, angle)
  assert 1 - 1e-6 <= lipjax.lipschitz_upper_bound(layer, argnums=1)(angles[0], x) <= 1.001
  found = lipjax.lipschitz_upper_bound(network, argnums=1, effort="tight")(angles, x)
  assert 1 - 1e-6 <= found <= 1.005
  slopes = jax.jacobian(lambda x: network(angles, x))(normal(9, (8,)))
  np.testing.assert_allclose(np.linalg.svd(slopes, compute_uv=False), 1, atol=1e-5)


def test_pairs_that_do_not_fit_raise():
  with pytest.raises(ValueError, match="x has dtype int32; expected floating-point numbers"):
    lipjax.householder(jnp.arange(4, dtype=jnp.int32), 1.0)
  with pytest.raises(ValueError, match="x has 5 entries on axis -1; expected an even number"):
    lipjax.householder(jnp.ones(5), 1.0)
  with pytest.raises(ValueError, match=r"angles have shape \(2,\); expected \(3,\)"):
    lipjax.householder(jnp.ones(6), jnp.ones(2))


def test_our_certifier_proves_what_users_write_themselves():
  """A centred norm is a projection, β-abs keeps lengths, a cosine head is as steep as 1/ε."""
  head = lipjax.project_sphere({"kernel": jnp.ones((8, 1))}, 1.0, norm="rows")["kernel"]
  layers = {
    lambda x: x - jnp.mean(x, axis=-1, keepdims=True): 1,
    lambda x: jnp.where(jnp.arange(8) < 4, jnp.abs(x), x): 1,
    lambda x: (x / jnp.sqrt(jnp.sum(x**2) + 0.25) @ head)[0]: 2,
  }
  for layer, slope in layers.items():
    upper = lipjax.lipschitz_upper_bound(layer)(jnp.zeros(8))
    assert slope * (1 - 1e-5) <= upper <= 1.005 * slope
