"""Products along an axis, and the angle of two arrays, on a domain."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, LipschitzPart, Operand, Range
from lipjax.certify.graph import Node
from lipjax.certify.primitives.ranges import widened
from lipjax.certify.primitives.record import record
from lipjax.rounding.errors import down, up
from lipjax.rounding.numbers import norm_above, tiny


def _range(node: Node, x: Range) -> Range:
  size = node.bind(x.size())
  sign = lambda end: node.bind(jnp.where(end > 0, 1.0, jnp.where(end < 0, -1.0, 0.0)))
  # Of known signs the product of the least and the largest magnitudes; else any sign.
  is_known = node.bind(jnp.where((x.lower > 0) | (x.upper < 0), 1.0, 0.0)) > 0
  least = node.bind(jnp.maximum(jnp.maximum(x.lower, -x.upper), 0))
  signs = sign(jnp.where(x.lower > 0, x.lower, x.upper))
  low, high = jnp.where(signs > 0, least, -size), jnp.where(signs > 0, size, -least)
  low, high = jnp.where(is_known, low, -size), jnp.where(is_known, high, size)
  return widened(low, high, terms=4 * math.prod(jnp.shape(x.lower)) + 4)


def _of_others(size: jax.Array, axis: int) -> jax.Array:
  """For each entry the product of the others along an axis."""
  ones = jnp.ones_like(lax.slice_in_dim(size, 0, 1, axis=axis))
  n = size.shape[axis]
  inner = lax.slice_in_dim(size, 0, n - 1, axis=axis)
  before = jnp.concatenate([ones, lax.cumprod(inner, axis)], axis)
  inner = lax.slice_in_dim(size, 1, n, axis=axis)
  after = jnp.concatenate([lax.cumprod(inner, axis, reverse=True), ones], axis)
  return before * after


@record("reduce_prod", range=_range, examples=[lambda x: x.prod(1), lambda x: x.prod()])
def reduce_prod(node: Node, x: Operand) -> Depends:
  """On a domain: the norm of the products of all magnitudes but one."""
  within, axes = _bounded(node, x), node.params["axes"]
  if 0 in (x.shape[axis] for axis in axes):
    return Depends(LipschitzPart((0.0,)), (x.place,))
  kept = [axis for axis in range(len(x.shape)) if axis not in axes]
  rows = jnp.transpose(within.size(), (*kept, *axes))
  rows = rows.reshape((*(x.shape[axis] for axis in kept), -1))
  slopes = up(_of_others(rows, rows.ndim - 1), 2 * rows.shape[-1] + 8)
  constant = jnp.max(norm_above(slopes + tiny(slopes.dtype), rows.ndim - 1), initial=0)
  return Depends(LipschitzPart((constant,)), (x.place,))


@record("cumprod", range=_range, examples=[lambda x: lax.cumprod(x, 1, reverse=True)])
def cumprod(node: Node, x: Operand) -> Depends:
  """On a domain: the root of the sum of the squares of what each product has."""
  within, axis = _bounded(node, x), node.params["axis"]
  size = jnp.moveaxis(within.size(), axis, -1)
  if node.params["reverse"]:
    size = jnp.flip(size, -1)
  n = size.shape[-1]
  norms = [
    norm_above(up(_of_others(size[..., : k + 1], size.ndim - 1), 2 * n + 8), size.ndim - 1)
    for k in range(n)
  ]
  constant = jnp.max(norm_above(jnp.stack(norms), 0), initial=0) if norms else jnp.zeros(())
  return Depends(LipschitzPart((constant,)), (x.place,))


def _bounded(node: Node, x: Operand) -> Range:
  if x.range is None:
    msg = (
      f"{node.name!r} of an array that depends on the input{node.line} is not Lipschitz: its slope"
      " grows with the other factors. Give a radius around the input, or a box."
    )
    raise CertifyError(msg)
  return x.range


def _angle_range(node: Node, y: Range, x: Range) -> Range:
  del node
  ends = [jnp.arctan2(a, b) for a in y for b in x]
  lower, upper = functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends)
  # Over a box that holds 0, or crosses the cut, any angle.
  is_one = _is_away(y, x)
  lower, upper = jnp.where(is_one, lower, -math.pi), jnp.where(is_one, upper, math.pi)
  return widened(lower, upper, terms=512)


def _is_away(y: Range, x: Range) -> jax.Array:
  """Where the angle does not jump: beside 0 and the half line on which it is π."""
  return (y.lower > 0) | (y.upper < 0) | (x.lower > 0)


@record("atan2", range=_angle_range)
def atan2(node: Node, y: Operand, x: Operand) -> Depends:
  """On a domain beside the cut: one over the distance from 0."""
  ranges = [operand.range for operand in (y, x)]
  if None in ranges:
    msg = (
      f"'atan2'{node.line} jumps, and has no bounded slope near 0: give a radius or a box in"
      " which it does neither."
    )
    raise CertifyError(msg)
  (a, b) = (found for found in ranges if found is not None)
  least = [jnp.maximum(jnp.maximum(r.lower, -r.upper), 0) for r in (a, b)]
  distance = down(jnp.min(jnp.hypot(*least), initial=jnp.inf))
  slope = jnp.where(jnp.all(_is_away(a, b)), up(1 / distance), jnp.inf)
  moving = [operand.place for operand in (y, x) if operand.moves]
  return Depends(LipschitzPart((slope,) * len(moving)), tuple(moving))
