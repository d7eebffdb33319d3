"""Sums, scalings and choices: linear entry by entry, unless two nodes meet."""

from __future__ import annotations

import dataclasses
from typing import cast

import jax.numpy as jnp
from jax import lax

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, LinearPart, LipschitzPart, Operand, Pointwise
from lipjax.certify.graph import Node
from lipjax.certify.linear import merged, parents, scaled, shifted, times
from lipjax.certify.primitives import ranges
from lipjax.certify.primitives.record import of_two_arrays, record
from lipjax.certify.primitives.two import of_two
from lipjax.rounding.errors import up
from lipjax.rounding.numbers import times_above, tiny


@record("add", "add_any", range=ranges.sums, examples=[lambda x: x + 1, lambda x: x + x[:, ::-1]])
def add(node: Node, left: Operand, right: Operand) -> Depends:
  """Sum of the slopes; slope 1 with a constant."""
  if left.moves and right.moves:
    return _sum(left, right, 1)
  return shifted(left if left.moves else right)


@record("sub", range=ranges.difference, examples=[lambda x: 1 - x, lambda x: x - x[:, ::-1]])
def sub(node: Node, left: Operand, right: Operand) -> Depends:
  """Sum of the slopes; slope 1 with a constant."""
  if left.moves and right.moves:
    return _sum(left, right, -1)
  return shifted(left) if left.moves else neg(node, right)


def _sum(left: Operand, right: Operand, sign: int) -> Depends:
  """Of two nodes; of one, with the factors added, where both are the same."""
  (a, one), (b, other) = left.multiple, right.multiple
  if a == b:
    return Depends(scaled(one + sign * other), (a,), gain=1.0)
  part = LinearPart(
    lambda x, y: x + sign * y,
    (lambda: 1.0, lambda: 1.0),
    roundings=1,
    magnitude=lambda x, y: x + y,
    on_images=Pointwise((1.0, float(sign))),
  )
  return Depends(part, (left.place, right.place))


@record("neg", range=ranges.negative, examples=[lambda x: -x])
def neg(node: Node, x: Operand) -> Depends:
  """Slope 1."""
  place, factor = x.multiple
  return times(x, -1, node.shape)._replace(multiple=(place, -factor))


@record("mul", range=ranges.product, examples=[lambda x: x * 3, lambda x: jnp.tanh(x) * x[:, ::-1]])
def mul(node: Node, left: Operand, right: Operand) -> Depends:
  """With a constant: its largest magnitude, folded into a weight before it.

  Of two bounded nodes, as gates are: each one's slope times the other's magnitude, added.
  """
  if not (left.moves and right.moves):
    x, factor = (left, right) if left.moves else (right, left)
    return times(x, factor.value, node.shape)
  if left.range is None or right.range is None:
    raise of_two_arrays(node)
  sizes = [jnp.max(x.size(), initial=0) for x in (right.range, left.range)]
  return Depends(of_two((left, right), sizes, jnp.multiply, 1), (left.place, right.place))


@record("div", range=ranges.product, examples=[lambda x: x / 3, lambda x: jnp.tanh(x) / (2 + x**2)])
def div(node: Node, left: Operand, right: Operand) -> Depends:
  """By a constant as `mul`. Of two nodes, bounded by bounded away from 0."""
  if not right.moves:
    # Not in half precision, where the inverse is off by up to a part in 256.
    return times(left, 1 / jnp.asarray(right.value, node.wide), node.shape)
  if left.range is None or right.range is None:
    raise of_two_arrays(node)
  size = jnp.max(left.range.size(), initial=0)
  # How far from 0 the divisor stays: not at all if it has both signs.
  within = right.range
  least = jnp.maximum(jnp.min(within[0], initial=jnp.inf), -jnp.max(within[1], initial=-jnp.inf))
  inverse = up(1 / jnp.maximum(least, 0))
  inverse = jnp.maximum(inverse, tiny(inverse.dtype))
  slope = times_above(times_above(inverse, size), inverse)
  moving = [(x.place, c) for x, c in ((left, inverse), (right, slope)) if x.moves]
  places, constants = zip(*moving, strict=True)
  return Depends(LipschitzPart(constants, adds=True), places)


@record("max", "min", range=ranges.monotone, examples=[lambda x: jnp.maximum(x, x[:, ::-1])])
def maximum(node: Node, left: Operand, right: Operand) -> Depends:
  """√(sum of squares); slope 1 with a constant."""
  moving = [x for x in (left, right) if x.moves]
  return Depends(LipschitzPart((1.0,) * len(moving)), parents(moving))


@record("clamp", range=ranges.monotone, examples=[lambda x: lax.clamp(-1.0, x, x[:, ::-1])])
def clamp(node: Node, *operands: Operand) -> Depends:
  """√(sum of squares), of limits that move too; slope 1 where these are constants."""
  moving = [x for x in operands if x.moves]
  return Depends(LipschitzPart((1.0,) * len(moving)), parents(moving))


@record("select_n", range=ranges.monotone, examples=[lambda x: jnp.where(jnp.eye(2, 3) > 0, x, 1)])
def select_n(node: Node, which: Operand, *cases: Operand) -> Depends:
  """√(sum of squares) where the choice is a constant."""
  if which.moves:
    msg = (
      f"A choice{node.line} between two arrays depends on a third, and may jump where the"
      " condition changes. Of functions of the same array's entries it is looked into;"
      " jnp.maximum, jnp.minimum and jnp.clip never jump."
    )
    raise CertifyError(msg)
  choose = lambda *values: lax.select_n(jnp.asarray(which.value), *values)
  depends = merged(choose, cases)
  if which.node.name == "static":
    return depends
  # Of all branches that a traced number may choose, those that are chosen count.
  taken = lambda i: lambda: jnp.where(jnp.any(which.value == i), 1.0, 0.0)
  norms = tuple(taken(i) for i, x in enumerate(cases) if x.moves)
  return depends._replace(part=dataclasses.replace(cast("LinearPart", depends.part), norms=norms))
