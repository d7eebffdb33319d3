r"""Vectors that see every frequency of a convolution at once.

A convolution on a circle does not mix frequencies, nor groups of features, and one with
zeros around its input hardly does. A vector of the input has a part in each: power
iteration in all of them costs what it costs in one, if each part is kept at one length.
Frequencies that a stride makes one (aliases) are one part; a stride that does not divide
its axis counts as 1.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def equalized(x: jax.Array, strides: tuple[int, ...], groups: int) -> jax.Array:
  """A vector ``spatial + (features,)`` with all its parts brought to one length, itself of 1."""
  parts, power = _parts(x, strides, groups)
  return _back(parts / _root(power), x) * math.sqrt(x.size / x.shape[-1] / power.size)


def largest_part(
  x: jax.Array, strides: tuple[int, ...], groups: int
) -> tuple[jax.Array, jax.Array]:
  """Its longest part alone, brought to length 1, and that length by a part of `equalized`."""
  parts, power = _parts(x, strides, groups)
  largest = jnp.max(power)
  # A real vector has the conjugate at −j too, of the same length but for rounding.
  part = _back(jnp.where(power >= largest * (1 - 1e-4), parts, 0), x)
  length = jnp.sqrt(largest * (power.size * x.shape[-1] / x.size))
  return part / _root(jnp.sum(jnp.square(part))), length


def _parts(x, strides, groups) -> tuple[jax.Array, jax.Array]:
  """The spectrum, and the square of every part's length, broadcast against it."""
  *sizes, features = x.shape
  n = len(sizes)
  spectrum = jnp.fft.fftn(x, axes=range(n))
  folds = [s if size % s == 0 else 1 for s, size in zip(strides, sizes, strict=True)]
  # Frequency a·(size/stride) + j is alias a of j.
  split = [y for s, size in zip(folds, sizes, strict=True) for y in (s, size // s)]
  parts = spectrum.reshape((*split, groups, features // groups))
  inside = (*range(0, 2 * n, 2), 2 * n + 1)
  return parts, jnp.sum(jnp.square(jnp.abs(parts)), axis=inside, keepdims=True)


def _back(parts: jax.Array, like: jax.Array) -> jax.Array:
  return jnp.fft.ifftn(parts.reshape(like.shape), axes=range(like.ndim - 1)).real


def _root(square: jax.Array) -> jax.Array:
  return jnp.where(square > 0, jnp.sqrt(square), 1)
