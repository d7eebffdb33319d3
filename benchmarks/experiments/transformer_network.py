"""A transformer of characters, whose parameters are matrices alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

#: Modules of lookup tables, which are not on the way from embeddings to logits.
TABLES = "tokens", "positions"
#: For lipjax, which holds the other matrices.
NOT_TABLES = {rf"({'|'.join(TABLES)})/embedding": None}


class Block(nn.Module):
  """Causal attention and a GELU layer, each after a normalization and around a residual."""

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Sequences, (..., length, width)."""
    width, mask = x.shape[-1], nn.make_causal_mask(x[..., 0])
    attend = nn.MultiHeadDotProductAttention(self.heads, use_bias=False, name="attention")
    x = x + attend(normalized(x), mask=mask)
    up = nn.Dense(4 * width, use_bias=False, name="up")(normalized(x))
    return x + nn.Dense(width, use_bias=False, name="down")(nn.gelu(up))


def normalized(x: jax.Array) -> jax.Array:
  """Each position divided by its root mean square, without a scale to learn."""
  return x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


class Transformer(nn.Module):
  """Logits of the next character.

  Attributes:
    vocabulary: how many characters there are.
    length: of the longest window.
    width: of the residual stream.
    heads: of each attention.
    layers: how many blocks.
  """

  vocabulary: int
  length: int
  width: int
  heads: int
  layers: int

  def setup(self):
    """Tables, blocks and head."""
    self.tokens = nn.Embed(self.vocabulary, self.width)
    self.positions = nn.Embed(self.length, self.width)
    self.blocks = [Block(self.heads) for _ in range(self.layers)]
    self.head = nn.Dense(self.vocabulary, use_bias=False)

  def embedded(self, window: jax.Array) -> jax.Array:
    """Sums of the vectors of characters and positions."""
    return self.tokens(window) + self.positions(jnp.arange(window.shape[-1]))

  def logits(self, x: jax.Array) -> jax.Array:
    """From those on."""
    for block in self.blocks:
      x = block(x)
    return self.head(normalized(x))

  def __call__(self, window: jax.Array) -> jax.Array:
    """From characters, (..., length), to (..., length, vocabulary)."""
    return self.logits(self.embedded(window))


def loss(network: Transformer, params: Any, windows: jax.Array) -> jax.Array:
  """Mean cross entropy of each character but the first, in nats."""
  logits = network.apply({"params": params}, windows[:, :-1])
  return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


def n_parameters(network: Transformer) -> int:
  """How many numbers are trained."""
  window = jax.ShapeDtypeStruct((1, network.length), int)
  params = jax.eval_shape(network.init, jax.random.key(0), window)["params"]
  return sum(w.size for w in jax.tree.leaves(params))
