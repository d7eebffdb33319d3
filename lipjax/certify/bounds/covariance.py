r"""Ellipsoids that differences stay in: LipSDP's semidefinite program, a layer at a time.

All values z of a layer together differ between two inputs at a distance of at most 1 by some z
with :math:`z^T A^{-1} z \le 1`; at the inputs A is the identity. Functions make
:math:`y = c \circ z + h \circ \delta` of them, where in every group g of entries
:math:`\sum \delta_i^2 \le \sum (w_i z_i)^2`. For any multipliers :math:`\lambda_g > 0` with
:math:`B = DAD \prec I`, D the diagonal of :math:`\sqrt{\lambda} w`,

.. math::
  z^T A^{-1} z + \sum_g \lambda_g \sum_{i \in g} (\delta_i^2 - (w_i z_i)^2) \le 1,

so that z is in the ellipsoid of :math:`X = (A^{-1} - D^2)^{-1} = A + AD(I - B)^{-1}DA`, with δ in
that of :math:`\Lambda^{-1}` beside it. The next layer's values Gy, a linear function of both, are
in the ellipsoid of :math:`A \leftarrow G (CXC + H \Lambda^{-1} H) G^T`, and the norm of the outputs
is at most the root of the largest eigenvalue of theirs. Whatever the multipliers are, that is a
bound; with the best ones it is the optimum of LipSDP-Neuron on chains.

The best ones can be at their limit, where :math:`(I - B)^{-1}` is huge: in layers that are
1-Lipschitz by construction what is huge is what G does not see. So it is never formed:

.. math:: GCXCG^T = TCG^T + K(I - B)^{-1}K^T, \qquad T = GCA,\ K = TD.

**Rounding.** A computed A is taken as it is, for the definition of an ellipsoid: only what is made
of it must not be too small. Where a computed matrix is off by a symmetric one of norm at most e,
adding eI makes it larger than the exact one.

1. Products lose what `product_lost` says; G is itself off by some E.
2. With any factor L and η > 0 of which :math:`I - B \succeq LL^T + \eta I`, and any V, whose
   residual is :math:`R = K - V L^T`,

   .. math:: (VL^T + R)(I - B)^{-1}(VL^T + R)^T \preceq VV^T + RR^T/\eta,

   as :math:`(a, S) \mapsto a^T S^{-1} a` is convex and homogeneous, so subadditive. η is what is
   left of a shift of I - B when the residual of its Cholesky factor is taken away; of how the
   factor and V were computed nothing is assumed. What K, made with G + E, is off by is in R.

Reference:
  Fazlyab, Robey, Hassani, Morari and Pappas (2019), arXiv:1906.04893 (the program); Xu and
  Sivaranjani (2024), arXiv:2404.04375 (layer by layer, with one multiplier for each).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lipjax.certify.bounds.layers import Layer
from lipjax.measure.factors import cholesky, solve_lower, solve_upper
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.numbers import times_above, tiny
from lipjax.rounding.products import product, product_lost, underflow

#: What is kept of a step where not everything is.
SEEN = "seen"


def start(layer: Layer, *, is_certified: bool) -> jax.Array:
  """A of the first layer's values."""
  g = layer.matrix
  if not is_certified:
    return dot(g, g.T)
  lost = product_lost(g, g.T) + layer.lost * (2 * _norm(g) + layer.lost)
  return _enlarged(product(g, g.T), lost)


def through(
  a: jax.Array, layer: Layer, root: jax.Array, following: Layer, *, is_certified: bool
) -> jax.Array:
  r"""A of the next layer's values.

  Args:
    a: A of a layer's values.
    layer: which functions.
    root: :math:`\sqrt{\lambda}` for each entry, the same ones in a group.
    following: G.
    is_certified: whether with what rounding costs. Without it there are derivatives.
  """
  # Without a multiplier nothing is known of what is there.
  own = times_above(layer.half, 1 / jnp.where(layer.half > 0, root, 1))
  own, d = times_above(own, own), times_above(root, layer.weights)
  if is_certified:
    return _above(a, d, layer.linear, own, following)
  g = following.matrix
  return _seen(a, d, g * layer.linear) + dot(g * own, g.T)


def summed(total: jax.Array, n_terms: int) -> jax.Array:
  """At least a sum of positive matrices, as computed."""
  return _enlarged(total, 2 * n_terms * unit_roundoff(total.dtype) * _norm(total))


def _above(a: jax.Array, d: jax.Array, c: jax.Array, own: jax.Array, following: Layer) -> jax.Array:
  """At least the next A, see above; NaN where I - B has no factor."""
  unit, g, off_g = unit_roundoff(a.dtype), following.matrix, following.lost
  ca = c[:, None] * a
  t, cad, size = product(g, ca), ca * d, _norm(g)
  lost_t = product_lost(g, ca) + 2 * unit * size * _norm(ca)
  lost_k = product_lost(g, cad) + (4 * unit * size + off_g) * _norm(cad)
  factor, left = _factor(a, d)
  k = t * d
  v = solve_lower(factor, k.T).T
  off = _norm(product(v, factor.T) - k) + lost_k + 8 * unit * _norm(k) + product_lost(v, factor.T)
  off = up(off + underflow(8, k.shape, a.dtype))
  tc, of_rest = t * c, g * own
  largest = lambda x: jnp.max(jnp.abs(x), initial=0)
  right = tc + of_rest
  size_right = _norm(tc) + _norm(of_rest)
  lost = (size + 2 * off_g) * (lost_t * largest(c) + 4 * unit * size_right)
  lost += product_lost(right, g.T) + 2 * off_g * size_right
  lost += jnp.square(off_g) * (largest(c) * _norm(ca) + largest(own))
  lost += up(off / left * off) + product_lost(v, v.T) + unit * jnp.square(_norm(v))
  found = _enlarged(product(right, g.T) + product(v, v.T), up(lost))
  return jnp.where(left > 0, found, jnp.nan)


def _factor(a: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
  """L and η of which I - B is at least LLᵀ + ηI."""
  unit, n = unit_roundoff(a.dtype), len(a)
  rest, shift = jnp.eye(n, dtype=a.dtype) - scaled(a, d), _shift(n, a.dtype)
  shifted = rest - shift * jnp.eye(n, dtype=a.dtype)
  factor = cholesky(shifted)
  off = _norm(product(factor, factor.T) - shifted)
  rounding = 8 * unit * (1 + _norm(rest)) + product_lost(factor, factor.T)
  small = underflow(8, a.shape, a.dtype)
  return factor, shift * (1 - 4 * unit) - up(off + rounding + small)


@jax.custom_jvp
def _seen(a: jax.Array, d: jax.Array, m: jax.Array) -> jax.Array:
  """M X Mᵀ."""
  return dot(_half_seen(a, d, m), m.T)


@_seen.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  r"""With :math:`dX = (I + XD^2)\,dA\,(I + D^2X) + X\,dD^2\,X`."""
  (a, d, m), (da, dd, dm) = primals, tangents
  # Kept for derivatives: by itself there would be a second factorization.
  y = checkpoint_name(_half_seen(a, d, m), SEEN)
  z, moved = m + y * jnp.square(d), dot(dm, y.T)
  slope = dot(dot(z, da), z.T) + dot(y * (2 * d * dd), y.T) + moved + moved.T
  return dot(y, m.T), slope


@jax.custom_jvp
def _half_seen(a: jax.Array, d: jax.Array, m: jax.Array) -> jax.Array:
  """M X."""
  t = dot(m, a)
  factor = cholesky(jnp.eye(len(a), dtype=a.dtype) - scaled(a, d))
  inner = solve_upper(factor, solve_lower(factor, (t * d).T)).T
  return t + dot(inner * d, a)


@_half_seen.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  """For second derivatives: solutions by factors in stacks have none in reverse."""
  (a, d, m), (da, dd, dm) = primals, tangents
  y, x = _half_seen(a, d, m), _half_seen(a, d, jnp.eye(len(a), dtype=a.dtype))
  moved = dot(m + y * jnp.square(d), da)
  return y, moved + dot(dm + moved * jnp.square(d) + y * (2 * d * dd), x)


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
