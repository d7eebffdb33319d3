"""GroupSort, and what our certifier says of it."""

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
