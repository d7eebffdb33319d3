"""Sums, scalings and choices: linear entry by entry, unless two nodes meet."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from lipjax.certify.graph import LinearPart, LipschitzPart, Node
from lipjax.certify.interpreter import rule_for, size
from lipjax.certify.linear_parts import merged, moved, scaled_node
from lipjax.certify.ranges import largest_magnitude
from lipjax.certify.rules.elementwise import bind_with, elementwise, shared_link
from lipjax.certify.rules.patterns import log_softmax, log_sum_exp, softmax


@rule_for("add", "add_any", "sub")
def add(eqn: Any, left: Any, right: Any) -> Any:
  """Sum of the slopes; slope 1 with a constant. Also ``logsumexp`` and ``log_softmax``."""
  sign = -1 if eqn.primitive.name == "sub" else 1
  aval = eqn.outvars[0].aval
  recipe = (eqn.primitive.name, eqn.params, (left, right))
  if isinstance(left, Node) and isinstance(right, Node):
    special = (log_sum_exp if sign == 1 else log_softmax)(left, right, aval)
    return special or _sum(aval, (left, 1), (right, sign), recipe, eqn)
  node, factor = (left, 1) if isinstance(left, Node) else (right, sign)
  link = (node, bind_with(eqn, (left, right)))
  if node.shape != aval.shape:
    node = _broadcast(node, aval)
  return _shifted(node, aval, factor, link=link, recipe=recipe)


def _shifted(node: Any, aval: Any, factor: Any, **others: Any) -> Any:
  """A node plus a constant: the same linear map of the same parents."""
  if factor == 1 and isinstance(node.part, LinearPart):
    return Node(aval, node.part, node.parents, **others)
  if factor == 1:
    return Node(aval, moved(lambda x: x), (node,), **others)
  return scaled_node(node, factor, aval, **others)


def _sum(aval: Any, left: Any, right: Any, recipe: Any, eqn: Any) -> Any:
  """Of two nodes; of one, with the factors added, where both are multiples of it."""
  (a, a_sign), (b, b_sign) = (_multiple(*term) for term in (left, right))
  link = shared_link(eqn, (left[0], right[0]))
  if a is b:
    return scaled_node(a, a_sign + b_sign, aval, link=link, recipe=recipe)
  (a, _), (b, sign) = left, right
  nodes = tuple(x if x.shape == aval.shape else _broadcast(x, aval) for x in (a, b))
  part = LinearPart(
    lambda x, y: x + sign * y,
    (lambda: 1.0, lambda: 1.0),
    roundings=1,
    magnitude=lambda x, y: x + y,
  )
  return Node(aval, part, nodes, link=link, recipe=recipe)


def _multiple(node: Any, factor: Any) -> Any:
  """The node that this one is a negative or a shift of, and the factor."""
  while isinstance(node.part, LinearPart) and node.recipe and node.recipe[0] in ("neg", "add"):
    operands = [x for x in node.recipe[2] if isinstance(x, Node)]
    if len(operands) != 1 or operands[0].shape != node.shape:
      break
    factor = -factor if node.recipe[0] == "neg" else factor
    node = operands[0]
  return node, factor


def _broadcast(node: Any, aval: Any) -> Any:
  copies = size(aval.shape) / max(size(node.shape), 1)
  return Node(aval, moved(lambda x: jnp.broadcast_to(x, aval.shape), copies), (node,))


@rule_for("neg")
def neg(eqn: Any, x: Any) -> Any:
  """Slope 1."""
  recipe = ("neg", eqn.params, (x,))
  return scaled_node(x, -1, eqn.outvars[0].aval, link=(x, lax.neg), recipe=recipe)


@rule_for("mul")
def mul(eqn: Any, left: Any, right: Any) -> Any:
  """With a constant: its largest magnitude, folded into a weight before it.

  Of two bounded nodes, as gates are: each one's slope times the other's magnitude, added.
  """
  if isinstance(left, Node) and isinstance(right, Node):
    sizes = largest_magnitude(right), largest_magnitude(left)
    if shared_link(eqn, (left, right)) is None and None not in sizes:
      aval, recipe = eqn.outvars[0].aval, ("mul", eqn.params, (left, right))
      nodes = tuple(x if x.shape == aval.shape else _broadcast(x, aval) for x in (left, right))
      return Node(aval, LipschitzPart(sizes, adds=True), nodes, recipe=recipe)
    return elementwise(eqn, (left, right))
  node, factor = (left, right) if isinstance(left, Node) else (right, left)
  aval = eqn.outvars[0].aval
  link = (node, bind_with(eqn, (left, right)))
  if node.shape != aval.shape:
    node = _broadcast(node, aval)
  recipe = ("mul", eqn.params, (left, right))
  return scaled_node(node, factor, aval, link=link, recipe=recipe)


@rule_for("div")
def div(eqn: Any, left: Any, right: Any) -> Any:
  """By a constant as `mul`. Also ``softmax``."""
  aval = eqn.outvars[0].aval
  if isinstance(left, Node) and not isinstance(right, Node):
    link = (left, bind_with(eqn, (left, right)))
    node = left if left.shape == aval.shape else _broadcast(left, aval)
    return scaled_node(node, 1 / jnp.asarray(right), aval, link=link)
  if isinstance(left, Node) and isinstance(right, Node):
    special = softmax(left, right, aval)
    if special is not None:
      return special
  return elementwise(eqn, (left, right))


@rule_for("max", "min")
def max_(eqn: Any, left: Any, right: Any) -> Any:
  """√(sum of squares); a scalar function with a constant."""
  if not (isinstance(left, Node) and isinstance(right, Node)):
    return elementwise(eqn, (left, right))
  link = shared_link(eqn, (left, right))
  if link is not None and link[0] not in (left, right):
    return elementwise(eqn, (left, right))
  aval = eqn.outvars[0].aval
  nodes = tuple(x if x.shape == aval.shape else _broadcast(x, aval) for x in (left, right))
  return Node(aval, LipschitzPart((1.0, 1.0)), nodes, link=link)


@rule_for("select_n")
def select_n(eqn: Any, which: Any, *cases: Any) -> Any:
  """√(sum of squares) where the choice is a constant; else a scalar function."""
  aval = eqn.outvars[0].aval
  if isinstance(which, Node):
    return elementwise(eqn, (which, *cases))
  return merged(aval, lambda *values: eqn.primitive.bind(which, *values, **eqn.params), cases)
