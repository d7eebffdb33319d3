"""Norms and products that are never too small: rounded up, and without lost squares.

Squares of what is below 1e-19 in float32 become 0, and processors take numbers below the
smallest normal one for 0, even where they compare them. Both would make an upper bound too small.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.operators.products import compute_dtype
from lipjax.rounding.errors import down, sum_in_rows, sum_in_rows_terms, up


def tiny(dtype: Any) -> float:
  """The smallest normal number: at most so much is lost where a result is too small."""
  return float(jnp.finfo(dtype).tiny)


def max_magnitude(x: Any) -> jax.Array:
  """The largest magnitude of all entries, 0 where there are none."""
  size = jnp.abs(jnp.asarray(x))
  return jnp.max(size) if size.size else jnp.zeros((), size.dtype)


@functools.partial(jax.jit, static_argnums=1)
def norm_above(x: Any, axes: int | tuple[int, ...] | None = None) -> jax.Array:
  """At least the l2 norm over some axes, or all.

  0 for zeros only, infinite where an entry is; a number too small to be normal counts as
  the smallest normal one. NaN where an entry is. Its derivative at 0 is 0.
  """
  size = normal_magnitude(x)
  axes = tuple(range(size.ndim)) if axes is None else (axes,) if isinstance(axes, int) else axes
  axes = tuple(axis % size.ndim for axis in axes)
  others = [axis for axis in range(size.ndim) if axis not in axes]
  shape = [size.shape[axis] for axis in others]
  # Not -1 for the length: there may be no entries.
  n = math.prod(size.shape[axis] for axis in axes)
  size = jnp.transpose(size, (*others, *axes)).reshape((*shape, n))
  if n == 0:
    return jnp.zeros(shape, size.dtype)
  largest = lax.stop_gradient(jnp.max(size, axis=-1))
  # Between numbers whose inverses are normal: infinities stay, and nothing becomes NaN.
  low = tiny(size.dtype)
  scale = jnp.clip(jnp.where(largest > 0, largest, 1), low, 0.25 / low)
  square = sum_in_rows(jnp.square(size / scale[..., None]))
  root = jnp.sqrt(jnp.where(square == 0, 1, square))
  return jnp.where(square == 0, 0, up(scale * root, _roundings(n)))


def _roundings(n: int) -> int:
  """Of the norm of n numbers; those of the squares' sum count half."""
  return sum_in_rows_terms(n) // 2 + 6


@jax.jit
def times_above(a: Any, b: Any) -> jax.Array:
  """At least the product of two numbers that are not negative; 0 if one is 0.

  Numbers that were computed are normal or 0; of others take the `normal_magnitude`.
  """
  product = up(jnp.asarray(a * b), 2)
  is_live = jnp.minimum(a, b) > 0
  return jnp.where(is_live, jnp.maximum(product, tiny(product.dtype)), product)


def norm_below(x: Any, axes: int | tuple[int, ...] | None = None) -> jax.Array:
  """At most the l2 norm over some axes, or all; finite."""
  norm = norm_above(x, axes)
  n = max(jnp.size(x) // max(norm.size, 1), 1)
  # What `norm_above` added: twice its margin, and what was made a normal number.
  less = down(norm, 3 * _roundings(n)) - math.sqrt(n) * tiny(norm.dtype)
  return jnp.clip(less, 0, jnp.finfo(norm.dtype).max)


def flushed(x: Any) -> jax.Array:
  """At least the l2 norm of what sums and differences of such entries lose by being too small.

  A sum that is not 0 is normal where no term is below the smallest normal number over eps.
  """
  size = jnp.abs(jnp.asarray(x))
  low = tiny(size.dtype)
  is_small = (size > 0) & (size < 4 * low / float(jnp.finfo(size.dtype).eps))
  return jnp.where(jnp.any(is_small), 2 * math.sqrt(size.size) * low, 0)


@jax.custom_jvp
def normal_magnitude(x: Any) -> jax.Array:
  """The magnitude of each entry, at least the smallest normal number where it is not 0."""
  x = jnp.asarray(x)
  x = x.astype(compute_dtype(x.dtype))
  integer = jnp.dtype(jnp.int64 if x.dtype == jnp.float64 else jnp.int32)
  least = np.asarray(tiny(x.dtype), x.dtype).view(integer)
  # By its bits, from end to end: all else takes the numbers in question for 0, and LLVM makes
  # a comparison of the number out of a comparison of its bits with 0.
  bits = lax.bitcast_convert_type(x, integer) & jnp.iinfo(integer).max
  return lax.bitcast_convert_type(jnp.where(bits == 0, 0, jnp.maximum(bits, least)), x.dtype)


@normal_magnitude.defjvp
def _(primals, tangents):
  (x,), (slope,) = primals, tangents
  size = normal_magnitude(x)
  return size, jnp.sign(x).astype(size.dtype) * slope.astype(size.dtype)
