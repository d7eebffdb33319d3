"""Where power iteration starts, and where it starts again."""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp

from lipjax.measure.scaling import norm_and_direction


def random_unit(key: jax.Array, path: str, shape, n_batch: int, dtype) -> jax.Array:
  """A random direction per slice; the key is folded with the leaf's path.

  Folding by path gives a leaf the same start whatever other leaves there are,
  and different leaves different starts.
  """
  key = jax.random.fold_in(key, zlib.crc32(path.encode()))
  return norm_and_direction(jax.random.normal(key, shape, dtype), n_batch)[1]


def ones_unit(shape, n_batch: int, dtype) -> jax.Array:
  """The all-ones direction: what the papers start from. It can be orthogonal to v."""
  size = math.prod(shape[n_batch:])
  return jnp.full(shape, 1 / math.sqrt(max(size, 1)), dtype)


def restart_unit(shape, n_batch: int, dtype) -> jax.Array:
  """A fixed direction without structure, for a slice that has lost its own.

  A zero or non-finite weight leaves no direction to continue from; no key is at
  hand in an update, and a direction from cosines of squares is as good as a
  random one.
  """
  size = math.prod(shape[n_batch:])
  index = jnp.arange(size, dtype=dtype) + 1
  wave = jnp.cos(index * jnp.sqrt(index) + index).reshape(shape[n_batch:])
  return jnp.broadcast_to(norm_and_direction(wave, 0)[1], shape)
