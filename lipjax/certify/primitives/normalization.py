r"""Rows divided by their norm, and the norms of rows.

The Jacobian of :math:`y = c/s`, :math:`s^2 = a\,\mathrm{mean}(c^2) + \varepsilon` with
c = Cx the row, less its mean if so, is
:math:`\frac1s(C - \frac{a}{n s^2} c c^\top)`. It is symmetric with the eigenvalues 0, 1/s and
:math:`\varepsilon/s^3 \le 1/s`, so that 1/s at the smallest variance is a Lipschitz constant, row
by row. Divided by :math:`s + \delta` or :math:`\max(s, \delta)`, the largest eigenvalue is again
one over that.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, LinearPart, LipschitzPart, Middle, Operand, Range
from lipjax.certify.graph import Node
from lipjax.certify.patterns.normalization import Rows
from lipjax.certify.primitives.ranges import widened
from lipjax.certify.primitives.record import record
from lipjax.certify.primitives.two import movement
from lipjax.rounding.errors import down, pairwise_sum, pairwise_terms, unit_roundoff, up
from lipjax.rounding.numbers import norm_above, norm_below, times_above, tiny


def _range(node: Node, x: Range) -> Range:
  """Around what the middle of the range gives; never beyond √(n/a)."""
  what: Rows = node.params["what"]
  n = what.length
  middle, error = _rows_of(what, *x)
  away = norm_above(error, 1)[:, None]
  left = jnp.maximum(down(norm_below(middle, 1)[:, None]) - away, 0)
  inverse = _inverse(what, down(jnp.square(left) / n), middle.dtype)
  largest = up(jnp.asarray(math.sqrt(n / what.scale), middle.dtype))
  square = what.scale * _mean(jnp.square(middle)) + what.epsilon
  value = middle / _divisor(what, square)
  value = jnp.where(jnp.isfinite(value), value, 0)
  # |(C - uu')h| for the unit vector u along the row, between the middle and the row itself.
  error = up(error + what.is_centered * _mean(error), n + 4)
  share = jnp.minimum(up((jnp.abs(middle) + error) * inverse * math.sqrt(what.scale / n)), 1)
  distance = times_above(inverse, jnp.minimum(away, up(error + times_above(share, away), 2)))
  distance = jnp.where(_is_accurate(square), distance, jnp.inf)
  rounding = 4 * (pairwise_terms(n) + 16) * unit_roundoff(middle.dtype)
  distance = distance + rounding * jnp.abs(value) + tiny(middle.dtype)
  lower, upper = widened(value - distance, value + distance)
  back = np.argsort(what.rows.value, axis=None)
  fit = lambda end: jnp.clip(jnp.nan_to_num(end, nan=0.0), -largest, largest).ravel()[back]
  lower = jnp.where(jnp.isfinite(distance), lower, -largest)
  upper = jnp.where(jnp.isfinite(distance), upper, largest)
  return Range(fit(lower).reshape(node.shape), fit(upper).reshape(node.shape))


@record("normalized", range=_range)
def normalized(node: Node, x: Operand) -> Depends:
  """1/√(variance + ε) at the smallest variance, or what rows are divided by."""
  what: Rows = node.params["what"]
  if x.middle is None and what.epsilon == what.delta == 0:
    msg = (
      f"A quotient by a norm or a standard deviation ('div'){node.line} has no bounded slope near"
      " 0. Add a positive number under the root, or take the maximum of the norm and one; or give"
      " a radius or a box that stays away from 0."
    )
    raise CertifyError(msg)
  constant = _inverse(what, _least(what, x), x.node.wide)
  if what.how != "root" or x.middle is None:
    return Depends(LipschitzPart((constant,)), (x.place,))
  linear, rest = _around_middle(what, x, x.middle, constant, node.shape)
  return Depends(LipschitzPart((constant,), linear=linear, rest=rest), (x.place,))


def _norm_range(node: Node, x: Range) -> Range:
  what: Rows = node.params["what"]
  middle, error = _rows_of(what, *x)
  away = norm_above(error, 1)
  ends = jnp.maximum(norm_below(middle, 1) - away, 0), norm_above(middle, 1) + away
  which, n = node.params["which"].value, what.length
  root = math.sqrt(what.epsilon)
  lower, upper = (jnp.hypot(end * math.sqrt(what.scale / n), root) for end in ends)
  lower, upper = down(lower), up(upper) + tiny(upper.dtype)
  return Range(lower[which], jnp.where(jnp.isnan(upper), jnp.inf, upper)[which])


@record("row_norms", range=_norm_range)
def row_norms(node: Node, x: Operand) -> Depends:
  """√a for √(a·sum of squares + ε), whatever ε."""
  what: Rows = node.params["what"]
  copies = np.max(np.bincount(node.params["which"].value.ravel()), initial=0)
  constant = math.sqrt(what.scale / what.length * copies) * (1 + 1e-6)
  return Depends(LipschitzPart((constant,)), (x.place,))


def _around_middle(
  what: Rows, x: Operand, found: Middle, constant: jax.Array, shape: tuple[int, ...]
) -> tuple[Any, Any]:
  r"""The Jacobian in the middle of the domain, and how much it differs elsewhere.

  The second derivative, :math:`-\frac{a}{ns^3}(c\,h^\top k + h\,c^\top k + k\,c^\top h) +
  \frac{3a^2}{n^2s^5}c\,(c^\top h)(c^\top k)`, is at most :math:`6\sqrt{a/n}/s^2`, as
  :math:`\|c\| \le s\sqrt{n/a}`.
  """
  n, rows = what.length, what.rows.value
  middle, _ = _rows_of(what, found.value, found.value)
  square = what.scale * jnp.mean(jnp.square(middle), 1, keepdims=True) + what.epsilon
  inverse = jax.lax.rsqrt(square)
  inverse = jnp.where(jnp.isfinite(inverse), inverse, 0)
  unit = middle * inverse * math.sqrt(what.scale / n)
  back = np.argsort(rows, axis=None)

  def apply(h: jax.Array, sign: int = -1) -> jax.Array:
    h = h.ravel()[rows]
    h = h + sign * what.is_centered * jnp.mean(h, axis=1, keepdims=True)
    u = unit.astype(h.dtype) if sign < 0 else jnp.abs(unit).astype(h.dtype)
    h = inverse.astype(h.dtype) * (h + sign * u * jnp.sum(u * h, axis=1, keepdims=True))
    return h.ravel()[back].reshape(shape)

  def rest() -> tuple[jax.Array]:
    # Between any two inputs; what rounding makes of the middle is an input near by.
    rounding = 64 * (n + 16) * unit_roundoff(middle.dtype) * constant * (1 + math.sqrt(n))
    steep = times_above(6 * math.sqrt(what.scale / n), times_above(constant, constant))
    known = up(times_above(steep, movement(x) + found.error) + rounding)
    return (jnp.where(jnp.all(_is_accurate(square)), known, jnp.inf),)

  norm = up(jnp.max(inverse, initial=0), n + 16)
  linear = LinearPart(
    apply,
    (lambda: norm,),
    roundings=3 * n + 8,
    magnitude=functools.partial(apply, sign=1),
  )
  return linear, functools.cache(rest)


def _divisor(what: Rows, square: jax.Array) -> jax.Array:
  root = jnp.sqrt(square)
  return {"root": root, "plus": root + what.delta, "max": jnp.maximum(root, what.delta)}[what.how]


def _inverse(what: Rows, least: Any, dtype: Any) -> jax.Array:
  """At least one over what is divided by, where the variance or mean square is least."""
  square = down(what.scale * jnp.asarray(least, dtype), 2) + down(jnp.asarray(what.epsilon, dtype))
  # One that is too large is as large as it can be.
  square = jnp.minimum(square, jnp.finfo(dtype).max)
  return up(1 / down(_divisor(what, square), 4))


def _is_accurate(square: jax.Array) -> jax.Array:
  """Whether squares that were too small, or too large, are no part of what is under a root."""
  low = tiny(square.dtype) / unit_roundoff(square.dtype) ** 2
  return (square > low) & (square < jnp.inf)


def _least(what: Rows, x: Operand) -> Any:
  """At most the variance, or mean square, of each row, for every input."""
  if x.middle is None:
    return 0.0
  middle, error = _rows_of(what, x.middle.value, x.middle.value)
  away = up(norm_above(error, 1) + movement(x) + x.middle.error, 2)
  left = jnp.maximum(down(norm_below(middle, 1)) - away, 0)
  return jnp.min(down(jnp.square(left) / what.length), initial=jnp.inf)


def _rows_of(what: Rows, lower: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rows in the middle of a range, less their mean if so, and how far x can be from them."""
  lower, upper = (end.ravel()[what.rows.value] for end in (lower, upper))
  middle = lower / 2 + upper / 2
  n = what.length
  u = unit_roundoff(middle.dtype)
  rounding = (pairwise_terms(n) + 8) * u * jnp.max(jnp.abs(middle), axis=1, keepdims=True)
  error = up(jnp.maximum(upper - middle, middle - lower)) + rounding
  return middle - _mean(middle) * what.is_centered, error


def _mean(x: jax.Array) -> jax.Array:
  """Of each row, with few roundings."""
  return pairwise_sum(x, 1)[:, None] / x.shape[1]
