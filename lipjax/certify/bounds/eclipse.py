"""The bound of a chain that the semidefinite program's closed-form point gives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.bounds.chain_engines import Bound, Layer
from lipjax.certify.bounds.chain_products import (
  magnitude_norm,
  norm_above,
  over_layers,
  product,
  product_lost,
  product_of_scalars,
)
from lipjax.rounding.errors import unit_roundoff, up

#: Newton–Schulz steps that bring the residual 1/17 below the unit roundoff.
N_INVERSE_STEPS = {"float32": 3, "float64": 4}


def eclipse(layers: list[Layer]) -> Bound:
  r"""ECLipsE-Fast for slopes in [0, 1]; lower ends above 0 count as 0.

  Let :math:`z_i = \phi_i(U_i z_{i-1})`, differences of two runs throughout, and suppose
  :math:`\|x\|^2 \ge z_{i-1}^T X z_{i-1}/s` with X positive definite. Slopes in [0, 1] mean
  :math:`z_i^T(U_i z_{i-1} - z_i) \ge 0`. Subtracting that with the multiplier
  :math:`2/(ts)` (S-lemma), and minimizing over :math:`z_{i-1}`,

  .. math::
    s\,\|x\|^2 \ge \frac{1}{t}\,z_i^T\Big(2I - \frac{1}{t} F\Big) z_i, \qquad
    F = U_i X^{-1} U_i^T,

  which is the same statement with :math:`s t` and :math:`2I - F/t`. Any t > 0 is allowed; with
  :math:`t \ge \|F\|` the next X lies between I and 2I, whatever the chain is. At the end
  :math:`\|U_l z_{l-1}\|^2 \le \|F\|\,z_{l-1}^T X z_{l-1}`: the square of the bound is the
  product of all t.

  **Rounding.** The statement holds for every smaller X and, with it, every larger F.

  1. Computed and made symmetric, :math:`\hat F` has lost e, so
     :math:`F \preceq \hat F + eI` and :math:`t = \|\hat F\| + e` will do.
  2. The floating-point matrix :math:`X = (2 - \mu)I - \hat F/t` is what follows, where the
     margin :math:`\mu` is :math:`e/t` and what rounding can add: then X is smaller than it
     may be, and its smallest eigenvalue is at least :math:`1 - 2\mu`.
  3. Whatever Y a few Newton–Schulz steps give, with :math:`R = I - XY` it obeys
     :math:`X^{-1} = Y + X^{-1}R`, so :math:`X^{-1} \preceq Y + \|R\|/(1 - 2\mu)\,I` for
     symmetric Y; R is computed with a margin.

  Reference:
    Xu & Sivaranjani (2024), ECLipsE: Efficient Compositional Lipschitz Constant Estimation
    for Deep Neural Networks, NeurIPS, arXiv:2404.04375, the second algorithm, with
    :math:`\Lambda = 2/\sigma_{\max}(F)\,I`.
  """

  def step(carry, layer):
    *inverse, known, _ = carry
    t, lost, f = _eclipse_step(layer, inverse)
    *inverse, is_good = _inverse(t, lost, f)
    return (*inverse, known & is_good, known), t

  first, *others = layers = [layer.without_slopes() for layer in layers]
  one, known, found = jnp.ones((), first.matrix.dtype), jnp.ones((), bool), []
  if others and others[0].matrix.shape == first.matrix.shape:
    # The identity is a Y, so that one program does for all layers.
    start = (jnp.eye(first.matrix.shape[1], dtype=one.dtype), 0 * one, one, known, known)
  else:
    t, lost, f = _eclipse_step(first, None)
    *inverse, is_good = _inverse(t, lost, f)
    start, found, layers = (*inverse, is_good, known), [t], others
  # Of the last layer's inverse nothing is needed.
  (*_, known), ts = over_layers(step, start, layers)
  factor, exponent = product_of_scalars(jnp.sqrt(jnp.stack([*found, *ts])))
  return jnp.where(known, factor, jnp.inf), exponent


def _eclipse_step(layer: Layer, inverse: Any) -> tuple[jax.Array, ...]:
  """t, what F has lost, and F; `inverse` as `_inverse` returns it, None for I."""
  u, u_norm = layer.matrix, layer.norm + layer.lost
  if inverse is None:
    right, size, lost = u.T, 1.0, jnp.zeros((), u.dtype)
  else:
    y, gap, size = inverse
    right = product(y, u.T)
    lost = gap * jnp.square(layer.norm) + u_norm * product_lost(y, u.T)
  f = product(u, right)
  f = (f + f.T) / 2
  # U Y Uᵀ - Û Y Ûᵀ = (U - Û) Y Uᵀ + Û Y (U - Û)ᵀ, and rounding of the sum.
  lost = lost + product_lost(u, right) + 2 * layer.lost * size * u_norm
  lost = lax.stop_gradient(up(lost + 2 * unit_roundoff(u.dtype) * magnitude_norm(f)))
  return up(norm_above(f) + lost), lost, f


def _inverse(t: jax.Array, lost: jax.Array, f: jax.Array) -> tuple[jax.Array, ...]:
  """Y, the multiple of I that is missing, a bound of ‖Y‖, and whether rounding left anything."""
  dtype, unit = f.dtype, unit_roundoff(f.dtype)
  eye = jnp.eye(f.shape[0], dtype=dtype)
  # Of the division, and of two subtractions of numbers below 4.
  margin = lax.stop_gradient(up((lost + 2 * unit * magnitude_norm(f)) / t) + 16 * unit)
  is_good = margin < 0.25
  margin = jnp.minimum(margin, 0.25)
  g = f / t
  x = (2 - margin) * eye - g
  # (24 - 8X)/17 has the smallest residual of its degree for eigenvalues from 1 to 2, and
  # no LAPACK call waits in somebody's loop.
  dot = lambda a, b: jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
  y = (24 * eye - 8 * x) / 17
  for _ in range(N_INVERSE_STEPS[jnp.dtype(dtype).name]):
    y = y + dot(y, eye - dot(x, y))
  y = (y + y.T) / 2
  largest = up(1 / (1 - 2 * margin))
  residual = magnitude_norm(eye - product(x, y)) + product_lost(x, y) + 4 * unit
  gap = lax.stop_gradient(up(largest * residual))
  return y, gap, up(largest + gap), is_good
