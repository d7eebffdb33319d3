"""Functions of a whole axis that are written with exponentials."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.facts import Depends, LinearPart, LipschitzPart, Operand, Range
from lipjax.certify.graph import Node
from lipjax.certify.primitives.ranges import widened
from lipjax.certify.primitives.record import record
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.numbers import norm_above, times_above, tiny


def _range(node: Node, z: Range) -> Range:
  return softmax_range(*z, node.params["axes"])


@record("softmax", range=_range, examples=[jax.nn.softmax, lambda x: jax.nn.softmax(x, (0, 1))])
def softmax(node: Node, z: Operand) -> Depends:
  r"""Slope 1/2, or the largest share where that is less.

  Its Jacobian :math:`\mathrm{diag}(p) - pp^T` has norm at most 1/2 (Gao and Pavel 2017,
  proposition 4, has 1; 1/2 follows from :math:`2\max_i p_i(1 - p_i)` as bound of the
  absolute row sums).
  """
  axes, within, middle = node.params["axes"], z.range, z.middle
  if within is None:
    return Depends(LipschitzPart((0.5,)), (z.place,))
  shares = softmax_range(*within, axes)
  # diag(p) - pp' is at most diag(p).
  slope = jnp.minimum(0.5, jnp.max(shares.upper, initial=0))
  if middle is None:
    return Depends(LipschitzPart((slope,)), (z.place,))
  # Any numbers near the shares would do.
  p = jax.nn.softmax(middle.value, axes)
  total = lambda x: jnp.sum(x, axes, keepdims=True)

  def rest() -> tuple[Any, ...]:
    # diag(p) - pp' and diag(q) - qq' differ by max|p - q| + |p - q|(|p| + |q|) at most.
    away = jnp.maximum(shares.upper - p, p - shares.lower)
    length = lambda x: jnp.expand_dims(norm_above(x, axes), axes)
    sizes = times_above(length(away), length(shares.upper) + length(p))
    return (up(jnp.max(jnp.max(away, axes, keepdims=True) + sizes, initial=0), p.size + 16),)

  linear = LinearPart(
    lambda x: p * x - p * total(p * x),
    (lambda: up(jnp.max(p, initial=0) + jnp.max(jnp.abs(total(p) - 1), initial=0), p.size),),
    roundings=2 * _n_along(z.shape, axes) + 6,
    magnitude=lambda x: p * x + p * total(p * x),
  )
  return Depends(LipschitzPart((slope,), linear=linear, rest=functools.cache(rest)), (z.place,))


def softmax_range(lower: jax.Array, upper: jax.Array, axes: tuple[int, ...]) -> Range:
  """Of exp(z)/sum(exp(z)): largest where z is and the others are smallest, and the reverse."""
  top = jnp.max(upper, axes, keepdims=True)
  least, most = jnp.exp(lower - top), jnp.exp(upper - top)
  # Exponents are rounded, and exponentials by less than 16 roundings; below -104 they are 0.
  away = jnp.minimum(jnp.max(top - lower, axes, keepdims=True), 104)
  lost = 4 * (away + _n_along(lower.shape, axes) + 32) * unit_roundoff(lower.dtype)
  total = lambda x: jnp.sum(x, axes, keepdims=True)
  others = lambda x, sign: jnp.maximum(total(x) * (1 + sign * lost) - x, 0)
  high = most / (most + others(least, -1)) * (1 + lost) + tiny(lower.dtype)
  low = least / (least + others(most, 1)) * (1 - lost)
  high, low = jnp.where(jnp.isnan(high), 1, high), jnp.where(jnp.isnan(low), 0, low)
  return Range(jnp.clip(low, 0, 1), jnp.clip(high, 0, 1))


def _log_sum_range(node: Node, x: Range, weights: Range | None = None) -> Range:
  """Between the largest term and n of it."""
  axes, rows, kept = (node.params[name] for name in ("axes", "rows", "kept"))
  shift = 0.0 if weights is None else jnp.log(weights.lower)
  lower, upper = widened(x.lower + shift, x.upper + shift, terms=64)
  if kept is not None:
    lower, upper = (jnp.where(kept.value, end, -jnp.inf) for end in (lower, upper))
  ends = [jnp.max(end, axes).ravel()[rows.value] for end in (lower, upper)]
  return widened(ends[0], ends[1] + math.log(max(_n_along(jnp.shape(lower), axes), 1)))


@record("log_sum_exp", range=_log_sum_range, examples=[lambda x: jax.nn.logsumexp(x, 1)])
def log_sum_exp(node: Node, x: Operand, weights: Operand | None = None) -> Depends:
  """Slope 1, also of terms that are left out or have weights that are not negative."""
  del node, weights
  return Depends(LipschitzPart((1.0,)), (x.place,))


@record("log_softmax", examples=[lambda x: jax.nn.log_softmax(x, 0)])
def log_softmax(node: Node, x: Operand) -> Depends:
  r"""√n: the Jacobian :math:`I - 1p^T` has a norm below it.

  The norm is convex in p, and √n where p is a unit vector.
  """
  return Depends(LipschitzPart((math.sqrt(_n_along(x.shape, node.params["axes"])),)), (x.place,))


def _n_along(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
  return math.prod(shape[axis] for axis in axes)
