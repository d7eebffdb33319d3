"""Sums, scalings and choices: linear entry by entry, unless two nodes meet."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from lipjax.certify.graph import LinearPart, LipschitzPart, Node
from lipjax.certify.interpreter import is_scalar, rule_for, scalar
from lipjax.certify.linear_parts import merged, moved, scaled_node
from lipjax.certify.magnitudes import times_above, tiny
from lipjax.certify.ranges import largest_magnitude, value_range
from lipjax.certify.rules.elementwise import bind_with, elementwise, shared_link
from lipjax.certify.rules.normalization import normalized, quotient
from lipjax.certify.rules.patterns import log_softmax, log_sum_exp, softmax
from lipjax.certify.rules.products import of_two
from lipjax.measure.rounding import up
from lipjax.operators.products import compute_dtype


@rule_for("add", "add_any", "sub")
def add(eqn: Any, left: Any, right: Any) -> Any:
  """Sum of the slopes; slope 1 with a constant. Also ``logsumexp`` and ``log_softmax``."""
  sign = -1 if eqn.primitive.name == "sub" else 1
  aval = eqn.outvars[0].aval
  if isinstance(left, Node) and isinstance(right, Node):
    special = (log_sum_exp if sign == 1 else log_softmax)(left, right, aval)
    return special or _sum(aval, (left, 1), (right, sign), eqn)
  node, factor = (left, 1) if isinstance(left, Node) else (right, sign)
  return _shifted(node, aval, factor, link=(node, bind_with(eqn, (left, right))))


def _shifted(node: Any, aval: Any, factor: Any, **others: Any) -> Any:
  """A node plus a constant: the same linear map of the same parents."""
  if factor == 1 and isinstance(node.part, LinearPart):
    return Node(aval, node.part, node.parents, **others)
  if factor == 1:
    return Node(aval, moved(lambda x: x), (node,), **others)
  return scaled_node(node, factor, aval, **others)


def _sum(aval: Any, left: Any, right: Any, eqn: Any) -> Any:
  """Of two nodes; of one, with the factors added, where both are multiples of it."""
  (a, a_sign), (b, b_sign) = (_multiple(*term) for term in (left, right))
  link = shared_link(eqn, (left[0], right[0]))
  if a is b:
    return scaled_node(a, a_sign + b_sign, aval, link=link)
  (a, _), (b, sign) = left, right
  part = LinearPart(
    lambda x, y: x + sign * y,
    (lambda: 1.0, lambda: 1.0),
    roundings=1,
    magnitude=lambda x, y: x + y,
  )
  return Node(aval, part, (a, b), link=link)


def _multiple(node: Any, factor: Any) -> Any:
  """The node that this one is a negative or a shift of, and the factor."""
  while isinstance(node.part, LinearPart) and node.recipe and node.recipe.name in ("neg", "add"):
    operands = [x for x in node.recipe.operands if isinstance(x, Node)]
    if len(operands) != 1 or operands[0].shape != node.shape:
      break
    factor = -factor if node.recipe.name == "neg" else factor
    node = operands[0]
  return node, factor


@rule_for("neg")
def neg(eqn: Any, x: Any) -> Any:
  """Slope 1."""
  return scaled_node(x, -1, eqn.outvars[0].aval, link=(x, lax.neg))


@rule_for("mul")
def mul(eqn: Any, left: Any, right: Any) -> Any:
  """With a constant: its largest magnitude, folded into a weight before it.

  Of two bounded nodes, as gates are: each one's slope times the other's magnitude, added. Also
  layer norm and its like: the largest 1/√(variance + ε).
  """
  if isinstance(left, Node) and isinstance(right, Node):
    aval = eqn.outvars[0].aval
    norm = normalized(left, right, aval) or normalized(right, left, aval)
    return norm or _product(eqn, left, right)
  node, factor = (left, right) if isinstance(left, Node) else (right, left)
  aval = eqn.outvars[0].aval
  return scaled_node(node, factor, aval, link=(node, bind_with(eqn, (left, right))))


def _product(eqn: Any, left: Any, right: Any) -> Any:
  if shared_link(eqn, (left, right)) is not None:
    return elementwise(eqn, (left, right))
  sizes = largest_magnitude(right), largest_magnitude(left)
  if None in sizes:
    return elementwise(eqn, (left, right))
  nodes = (left, right)
  return Node(eqn.outvars[0].aval, of_two(nodes, sizes, jnp.multiply, 1), nodes)


def _of_two(eqn: Any, left: Any, right: Any, constants: Any) -> Any:
  """A function of two nodes whose slopes add."""
  part = LipschitzPart(tuple(constants), adds=True)
  return Node(eqn.outvars[0].aval, part, (left, right))


@rule_for("div")
def div(eqn: Any, left: Any, right: Any) -> Any:
  """By a constant as `mul`. Also ``softmax``, layer norm, and bounded by bounded away from 0."""
  aval = eqn.outvars[0].aval
  if isinstance(left, Node) and not isinstance(right, Node):
    # Not in half precision, where the inverse is off by up to a part in 256.
    inverse = 1 / jnp.asarray(right, compute_dtype(aval.dtype))
    link = (left, bind_with(eqn, (left, right)))
    return scaled_node(left, inverse, aval, link=link)
  if isinstance(left, Node) and isinstance(right, Node):
    return softmax(left, right, aval) or quotient(left, right, aval) or _quotient(eqn, left, right)
  return elementwise(eqn, (left, right))


def _quotient(eqn: Any, left: Any, right: Any) -> Any:
  within, size = value_range(right), largest_magnitude(left)
  if shared_link(eqn, (left, right)) is not None or within is None or size is None:
    return elementwise(eqn, (left, right))
  # How far from 0 the divisor stays: not at all if it has both signs.
  least = jnp.maximum(jnp.min(within[0], initial=jnp.inf), -jnp.max(within[1], initial=-jnp.inf))
  inverse = up(1 / jnp.maximum(least, 0))
  inverse = jnp.maximum(inverse, tiny(inverse.dtype))
  slope = times_above(times_above(inverse, size), inverse)
  return _of_two(eqn, left, right, (inverse, slope))


@rule_for("max", "min")
def max_(eqn: Any, left: Any, right: Any) -> Any:
  """√(sum of squares); a scalar function with a constant."""
  if not (isinstance(left, Node) and isinstance(right, Node)):
    return elementwise(eqn, (left, right))
  link = shared_link(eqn, (left, right))
  if link is not None and link[0] not in (left, right):
    return elementwise(eqn, (left, right))
  part = LipschitzPart((1.0, 1.0))
  return Node(eqn.outvars[0].aval, part, (left, right), link=link)


@rule_for("select_n")
def select_n(eqn: Any, which: Any, *cases: Any) -> Any:
  """√(sum of squares) where the choice is a constant; else a scalar function."""
  aval = eqn.outvars[0].aval
  if isinstance(which, Node):
    return elementwise(eqn, (which, *cases))
  if is_scalar(which):
    return cases[int(scalar(which))]
  return merged(aval, lambda *values: eqn.primitive.bind(which, *values, **eqn.params), cases)
