"""The demo's network, in Flax nnx, as pure functions of its parameters."""

from __future__ import annotations

import jax
import optax
from flax import nnx

from lipjax.commands.demo_data import Split


class Mlp(nnx.Module):
  """A 64-256-256-10 perceptron with ReLU."""

  def __init__(self, rngs: nnx.Rngs):
    self.hidden_1 = nnx.Linear(64, 256, rngs=rngs)
    self.hidden_2 = nnx.Linear(256, 256, rngs=rngs)
    self.output = nnx.Linear(256, 10, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits of a batch of images."""
    x = nnx.relu(self.hidden_1(x))
    x = nnx.relu(self.hidden_2(x))
    return self.output(x)


def init_params(key: jax.Array) -> nnx.State:
  """The parameters of a new network."""
  return nnx.split(Mlp(nnx.Rngs(key)))[1]


def logits(params: nnx.State, images: jax.Array) -> jax.Array:
  """The network with these parameters, on a batch of images."""
  graph, _ = nnx.split(nnx.eval_shape(lambda: Mlp(nnx.Rngs(0))))
  return nnx.merge(graph, params)(images)


def loss(params: nnx.State, batch: Split) -> jax.Array:
  """Mean cross entropy."""
  scores = logits(params, batch.images)
  return optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels).mean()
