"""A refresh inside a training step reads the weights where they are."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import lipjax

SHAPES = {"in": (12, 96, 384), "out": (12, 384, 96)}
LAYOUT = {name: lipjax.Dense((1,), (2,), (0,)) for name in SHAPES}


def copies(tx):
  """Copies of a whole weight in a training step of layers stacked by `lax.scan`."""
  params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}

  def step(params, state, x):
    layer = lambda x, w: (x + jnp.tanh(x @ w["in"]) @ w["out"], None)
    loss = lambda params: jnp.sum(jnp.square(jax.lax.scan(layer, x, params)[0]))
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  jitted = jax.jit(step, donate_argnums=(0, 1))
  hlo = jitted.lower(params, tx.init(params), jnp.ones((8, 96))).compile().as_text()
  return len(re.findall(r"= f32\[12,(?:96,384|384,96)\]\S* (?:copy|transpose)\(", hlo))


@pytest.mark.parametrize("every", [None, 10])
def test_no_copy_of_weights_that_are_stacked_by_scan(every):
  decay = lipjax.add_spectral_decay(0.01, layout=LAYOUT, every=every)
  assert copies(optax.chain(decay, optax.adamw(1e-3))) == copies(optax.adamw(1e-3))
