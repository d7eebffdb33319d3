r"""Bounds of rounding errors, for results that must hold with rounding included.

Everything here rests on the standard model: a sum of products of :math:`n` terms, in any
order and with or without fused multiply-adds, is off by at most :math:`\gamma_n` times the
same sum of magnitudes, :math:`\gamma_n = nu/(1-nu)` with :math:`u` the unit roundoff
(Higham 2002, section 3.1). IEEE arithmetic keeps it, on CPUs and GPUs, at
``precision="highest"``. Algorithms of Strassen's kind would not: for products of matrices XLA
has none, but a GPU's convolutions may run by Winograd's, so that `spectral_norm_bounds` runs
none there (`LinearOperator.apply_by_products`).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

#: Up to so many chunks of a product are computed at once, where they have so few entries: on CPUs
#: as fast as one after another, and a loop takes up to three times as long to compile.
PAIRED_CHUNKS, AT_ONCE = 16, 2**22
#: Matrices of up to so many rows and columns are multiplied entry by entry.
SMALL = 16


def unit_roundoff(dtype) -> float:
  """Half of eps: what one rounding costs, relatively."""
  return float(jnp.finfo(dtype).eps) / 2


def gamma(n: int, dtype) -> float:
  r""":math:`\gamma_n`, the relative error of a sum of `n` products."""
  nu = n * unit_roundoff(dtype)
  return nu / (1 - nu) if nu < 0.5 else math.inf


def up(x: jax.Array, n_operations: int = 8) -> jax.Array:
  """`x` ≥ 0 made larger by what so many roundings of it can have taken away."""
  # Four times what is needed, so that the product's own rounding is in it too.
  return x * (1 + 4 * n_operations * unit_roundoff(x.dtype))


def down(x: jax.Array, n_operations: int = 8) -> jax.Array:
  """`x` ≥ 0 made smaller by what so many roundings of it can have added."""
  return x * (1 - 4 * n_operations * unit_roundoff(x.dtype))


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``a + b`` rounded, and what rounding took away, exactly (Knuth 1969, section 4.2.2)."""
  total = a + b
  of_b = total - a
  return total, (a - (total - of_b)) + (b - of_b)


def pairwise_sum(x: jax.Array, axis: int) -> jax.Array:
  """The sum over an axis in `pairwise_terms` roundings: halves are added to halves."""
  axis %= x.ndim
  while (n := x.shape[axis]) > 1:
    half = -(-n // 2)
    rest = lax.slice_in_dim(x, half, n, axis=axis)
    if n % 2:
      ends = [(0, int(i == axis), 0) for i in range(x.ndim)]
      rest = lax.pad(rest, jnp.zeros((), x.dtype), ends)
    x = lax.slice_in_dim(x, 0, half, axis=axis) + rest
  return x.reshape((*x.shape[:axis], *x.shape[axis + 1 :]))


def pairwise_terms(n: int) -> int:
  """Roundings of `pairwise_sum` over `n` numbers."""
  return max(n - 1, 0).bit_length()


def sum_in_rows(x: jax.Array) -> jax.Array:
  """The sum over the last axis, of rows and then of them: not as many roundings as terms.

  More of them than `pairwise_sum` has, and far fewer operations to compile.
  """
  n = x.shape[-1]
  length = math.isqrt(n)
  rest = x[..., length * length :]
  rows = x[..., : length * length].reshape((*x.shape[:-1], length, length))
  return jnp.sum(jnp.sum(rows, axis=-1), axis=-1) + jnp.sum(rest, axis=-1)


def sum_in_rows_terms(n: int) -> int:
  """Roundings of `sum_in_rows` over `n` numbers."""
  return 4 * math.isqrt(n) + 2


def transpose_product(a: jax.Array, b: jax.Array, chunk: int) -> jax.Array:
  r""":math:`A^T B` of shapes ``(…, k, m)`` and ``(…, k, n)``, summed in chunks of `chunk`.

  Few chunks' results are added by pairs, those of many with their rounding errors kept: the
  error is at most `product_error` times :math:`|A|^T|B|`, however large k is.
  """
  k, m, n = *a.shape[-2:], b.shape[-1]
  if a.ndim > 2 and k and max(k, m, n) <= min(SMALL, chunk):
    # One loop over all of many small matrices: on CPUs up to five times as fast as `dot`.
    return jnp.sum(a[..., :, :, None] * b[..., :, None, :], axis=-3)
  dot = functools.partial(jnp.einsum, "...km,...kn->...mn", precision=lax.Precision.HIGHEST)
  if k <= chunk:
    return dot(a, b)
  n_chunks = -(-k // chunk)
  a, b = (_chunks(x, n_chunks, chunk) for x in (a, b))
  stack = jnp.broadcast_shapes(a.shape[:-3], b.shape[:-3])
  if n_chunks <= PAIRED_CHUNKS and math.prod(stack) * n_chunks * m * n <= AT_ONCE:
    return pairwise_sum(dot(a, b), -3)

  def add(carry, pair):
    total, lost = carry
    total, more = two_sum(total, dot(*pair))
    return (total, lost + more), None

  zero = jnp.zeros((*stack, m, n), a.dtype)
  (total, lost), _ = lax.scan(add, (zero, zero), [jnp.moveaxis(x, -3, 0) for x in (a, b)])
  return total + lost


def product_error(k: int, chunk: int, dtype) -> float:
  """Relative error of `transpose_product` over k terms, see there."""
  if k <= chunk:
    return gamma(k, dtype)
  n_chunks = -(-k // chunk)
  # A chunk's own error, and of halves that are added to halves; or, where errors are kept, the
  # last addition and the second-order error of the others.
  n_last = max(2, pairwise_terms(n_chunks)) if n_chunks <= PAIRED_CHUNKS else 2
  return gamma(chunk + n_last, dtype) + gamma(n_chunks, dtype) ** 2


def _chunks(x: jax.Array, n_chunks: int, chunk: int) -> jax.Array:
  """``(…, k, n)`` as ``(…, n_chunks, chunk, n)``, the last one filled with zeros."""
  missing = n_chunks * chunk - x.shape[-2]
  if missing:
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)])
  return x.reshape((*x.shape[:-2], n_chunks, chunk, x.shape[-1]))
