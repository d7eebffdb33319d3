"""What the engines of a chain compute with: products, norms and powers of two, with margins."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.gram import gram_upper_bound, n_gram_steps
from lipjax.rounding.errors import product_error, transpose_product, up

#: By how much a computed Schatten norm may exceed the norm: less than elsewhere, because a
#: chain multiplies what its layers lose.
TOLERANCE = 2e-5
#: Terms that are summed in one go.
CHUNK = 16


def norm_above(matrix: jax.Array) -> jax.Array:
  """At least the norm of each matrix, and close to it."""
  return gram_upper_bound(matrix, n_steps=n_gram_steps(min(matrix.shape[-2:]), TOLERANCE))


def norms_above(matrices: Sequence[jax.Array]) -> list[jax.Array]:
  """`norm_above` of each; all of one shape, or transposed, are compiled once."""
  tall = [x if x.shape[0] >= x.shape[1] else x.T for x in matrices]
  found: dict[int, jax.Array] = {}
  for shape in dict.fromkeys(x.shape for x in tall):
    members = [i for i, x in enumerate(tall) if x.shape == shape]
    norms = lax.map(norm_above, jnp.stack([tall[i] for i in members]))
    found |= dict(zip(members, norms, strict=True))
  return [found[i] for i in range(len(tall))]


def product(a: jax.Array, b: jax.Array) -> jax.Array:
  """The matrix product; `product_lost` bounds what rounding does to it."""
  return transpose_product(a.T, b, CHUNK)


def product_lost(a: jax.Array, b: jax.Array) -> jax.Array:
  r"""At least the norm of ``a @ b - product(a, b)``. No derivative.

  The difference is at most :math:`\gamma\,|A||B|`, entry by entry, and the norm of that is at
  most the root of its largest row sum times its largest column sum.

  Args:
    a: shape (m, k).
    b: shape (k, n).
  """
  a, b = lax.stop_gradient((jnp.abs(a), jnp.abs(b)))
  k, dtype = a.shape[1], a.dtype
  small = underflow(k, (a.shape[0], b.shape[1]), dtype)
  rows, columns = _dot(a, jnp.sum(b, axis=1)), _dot(jnp.sum(a, axis=0), b)
  # Sums of products that became 0 would come under a root.
  norm = _root_of_sums(rows + small, columns + small, sum(a.shape) + b.shape[1])
  return up(product_error(k, CHUNK, dtype) * norm) + small


def over_layers(
  step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, layers: Sequence[Any]
) -> tuple[Any, list[Any]]:
  """``carry, out = step(carry, layer)`` for each; layers of equal shapes are compiled once.

  Two matrices of one shape that follow each other are square, so that the carry of such a
  run keeps its shapes.
  """
  outs: list[Any] = []
  shapes = lambda layer: [x.shape for x in jax.tree.leaves(layer)]
  for _, group in itertools.groupby(layers, shapes):
    run = list(group)
    if len(run) == 1:
      carry, out = step(carry, run[0])
      outs.append(out)
    else:
      carry, stack = lax.scan(step, carry, jax.tree.map(lambda *x: jnp.stack(x), *run))
      outs.extend(jax.tree.map(lambda x, i=i: x[i], stack) for i in range(len(run)))
  return carry, outs


def underflow(terms: int, shape: tuple[int, ...], dtype) -> float:
  """At least the norm of what products and sums lose that are too small to be normal."""
  return 8 * terms * math.sqrt(math.prod(shape)) * float(jnp.finfo(dtype).tiny)


def magnitude_norm(x: jax.Array) -> jax.Array:
  r"""At least the norm of :math:`|X|`, and so of X; cheap, not close. No derivative."""
  x = lax.stop_gradient(jnp.abs(x))
  return _root_of_sums(jnp.sum(x, axis=1), jnp.sum(x, axis=0), sum(x.shape))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _root_of_sums(rows: jax.Array, columns: jax.Array, n_roundings: int) -> jax.Array:
  """The root of the largest sum over a row times the largest over a column."""
  # Two roots: the product of two small sums could be 0.
  return up(jnp.sqrt(jnp.max(rows)) * jnp.sqrt(jnp.max(columns)), n_roundings)


def product_of_scalars(factors: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The product of numbers from 1/16 to 2, at least, and an exponent of two that is left out."""
  total, exponent = jnp.ones((), factors.dtype), jnp.zeros((), jnp.int32)
  for start in range(0, factors.size, 24):
    # So many do not underflow.
    total = total * jnp.prod(factors[start : start + 24])
    k = exponent_of(total)
    total, exponent = times_power_of_two(total, -k), exponent + k
  return up(total, factors.size + 8), exponent


def exponent_of(x: jax.Array) -> jax.Array:
  """Integers k with ``2^(k-1) <= x < 2^k`` of positive normal numbers; 0 for 0. No derivative."""
  x = lax.stop_gradient(x)
  integer, n_bits, bias = _layout(x.dtype)
  k = (lax.bitcast_convert_type(x, integer) >> n_bits) - (bias - 1)
  return jnp.where(x == 0, 0, k).astype(jnp.int32)


def times_power_of_two(x: jax.Array, k: jax.Array) -> jax.Array:
  """``x 2^k``, exact unless the result is infinite or too small to be normal."""
  largest = _layout(x.dtype)[2] - 1
  # `jnp.ldexp` takes a power that is not always exact. Three steps reach from one end of the
  # normal numbers to the other, and all have the same sign.
  for _ in range(3):
    step = jnp.clip(k, -largest, largest)
    x, k = x * _power_of_two(step, x.dtype), k - step
  return x


@functools.partial(jax.jit, static_argnames="dtype")
def _power_of_two(k: jax.Array, dtype) -> jax.Array:
  integer, n_bits, bias = _layout(dtype)
  return lax.bitcast_convert_type((k.astype(integer) + bias) << n_bits, dtype)


def _layout(dtype) -> tuple[jnp.dtype, int, int]:
  """Of a floating dtype the integer dtype, the mantissa's bits and the exponent's bias."""
  info = jnp.finfo(dtype)
  integer = jnp.dtype(jnp.int64 if info.bits == 64 else jnp.int32)
  return integer, info.nmant, 1 - int(info.minexp)
