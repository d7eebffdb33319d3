"""GPT-2 small: its tree of weights, and a training step with its layers in a scan."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import lipjax


class Size(NamedTuple):
  """Of a network and its batch."""

  width: int = 768
  blocks: int = 12
  vocabulary: int = 50257
  heads: int = 12
  batch: int = 8
  length: int = 1024


SMALL = Size(width=32, blocks=2, vocabulary=101, heads=2, batch=2, length=16)


def tree(size: Size) -> dict[str, dict[str, jax.Array]]:
  """Every kernel as a leaf of its own, six a block, and the embedding: 124 M numbers."""
  n = size.width
  shapes = {
    f"block_{i:02d}/{name}": shape
    for i in range(size.blocks)
    for name, shape in (
      *((name, (n, n)) for name in ("query", "key", "value", "out")),
      ("up", (n, 4 * n)),
      ("down", (4 * n, n)),
    )
  }
  keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
  leaves = {
    name: {"kernel": _random(key, shape)}
    for key, (name, shape) in zip(keys[1:], shapes.items())  # noqa: B905
  }
  return {"wte": {"embedding": _random(keys[0], (size.vocabulary, n))}, **leaves}


def blocks_only(params: Any) -> Any:
  """A mask that leaves the embedding out."""
  return {name: jax.tree.map(lambda _, on=name != "wte": on, leaf) for name, leaf in params.items()}


#: What the leaves of `stacked` are.
LAYOUT = {
  **{f"blocks/{name}": lipjax.Dense((1,), (2,), (0,)) for name in ("qkv", "out", "up", "down")},
  "wte": lipjax.Dense(),
}


def stacked(size: Size) -> dict[str, Any]:
  """The same weights as one array a kind, as `lax.scan` takes them."""
  n, keys = size.width, jax.random.split(jax.random.key(0), 5)
  shapes = {"qkv": (n, 3 * n), "out": (n, n), "up": (n, 4 * n), "down": (4 * n, n)}
  blocks = {
    name: _random(key, (size.blocks, *shape))
    for key, (name, shape) in zip(keys[1:], shapes.items(), strict=True)
  }
  return {"wte": _random(keys[0], (size.vocabulary, n)), "blocks": blocks}


def loss(params: Any, tokens: jax.Array, size: Size) -> jax.Array:
  """Cross entropy of the next token, computed in bfloat16 from float32 weights."""
  half = lambda tree: jax.tree.map(lambda w: w.astype(jnp.bfloat16), tree)
  wte = half(params["wte"])

  @jax.checkpoint
  def block(x, w):
    w = half(w)
    heads = lambda y: y.reshape((*y.shape[:-1], size.heads, -1))
    query, key, value = (heads(y) for y in jnp.split(_normed(x) @ w["qkv"], 3, axis=-1))
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    x = x + mixed.reshape(x.shape) @ w["out"]
    return x + jax.nn.gelu(_normed(x) @ w["up"]) @ w["down"], None

  x, _ = lax.scan(block, wte[tokens[:, :-1]], params["blocks"])
  logits = (_normed(x) @ wte.T).astype(jnp.float32)
  return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def _normed(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  return (x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)).astype(jnp.bfloat16)


def _random(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return 0.02 * jax.random.normal(key, shape)
