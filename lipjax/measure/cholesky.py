"""Certified upper bounds of a symmetric matrix's largest eigenvalue by Cholesky factors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.block_matrix import Levels, level_block
from lipjax.measure.factors import cholesky, solve_lower
from lipjax.measure.gram import frobenius_above
from lipjax.rounding.errors import product_error, transpose_product, unit_roundoff, up

#: Terms of a product that are summed in one go.
CHUNK = 64


#: By how much more than 1 the norm is supposed to be at most, one after the other.
SHIFTS = (2e-5, 2e-4, 1e-3, 5e-3, 2.5e-2)
#: Rows of a block from which on the first of them is too close for the estimate.
LARGE = 256


def norm_upper_bound(levels: Levels) -> jax.Array:
  """An upper bound of a norm that is about 1 or below, from its square; tight near 1.

  Without a factor for any of a few shifts it is the largest row sum of magnitudes.
  """
  q = levels.diagonal.shape[1] * levels.rows.shape[-1]
  shifts = jnp.asarray(SHIFTS[q >= LARGE :], levels.rows.dtype)
  unknown = lambda state: (state[0] < len(shifts)) & jnp.isinf(state[1])

  def further(state):
    i, _ = state
    return i + 1, eigenvalue_upper_bound(levels, jnp.square(1 + shifts[i]))

  start = (0, jnp.asarray(jnp.inf, shifts.dtype))
  _, square = lax.while_loop(unknown, further, start)
  return up(jnp.sqrt(jnp.minimum(square, levels.magnitude)))


def eigenvalue_upper_bound(levels: Levels, shift: jax.Array) -> jax.Array:
  r"""An upper bound of the largest eigenvalue of a block tridiagonal M, near `shift`.

  With any block lower triangular R the residual :math:`F = RR^T - (\lambda I - M)` gives

  .. math:: \lambda_1(M) \le \lambda + \|F\|

  because :math:`M = \lambda I + F - RR^T`. The Cholesky factor of :math:`\lambda I - M`
  makes F tiny; there is none where λ is below the eigenvalue, and NaN comes out. What
  rounding does to R is in F, and what it does to F is bounded by `product_error`: nothing is
  assumed about how the factor is computed.

  Args:
    levels: M.
    shift: λ.

  Returns:
    A scalar, infinite where λ is below the eigenvalue.
  """
  q = levels.diagonal.shape[1] * levels.rows.shape[-1]
  identity = shift * jnp.eye(q, dtype=levels.rows.dtype)

  def level(factor, pairs):
    diagonal, below = (level_block(levels.rows, x) for x in pairs)
    # R has the rows (…, X^T, L) with L X = -below^T.
    x = solve_lower(factor, -below.T)
    mixed, mixed_error = _product(x, factor.T)
    square, square_error = _product(x, x)
    rest = identity - diagonal - square
    rest_error = 3 * unit_roundoff(rest.dtype) * (shift + _row_sum(diagonal) + _row_sum(square))
    factor = cholesky(rest)
    again, again_error = _product(factor.T, factor.T)
    on = _norm(again - rest) + square_error + up(rest_error, q) + again_error
    beside = _norm(mixed + below) + mixed_error
    return factor, (on, beside)

  # Before the first level is one of nothing.
  start = jnp.sqrt(shift) * jnp.eye(q, dtype=levels.rows.dtype)
  _, (on, beside) = lax.scan(level, start, (levels.diagonal, levels.below))
  bound = up(shift + jnp.max(on) + 2 * jnp.max(beside) + levels.error)
  return jnp.where(jnp.isnan(bound), jnp.inf, bound)


def _product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``a.T @ b``, and at least the norm of its rounding errors."""
  n, m = a.shape
  sums = jnp.sum(jnp.abs(a) * jnp.sum(jnp.abs(b), axis=1)[:, None], axis=0)
  error = product_error(n, CHUNK, a.dtype) * up(jnp.max(sums), n + m)
  # |a|^T|b| need not be symmetric: its norm is at most that of its larger row or column sum.
  across = jnp.sum(jnp.abs(b) * jnp.sum(jnp.abs(a), axis=1)[:, None], axis=0)
  error = jnp.maximum(error, product_error(n, CHUNK, a.dtype) * up(jnp.max(across), n + m))
  return transpose_product(a, b, CHUNK), error + 2 * n * m * float(jnp.finfo(a.dtype).tiny)


def _norm(x: jax.Array) -> jax.Array:
  """At least the norm of a difference that was rounded once."""
  return up(frobenius_above((x,))[0, 0])


def _row_sum(x: jax.Array) -> jax.Array:
  return jnp.max(jnp.sum(jnp.abs(x), axis=1))
