"""Random starts: as different from each other as random numbers, for every kind of key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipjax
from lipjax.measure.starts import noise, random_unit, restart_unit, seed_of


def test_noise_is_even_and_seeds_have_nothing_in_common():
  n, size = 64, 4096
  x = np.asarray(jax.vmap(lambda seed: noise((size,), jnp.float32, seed))(np.arange(n)), np.float64)
  assert np.abs(x).max() <= 1
  # Five standard deviations of what even numbers between −1 and 1 give.
  np.testing.assert_allclose(x.mean(), 0, atol=5 / (3 * n * size) ** 0.5)
  np.testing.assert_allclose(np.square(x).mean(), 1 / 3, atol=5 / (11.25 * n * size) ** 0.5)
  for other in (x, np.roll(x, 1, axis=1)):
    correlation = 3 * x @ other.T / size - np.eye(n) * (other is x)
    assert np.abs(correlation).max() < 5.5 / size**0.5


def test_every_key_and_every_path_has_its_own_seed():
  keys = [jax.random.key(i, impl=impl) for i in range(50) for impl in ("threefry2x32", "rbg")]
  seeds = {int(seed_of(key, path)) for key in keys for path in ("", "a", "b")}
  assert len(seeds) == 300
  assert seed_of(jax.random.PRNGKey(3), "a") == seed_of(jax.random.key(3), "a")
  split = jax.random.split(jax.random.key(0), 100)
  assert len(set(jax.vmap(lambda key: seed_of(key, "a"))(split).tolist())) == 100


def test_several_keys_where_one_belongs_raise():
  keys, params = jax.random.split(jax.random.key(0), 3), {"kernel": jnp.eye(3)}
  for measure in (lipjax.spectral_norms, lipjax.init_singular_vectors):
    with pytest.raises(ValueError, match=r"\(3,\) keys; expected one"):
      measure(params, key=keys)
    with pytest.raises(TypeError, match="key"):
      measure(params, key=3)


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 2), (3, 1), (3, 0)])
def test_directions_are_units_of_their_own(shape):
  found = random_unit(jax.random.key(0), "a", shape, 1, jnp.float32)
  assert found.shape == shape
  lengths = jnp.linalg.norm(found.reshape(3, -1), axis=1)
  np.testing.assert_allclose(lengths, 1.0 if found.size else 0.0, rtol=1e-6)
  again = restart_unit(shape, 1, jnp.float32)
  np.testing.assert_array_equal(again, jnp.broadcast_to(again[:1], shape))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_of_any_kind_measure_alike(impl):
  params = {"kernel": jnp.diag(jnp.array([3.0, 1.0, 0.5]))}
  key = jax.random.key(1, impl=impl)
  assert float(lipjax.spectral_norms(params, key=key)["kernel"]) == pytest.approx(3)
  vectors = lipjax.init_singular_vectors(params, key=key, start="converged")
  assert float(lipjax.read_spectral_norms(vectors)["kernel"]) == pytest.approx(3)
