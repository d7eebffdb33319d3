"""Measurements of sharded weights, and their derivatives, are those of whole ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import lipjax

norm = lambda w: lipjax.spectral_norms({"kernel": w})["kernel"]
largest = lambda w: lipjax.spectral_norms({"kernel": w}, k=3)["kernel"]
stable_rank = lambda w: lipjax.stable_ranks({"kernel": w})["kernel"]
MEASURES = {
  "largest": largest,
  "largest_gradient": jax.grad(lambda w: largest(w).sum()),
  "stable_rank": stable_rank,
  "stable_rank_gradient": jax.grad(stable_rank),
  "second_derivative": lambda w: jax.jvp(jax.grad(norm), (w,), (jnp.cos(w),))[1],
}


@pytest.mark.parametrize("name", MEASURES)
def test_sharded_is_whole(mesh, name):
  w = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
  put = lambda spec: jax.device_put(w, NamedSharding(mesh, spec))
  measure = jax.jit(MEASURES[name])
  found, expected = (np.asarray(measure(put(spec))) for spec in (P("x", "y"), P()))
  np.testing.assert_allclose(found, expected, atol=5e-6)
