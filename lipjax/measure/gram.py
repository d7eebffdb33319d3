"""Certified upper bounds of a matrix's norm by Gram iteration."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import (
  product_error,
  sum_in_rows,
  sum_in_rows_terms,
  transpose_product,
  unit_roundoff,
  up,
)

#: By how much the Schatten norm that is computed may exceed the spectral norm.
TOLERANCE = 2e-4
#: Terms that are summed in one go: in the first product, in the later ones, whose rounding
#: counts less, and in those of complex matrices, of which there are many.
FIRST_CHUNK, CHUNK, COMPLEX_CHUNK = 16, 64, 128


def gram_upper_bound(
  matrix: jax.Array, imaginary: jax.Array | None = None, *, n_steps: int | None = None
) -> jax.Array:
  r"""An upper bound of the spectral norm of each matrix, rounding included.

  Gram iteration (Delattre et al. 2023): with :math:`M_0 = W/\|W\|_F` and
  :math:`M_t = M_{t-1}^* M_{t-1}/f_t`, any :math:`f_t`, the norm obeys
  :math:`\sigma_1(M_{t-1})^2 = f_t\,\sigma_1(M_t)` and ends at
  :math:`\sigma_1(M_N) \le \|M_N\|_F`. In exact arithmetic that makes the Schatten norm of
  order :math:`2^{N+1}`, at most :math:`r^{2^{-N-1}}` times :math:`\sigma_1` for the smaller
  dimension r.

  **Rounding.** The computed product is :math:`M^*M + E` with
  :math:`|E| \le \gamma\,|M|^T|M|`, so :math:`\|E\|_2 \le
  e_t := \gamma\,\||M|^T|M|\|_\infty`, and the recursion is run as
  :math:`\sigma_1(M_{t-1}) \le \sqrt{f_t\,\sigma_1(M_t) + e_t}`. So the bound holds as it is
  computed, and says itself what rounding costs: in float32 at most 5e-4 at r = 512, growing
  with r. Products are summed in chunks to keep :math:`\gamma` small; see
  `lipjax.rounding.errors`.

  Args:
    matrix: shape ``(…, m, n)``, float32 or wider, finite; the real part of complex ones.
    imaginary: the imaginary part; real matrices when None.
    n_steps: N; as many as bring the Schatten norm within 2e-4 of :math:`\sigma_1` when None.

  Returns:
    Shape ``(…,)``; 0 for a zero matrix. Differentiable where it is real: the derivative is
    that of the Schatten norm.
  """
  parts = (matrix,) if imaginary is None else (matrix, imaginary)
  if matrix.shape[-2] < matrix.shape[-1]:
    parts = tuple(jnp.swapaxes(part, -2, -1) for part in parts)
  if n_steps is None:
    n_steps = n_gram_steps(parts[0].shape[-1], TOLERANCE)
  return _bound(n_steps, parts)


def n_gram_steps(rank: int, tolerance: float) -> int:
  """Steps after which the Schatten norm is within `tolerance` of the spectral norm."""
  if rank <= 1:
    return 0
  return max(1, math.ceil(math.log2(math.log(rank) / math.log1p(tolerance))) - 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _bound(n_steps: int, parts: tuple[jax.Array, ...]) -> jax.Array:
  largest = functools.reduce(jnp.maximum, map(jnp.abs, parts))
  largest = jnp.max(largest, axis=(-2, -1), keepdims=True)
  parts = _divided(parts, largest)
  norm = _frobenius(parts)
  parts = _divided(parts, norm)
  scale = up(largest * norm)
  step = functools.partial(_step, chunk=COMPLEX_CHUNK if len(parts) > 1 else CHUNK)
  chain = []
  if n_steps:
    # What rounding costs in a step is halved by every later square root.
    first = COMPLEX_CHUNK if len(parts) > 1 else FIRST_CHUNK
    parts, link = _step(parts, chunk=first)
    parts, links = lax.scan(lambda parts, _: step(parts), parts, length=n_steps - 1)
    chain = [links, jax.tree.map(lambda x: x[None], link)]
  sigma = frobenius_above(parts)
  for links in chain:
    sigma, _ = lax.scan(_back, sigma, links, reverse=True)
  # So do the two divisions that came first.
  sigma = sigma + 4 * unit_roundoff(sigma.dtype)
  return jnp.squeeze(up(scale * sigma), (-2, -1))


def _step(parts: tuple[jax.Array, ...], chunk: int):
  """The next matrices, and of each step its factor and what rounding can have added."""
  error = gram_error(parts, chunk)
  parts = gram(parts, chunk)
  factor = _frobenius(parts)
  return _divided(parts, factor), (factor, error)


def _back(sigma: jax.Array, link: tuple[jax.Array, jax.Array]):
  """From a bound of the norm after a step to one before it."""
  factor, error = link
  # The division by the factor rounds every entry of a matrix of Frobenius norm 1, or of at
  # most 2 after the worst rounding of a sum of 10⁷ squares.
  return jnp.sqrt(up(factor * (sigma + 2 * unit_roundoff(sigma.dtype)) + error)), None


@_bound.defjvp
def _(n_steps, primals, tangents):
  (parts,), (slopes,) = primals, tangents
  bound = _bound(n_steps, parts)
  scale = nonzero(bound)[..., None, None]
  schatten = functools.partial(schatten_norm, n_steps)
  _, slope = jax.jvp(schatten, (_divided(parts, scale),), (slopes,))
  return bound, jnp.where(bound > 0, slope, 0)


def schatten_norm(n_steps: int, parts: tuple[jax.Array, ...]) -> jax.Array:
  r"""The Schatten norm of order :math:`2^{N+1}`, no bound, of matrices with a norm near 1."""
  chunk = 2 * max(parts[0].shape[-2:])

  def step(parts, _):
    parts = gram(parts, chunk)
    factor = lax.stop_gradient(nonzero(_frobenius(parts)))
    return _divided(parts, factor), factor

  first, factors = None, None
  if n_steps:
    parts, first = step(parts, None)
    parts, factors = lax.scan(step, parts, length=n_steps - 1)
  square = sum(jnp.sum(jnp.square(part), axis=(-2, -1), keepdims=True) for part in parts)
  sigma = jnp.sqrt(jnp.where(square > 0, square, 1))
  if first is not None:
    back = lambda sigma, factor: (jnp.sqrt(factor * sigma), None)
    sigma, _ = lax.scan(back, sigma, factors, reverse=True)
    sigma, _ = back(sigma, first)
  return jnp.squeeze(jnp.where(square > 0, sigma, 0), (-2, -1))


def gram(parts: tuple[jax.Array, ...], chunk: int) -> tuple[jax.Array, ...]:
  r"""Real and imaginary part of :math:`M^*M`.

  :math:`(A + iB)^*(A + iB) = A^TA + B^TB + i(C - C^T)`, :math:`C = A^TB`: three real
  products.
  """
  if len(parts) == 1:
    return (transpose_product(parts[0], parts[0], chunk),)
  a, b = parts
  cross = transpose_product(a, b, chunk)
  real = transpose_product(a, a, chunk) + transpose_product(b, b, chunk)
  return real, cross - jnp.swapaxes(cross, -2, -1)


def gram_error(parts: tuple[jax.Array, ...], chunk: int) -> jax.Array:
  r"""At least the norm of what rounding can add to `gram`, shape (…, 1, 1).

  :math:`|E| \le \gamma\,N^TN` for :math:`N = |A| + |B|`, and the norm of that is at most its
  largest row sum, two products with a vector.
  """
  *_, m, n = parts[0].shape
  dtype = parts[0].dtype
  magnitude = functools.reduce(jnp.add, map(jnp.abs, parts))
  rows = jnp.sum(magnitude, axis=-1, keepdims=True)
  norm = jnp.max(jnp.sum(magnitude * rows, axis=-2, keepdims=True), axis=-1, keepdims=True)
  relative = product_error(m, chunk, dtype) + (2 * unit_roundoff(dtype) if parts[1:] else 0)
  # The products of tiny numbers that became 0 come on top.
  return relative * up(norm, m + n) + 2 * m * n * float(jnp.finfo(dtype).tiny)


def _divided(parts: tuple[jax.Array, ...], scale: jax.Array) -> tuple[jax.Array, ...]:
  return tuple(part / nonzero(scale) for part in parts)


def _frobenius(parts: tuple[jax.Array, ...]) -> jax.Array:
  """The Frobenius norm of matrices whose squares do not overflow."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(part), axis=(-2, -1), keepdims=True) for part in parts))


def frobenius_above(parts: tuple[jax.Array, ...]) -> jax.Array:
  """At least the Frobenius norm, shape (…, 1, 1)."""
  square = functools.reduce(jnp.add, map(jnp.square, parts))
  square = square.reshape((*square.shape[:-2], math.prod(square.shape[-2:])))
  norm = jnp.sqrt(sum_in_rows(square))
  return up(norm, sum_in_rows_terms(square.shape[-1]) // 2 + 4)[..., None, None]
