"""Powers of two, which round nothing: for bringing numbers of any scale near 1 and back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax


def exponent_of(x: jax.Array) -> jax.Array:
  """Integers k with ``2^(k-1) <= x < 2^k`` of positive normal numbers; 0 for 0. No derivative."""
  x = lax.stop_gradient(x)
  integer, n_bits, bias = _layout(x.dtype)
  k = (lax.bitcast_convert_type(x, integer) >> n_bits) - (bias - 1)
  return jnp.where(x == 0, 0, k).astype(jnp.int32)


def times_power_of_two(x: jax.Array, k: jax.Array) -> jax.Array:
  """``x 2^k``, exact unless the result is infinite or too small to be normal."""
  # `jnp.ldexp` takes a power that is not always exact. Two halves of one sign reach from one end
  # of the normal numbers to the other.
  half = k >> 1
  return x * _power_of_two(half, x.dtype) * _power_of_two(k - half, x.dtype)


def power_of_two(k: jax.Array, dtype) -> jax.Array:
  """``2^k``, exact; NaN where that, or its inverse, is not a normal number."""
  largest = _layout(jnp.dtype(dtype))[2] - 2
  return jnp.where(jnp.abs(k) <= largest, _power_of_two(k, dtype), jnp.nan)


@functools.partial(jax.jit, static_argnames="dtype")
def _power_of_two(k: jax.Array, dtype) -> jax.Array:
  integer, n_bits, bias = _layout(dtype)
  k = jnp.clip(k, 1 - bias, bias).astype(integer)
  return lax.bitcast_convert_type((k + bias) << n_bits, dtype)


def _layout(dtype) -> tuple[jnp.dtype, int, int]:
  """Of a floating dtype the integer dtype, the mantissa's bits and the exponent's bias."""
  info = jnp.finfo(dtype)
  integer = jnp.dtype(jnp.int64 if info.bits == 64 else jnp.int32)
  return integer, info.nmant, 1 - int(info.minexp)
