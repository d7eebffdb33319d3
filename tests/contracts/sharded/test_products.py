"""Products of sharded leaves: no leaf is gathered, and what comes out is that of one device."""

import jax
import numpy as np
import pytest
from contracts.registry import assert_close, normal, norms_for_vectors
from contracts.sharded.test_hlo import moved
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import lipjax

INPUTS, HEADS, WIDTH = 512, 4, 512
SHAPES = {name: {"kernel": (INPUTS, HEADS, WIDTH)} for name in ("query", "key")}
OF_HEADS = {".*": lipjax.Dense((0,), (1, 2))}
#: Each head's eight singular vectors and the eight of the step before, inputs and outputs.
N_VECTORS = HEADS * 16 * 2 * INPUTS


def with_a_largest_direction(params):
  """Of each head's product one singular value far above the others.

  Vectors of values that lie close are decided by rounding, which is the machine's.
  """
  outer = np.cos(np.arange(INPUTS))[:, None, None] * np.sin(np.arange(WIDTH))
  return jax.tree.map(lambda kernel: kernel + 0.4 * outer.astype(np.float32), params)


@pytest.mark.first(1)
@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P("x", None, "y")], ids=str)
def test_a_decay_of_heads(mesh, spec):
  params, grads = with_a_largest_direction(normal(0, SHAPES)), normal(1, SHAPES)
  layout = lipjax.qk_products(params, layout_overrides=OF_HEADS)
  tx = lipjax.add_spectral_decay(0.1, layout=layout)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return updates, state

  expected = jax.jit(step)(params, tx.init(params), grads)
  sharding = NamedSharding(mesh, spec)
  params, grads = (jax.device_put(tree, sharding) for tree in (params, grads))
  state = tx.init(params)
  compiled = jax.jit(step).lower(params, state, grads).compile()
  n_leaf = jax.tree.leaves(params)[0].addressable_shards[0].data.size
  assert n_leaf > N_VECTORS
  assert [(op, n) for op, n in moved(compiled.as_text()) if n > N_VECTORS] == []
  found = compiled(params, state, grads)
  for leaf in jax.tree.leaves(found[0]):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  on_host = lambda tree: jax.tree.map(np.asarray, norms_for_vectors(tree))
  assert_close(on_host(found), on_host(expected), 256)
