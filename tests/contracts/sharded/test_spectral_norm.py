"""The Flax modules with sharded kernels. Flax's own raise on an explicit mesh."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from reference import normal, top_sigma

from lipjax.integrations import linen as lipjax_linen
from lipjax.integrations import nnx as lipjax_nnx

KERNEL = normal(0, (16, 8), jnp.float32)
X = np.asarray(normal(1, (4, 16), jnp.float32))
EXPECTED = X @ np.asarray(KERNEL) / top_sigma(KERNEL)


def sharded(mesh):
  return jax.device_put(KERNEL, NamedSharding(mesh, PartitionSpec(None, "y")))


def test_nnx(mesh):
  layer = nnx.Linear(16, 8, use_bias=False, rngs=nnx.Rngs(0))
  layer.kernel.set_value(sharded(mesh))
  model = lipjax_nnx.SpectralNorm(layer, rngs=nnx.Rngs(0))
  before = jax.tree.map(jax.typeof, nnx.to_pure_dict(nnx.state(model)))
  forward = nnx.jit(lambda model, x: model(x))
  # Gradients eagerly, of a jitted function, need `jax.set_mesh` whatever the layer.
  gradients = nnx.jit(nnx.grad(lambda model: jnp.sum(forward(model, X) ** 2)))(model)
  np.testing.assert_allclose(forward(model, X), EXPECTED, rtol=1e-4, atol=1e-6)
  kernel = model.layer_instance.kernel[...]
  assert gradients.layer_instance.kernel[...].sharding.is_equivalent_to(kernel.sharding, 2)
  assert jax.tree.map(jax.typeof, nnx.to_pure_dict(nnx.state(model))) == before


def test_linen(mesh):
  model = lipjax_linen.SpectralNorm(nn.Dense(8, use_bias=False))
  variables = model.init(jax.random.key(0), X, update_stats=False)
  variables["params"]["layer_instance"]["kernel"] = sharded(mesh)
  variables = lipjax_linen.remeasure(model, variables, X, update_stats=False)

  @jax.jit
  def forward(params):
    return model.apply(
      variables | {"params": params}, X, update_stats=True, mutable=["batch_stats"]
    )

  y, new = forward(variables["params"])
  np.testing.assert_allclose(y, EXPECTED, rtol=1e-4, atol=1e-6)
  types = lambda tree: jax.tree.map(jax.typeof, tree)
  assert types(new["batch_stats"]) == types(dict(variables["batch_stats"]))
  gradient = jax.jit(jax.grad(lambda params: jnp.sum(forward(params)[0] ** 2)))(variables["params"])
  kernel = gradient["layer_instance"]["kernel"]
  assert kernel.sharding.is_equivalent_to(sharded(mesh).sharding, 2)
