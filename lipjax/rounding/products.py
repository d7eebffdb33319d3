"""Products of matrices, and at least the norm of what rounding does to them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.rounding.errors import product_error, transpose_product, up

#: Terms that are summed in one go.
CHUNK = 32


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
  small = _small(a, b)
  dot = lambda a, b: jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
  rows, columns = dot(a, jnp.sum(b, axis=1)), dot(jnp.sum(a, axis=0), b)
  # Sums of products that became 0 would come under a root; and of two small sums the product.
  rows, columns = (jnp.sqrt(jnp.max(x, initial=0) + small) for x in (rows, columns))
  norm = up(rows * columns, sum(a.shape) + b.shape[1])
  return up(product_error(a.shape[1], CHUNK, a.dtype) * norm) + small


def matrix_norm_above(x: jax.Array) -> jax.Array:
  """At least the spectral norm of each of (…, n, m), √(‖x‖₁ ‖x‖∞). No derivative.

  No square over- or underflows in it.
  """
  x = jnp.abs(lax.stop_gradient(x))
  if not x.size:
    return jnp.zeros((), x.dtype)
  rows, columns = (jnp.sqrt(jnp.max(jnp.sum(x, axis))) for axis in (-1, -2))
  return up(rows * columns, sum(x.shape[-2:]) + 4)


def underflow(terms: int, shape: tuple[int, ...], dtype) -> float:
  """At least the norm of what products and sums lose that are too small to be normal."""
  return 8 * terms * math.sqrt(math.prod(shape)) * float(jnp.finfo(dtype).tiny)


def _small(a: jax.Array, b: jax.Array) -> float:
  return underflow(a.shape[1], (a.shape[0], b.shape[1]), a.dtype)
