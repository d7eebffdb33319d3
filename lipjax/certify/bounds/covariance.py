r"""Ellipsoids that differences stay in: LipSDP's semidefinite program, a layer at a time.

All values z of a layer together differ between two inputs at a distance of at most 1 by some z
with :math:`z^T A^{-1} z \le 1`; at the inputs A is the identity. Functions make
:math:`y = c \circ z + h \circ \delta` of them, where in every group g of entries
:math:`\sum \delta_i^2 \le \sum (w_i z_i)^2`. For any multipliers :math:`\lambda_g > 0` with
:math:`B = DAD \prec I`, D the diagonal of :math:`\sqrt{\lambda} w`,

.. math::
  z^T A^{-1} z + \sum_g \lambda_g \sum_{i \in g} (\delta_i^2 - (w_i z_i)^2) \le 1,

so that z is in the ellipsoid of :math:`(A^{-1} - D^2)^{-1} = A + AD(I - B)^{-1}DA`, with δ in that
of :math:`\Lambda^{-1}` beside it, and y, a linear function of both, in that of

.. math:: P = C (A + AD(I - B)^{-1}DA) C + H \Lambda^{-1} H.

The next layer's values are Gy with :math:`A \leftarrow G P G^T`, and the norm of the outputs is
at most the root of the largest eigenvalue of theirs. Whatever the multipliers are, that is a
bound; with the best ones it is the optimum of LipSDP-Neuron on chains.

**Rounding.** A computed A is taken as it is, for the definition of an ellipsoid: only what is made
of it must not be too small. Where a computed matrix is off by a symmetric one of norm at most e,
adding eI makes it larger than the exact one.

1. Products lose what `product_lost` says: :math:`GPG^T`, where G is itself off by some E, and
   those below.
2. With any factor L and η > 0 of which :math:`I - B \succeq LL^T + \eta I`, and any V, whose
   residual is :math:`R = AD - V L^T`,

   .. math:: (VL^T + R)(I - B)^{-1}(VL^T + R)^T \preceq VV^T + RR^T/\eta,

   as :math:`(a, S) \mapsto a^T S^{-1} a` is convex and homogeneous, so subadditive. η is what is
   left of a shift of I - B when the residual of its Cholesky factor is taken away; of how the
   factor and V were computed nothing is assumed.

Reference:
  Fazlyab, Robey, Hassani, Morari and Pappas (2019), arXiv:1906.04893 (the program); Xu and
  Sivaranjani (2024), arXiv:2404.04375 (layer by layer, with one multiplier for each).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lipjax.certify.bounds.layers import Layer
from lipjax.measure.factors import cholesky, solve_lower
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.numbers import times_above, tiny
from lipjax.rounding.products import product, product_lost, underflow

#: What is kept of a step where not everything is.
RAISED = "raised"


def start(layer: Layer, *, is_certified: bool) -> jax.Array:
  """A of the first layer's values."""
  g = layer.matrix
  if not is_certified:
    return dot(g, g.T)
  lost = product_lost(g, g.T) + layer.lost * (2 * _norm(g) + layer.lost)
  return _enlarged(product(g, g.T), lost)


def after(a: jax.Array, layer: Layer, root: jax.Array, *, is_certified: bool) -> jax.Array:
  r"""P after a layer's functions.

  Args:
    a: A of its values.
    layer: which functions.
    root: :math:`\sqrt{\lambda}` for each entry, the same ones in a group.
    is_certified: whether with what rounding costs.
  """
  # Without a multiplier nothing is known of what is there.
  own = times_above(layer.half, 1 / jnp.where(layer.half > 0, root, 1))
  own = times_above(own, own)
  p = scaled(_raised(is_certified, a, times_above(root, layer.weights)), layer.linear)
  if not is_certified:
    return p + jnp.diag(own)
  # Of three products and a sum.
  rounding = 8 * unit_roundoff(a.dtype) * (_norm(p) + jnp.max(own))
  return _enlarged(p + jnp.diag(up(own)), rounding)


def before(p: jax.Array, layer: Layer, *, is_certified: bool) -> jax.Array:
  """A of a layer's values, from P after the layer before."""
  g = layer.matrix
  if not is_certified:
    return dot(dot(g, p), g.T)
  right = product(p, g.T)
  size = _norm(g) + layer.lost
  lost = product_lost(p, g.T) + layer.lost * _norm(p)
  lost = product_lost(g, right) + size * lost + layer.lost * _norm(right)
  return _enlarged(product(g, right), lost)


def summed(total: jax.Array, n_terms: int) -> jax.Array:
  """At least a sum of positive matrices, as computed."""
  return _enlarged(total, 2 * n_terms * unit_roundoff(total.dtype) * _norm(total))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _raised(is_certified: bool, a: jax.Array, d: jax.Array) -> jax.Array:
  """At least A + AD(I - B)⁻¹DA, see above; NaN where there is no factor."""
  unit, n = unit_roundoff(a.dtype), len(a)
  rest, right = jnp.eye(n, dtype=a.dtype) - scaled(a, d), a * d
  if not is_certified:
    v = solve_lower(cholesky(rest), right.T)
    return a + dot(v.T, v)
  small, shift = underflow(8, a.shape, a.dtype), _shift(n, a.dtype)
  shifted = rest - shift * jnp.eye(n, dtype=a.dtype)
  factor = cholesky(shifted)
  off = _norm(product(factor, factor.T) - shifted)
  rounding = 8 * unit * (1 + _norm(rest)) + product_lost(factor, factor.T)
  left = shift * (1 - 4 * unit) - up(off + rounding + small)
  v = solve_lower(factor, right.T).T
  off = _norm(product(v, factor.T) - right)
  off = up(off + 8 * unit * _norm(right) + product_lost(v, factor.T) + small)
  lost = up(off / left * off) + product_lost(v, v.T)
  return jnp.where(left > 0, _enlarged(a + product(v, v.T), lost), jnp.nan)


@_raised.defjvp
def _(is_certified: bool, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  r"""Of :math:`X = (A^{-1} - D^2)^{-1}`: :math:`(I + XD^2)\,dA\,(I + D^2X) + X\,dD^2\,X`."""
  (a, d), (da, dd) = primals, tangents
  # Kept for derivatives: by itself there would be a second factorization.
  x = checkpoint_name(_raised(is_certified, a, d), RAISED)
  z = jnp.eye(len(a), dtype=a.dtype) + x * jnp.square(d)
  return x, dot(dot(z, da), z.T) + dot(x * (2 * d * dd), x)


def _shift(n: int, dtype) -> float:
  """What is taken from I - B: more than Cholesky's residual."""
  return 16 * unit_roundoff(dtype) * (n + 16)


def most(n: int, dtype) -> float:
  """How large an eigenvalue of B may be."""
  return 1 - max(float(jnp.finfo(dtype).eps) ** 0.5, 8 * _shift(n, dtype))


def _enlarged(x: jax.Array, by: Any) -> jax.Array:
  """A symmetric matrix plus at least `by` times the identity, and what rounding of it costs."""
  x = (x + x.T) / 2
  size = _norm(x)
  by = by + 4 * unit_roundoff(x.dtype) * size + underflow(4, x.shape, x.dtype) * (1 + size)
  by = lax.stop_gradient(up(by))
  return x + by * jnp.eye(len(x), dtype=x.dtype)


def _norm(x: jax.Array) -> jax.Array:
  """At least the norm of a matrix; of entries near 1 not much more than Frobenius' norm."""
  # Row by row: not as many roundings as entries. The squares of what is below the root of the
  # smallest normal number are 0.
  square = jnp.sum(jnp.sum(jnp.square(x), axis=1)) + x.size * tiny(x.dtype)
  return up(jnp.sqrt(square), sum(x.shape) + 8)


def scaled(x: jax.Array, by: jax.Array) -> jax.Array:
  """Rows and columns times numbers."""
  return by[:, None] * x * by


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """The matrix product in full precision."""
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
