"""Matrix functions that change singular values and keep singular vectors.

All of them take matrices of shape ``(…, m, n)`` in float32 or wider.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.scaling import nonzero

PolarMethod = Literal["newton_schulz", "bjorck"]

#: Coefficients a, b, c of X ← aX + bXXᵀX + c(XXᵀ)²X. Newton–Schulz in Jordan's tuning
#: multiplies small singular values by 3.44 a step and stops short of 1; Björck's of second
#: order by 1.875.
_GROWTH = {"newton_schulz": (3.4445, -4.7750, 2.0315), "bjorck": (1.875, -1.25, 0.375)}
#: Björck's steps also bring [0.68, 1.21], where the tuned ones end, to 1: the error cubes.
_POLISH_STEPS = 5
#: How far squares of singular values may be from 1 for these steps alone: 0.68² and 1.21².
_NEAR = 0.46
#: Decades by which a norm may exceed the radius and be clipped in one pass.
_ONE_PASS = math.log10(4)


def polar_factor(x: jax.Array, method: PolarMethod = "newton_schulz") -> jax.Array:
  r""":math:`UV^T` of :math:`X = USV^T`: every nonzero singular value becomes 1.

  An odd polynomial of :math:`X` acts on its singular values alone. Both polynomials
  diverge on singular values much above 1, so the matrix is first divided by
  :math:`\|(X^TX)^2\|_F^{1/4} \ge \sigma_1`, which nothing leaves. The number of steps
  is what a singular value of ``eps * sigma_1`` needs to grow to 1; smaller ones
  stay below 1, and zero stays zero. Of matrices that are near their factors all steps but the
  last ones are left out: a step of training moves weights little.
  """
  a, b, c = _GROWTH[method]
  eps = float(jnp.finfo(x.dtype).eps)
  n_growth = math.ceil(math.log(1 / eps) / math.log(a))
  transposed = x.shape[-1] > x.shape[-2]
  x = jnp.swapaxes(x, -1, -2) if transposed else x

  def grown(x: jax.Array) -> jax.Array:
    largest, norm = _norm_bound(x)
    # Two divisions: their product can leave the dtype's range.
    x = x / largest / norm
    return lax.fori_loop(0, n_growth, lambda _, x: _odd_step(x, a, b, c), x)

  away = _gram(x) - jnp.eye(x.shape[-1], dtype=x.dtype)
  # In Frobenius' norm, which is at least the spectral one; no number is not near.
  is_near = jnp.all(jnp.linalg.norm(away, axis=(-2, -1)) <= _NEAR)
  x = lax.cond(is_near, lambda x: x, grown, x)
  x = lax.fori_loop(0, _POLISH_STEPS, lambda _, x: _odd_step(x, *_GROWTH["bjorck"]), x)
  return jnp.swapaxes(x, -1, -2) if transposed else x


def polished(x: jax.Array) -> jax.Array:
  """Matrices with orthonormal columns up to rounding, with less of it.

  The derivative is theirs: what is orthonormal for all arguments is its own polar factor.
  """
  # One step: its error is the cube of what a solution of equations leaves.
  fixed = lax.stop_gradient(x)
  return x + (_odd_step(fixed, *_GROWTH["bjorck"]) - fixed)


def clip_by_svd(x: jax.Array, radius: jax.Array) -> jax.Array:
  r""":math:`U\min(S, c)V^T`, the nearest matrix of norm at most `radius`."""
  # LAPACK never returns from a matrix with an infinity.
  finite = jnp.isfinite(x).all(axis=(-2, -1), keepdims=True)
  u, s, vh = jnp.linalg.svd(jnp.where(finite, x, 0), full_matrices=False)
  clipped = _matmul(u * jnp.minimum(s[..., None, :], radius), vh)
  # Inside the ball the nearest matrix is x itself, not its rounded factors' product.
  return jnp.where(s[..., :1, None] > radius, clipped, x)


def clip_by_sign(x: jax.Array, radius: jax.Array) -> jax.Array:
  r"""The same as `clip_by_svd` without an SVD, by products alone, which accelerators prefer.

  With :math:`X` in units of the radius, :math:`S` its polar factor and :math:`M` that of
  the symmetric :math:`S^TX - I`, which is :math:`+1` on the directions with
  :math:`\sigma > 1` and :math:`-1` on the others,

  .. math:: \tfrac12\big[(S + X) + (S - X)M\big]

  has singular values 1 where :math:`\sigma > 1` and :math:`\sigma` elsewhere. Where
  :math:`\sigma \approx 1`, and M has not converged, :math:`S - X` is small; where
  :math:`\sigma \ll 1`, and S has not, S cancels. Rounding adds some
  :math:`\epsilon\sigma_1`, so a norm far outside takes further passes.
  """
  transposed = x.shape[-1] > x.shape[-2]
  unit = (jnp.swapaxes(x, -1, -2) if transposed else x) / radius

  def one_pass(_, x):
    s = polar_factor(x)
    h = _matmul(jnp.swapaxes(s, -1, -2), x)
    m = polar_factor(0.5 * (h + jnp.swapaxes(h, -1, -2)) - jnp.eye(x.shape[-1], dtype=x.dtype))
    return 0.5 * ((s + x) + _matmul(s - x, m))

  largest, norm = _norm_bound(unit)
  decades = jnp.log10(largest) + jnp.log10(norm) - _ONE_PASS
  # A non-finite slice must not keep the others going.
  decades = jnp.max(jnp.where(jnp.isfinite(decades), decades, 0), initial=0)
  n_passes = 1 + jnp.ceil(decades / 6).astype(jnp.int32)
  clipped = radius * lax.fori_loop(0, n_passes, one_pass, unit)
  return unless_rounding(jnp.swapaxes(clipped, -1, -2) if transposed else clipped, x)


def unless_rounding(new: jax.Array, x: jax.Array, n_eps: int = 32) -> jax.Array:
  """`new`, or `x` itself where they differ by no more than rounding."""
  norm = lambda a: jnp.linalg.norm(a, axis=(-2, -1), keepdims=True)
  scale = nonzero(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
  noise = n_eps * jnp.finfo(x.dtype).eps * norm(x / scale)
  return jnp.where(norm((new - x) / scale) <= noise, x, new)


def _norm_bound(x):
  r"""``(a, b)`` with :math:`\sigma_1 \le ab`, which may leave the dtype's range; 1 for zero."""
  largest = nonzero(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
  square = _gram(_gram(x / largest))
  norm = jnp.sqrt(jnp.sqrt(jnp.linalg.norm(square, axis=(-2, -1), keepdims=True)))
  # Room for rounding; the polynomials bear far more than that.
  return largest, nonzero(1.01 * norm)


def _odd_step(x, a, b, c):
  gram = _gram(x)
  return a * x + _matmul(x, b * gram + c * _matmul(gram, gram))


def _gram(x):
  return _matmul(jnp.swapaxes(x, -1, -2), x)


def _matmul(x, y):
  return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)
