"""Where iterations start, and where they start again."""

from __future__ import annotations

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.measure.scaling import norm_and_direction

_FIRST, _SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
#: Zero is mixed to zero; with this no seed of a usual key is.
_SALT = np.uint32(0x9E3779B9)


def noise(shape: tuple[int, ...], dtype: Any, seed: Any = 0) -> jax.Array:
  """Numbers between −1 and 1 as good as random ones.

  `jax.random` takes a third of a second to compile for every shape of an array.
  """
  # Mixed before the seed comes in: else near seeds would give the same numbers, permuted.
  x = _mixed(jnp.arange(1, math.prod(shape) + 1, dtype=jnp.uint32)) ^ jnp.uint32(seed)
  return ((_mixed(x) >> 8).astype(dtype) * (2 / 2**24) - 1).reshape(shape)


def seed_of(key: jax.Array, path: str) -> jax.Array:
  """A seed for `noise`, from a key of `jax.random` and a leaf's path.

  The path gives a leaf the same start whatever other leaves there are, and different
  leaves different starts.
  """
  words = jax.random.key_data(key)
  if words.ndim != 1:
    msg = f"key is an array of {words.shape[:-1]} keys; expected one. Vmap over several."
    raise ValueError(msg)
  seed = jnp.uint32(zlib.crc32(path.encode())) ^ _SALT
  for word in words:
    seed = _mixed(seed ^ word)
  return seed


def _mixed(x: Any) -> jax.Array:
  """The finalizer of MurmurHash3, by which every bit changes half of all others."""
  x = (x ^ (x >> 16)) * _FIRST
  x = (x ^ (x >> 13)) * _SECOND
  return x ^ (x >> 16)


@functools.partial(jax.jit, static_argnames=("path", "shape", "n_batch", "dtype"))
def random_unit(key: jax.Array, path: str, shape, n_batch: int, dtype) -> jax.Array:
  """A random direction per slice; compiled in one when called outside jit."""
  return norm_and_direction(noise(shape, dtype, seed_of(key, path)), n_batch)[1]


def ones_unit(shape, n_batch: int, dtype) -> jax.Array:
  """The all-ones direction: what the papers start from. It can be orthogonal to v."""
  size = math.prod(shape[n_batch:])
  return jnp.full(shape, 1 / math.sqrt(max(size, 1)), dtype)


def restart_unit(shape, n_batch: int, dtype) -> jax.Array:
  """A fixed direction without structure, for a slice that has lost its own.

  A zero or non-finite weight leaves no direction to continue from, and no key is at hand in
  an update.
  """
  fixed = noise(shape[n_batch:], dtype)
  return jnp.broadcast_to(norm_and_direction(fixed, 0)[1], shape)
