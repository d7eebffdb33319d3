r"""Between which numbers the entries of a node lie.

Interval arithmetic, primitive by primitive, for all inputs of a domain and for the one input
in its middle. Around the latter a node also moves by no more than its Lipschitz constant times
the domain's radius, and an entry of a product with a weight by no more than the norm of one row
times how far the other factor moves. The smallest of these ranges counts.

All of it holds with rounding, by the model of `lipjax.measure.rounding`; conversions between
floating-point types count as exact.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.domain import Domain
from lipjax.certify.engines import (
  ROWS_UP_TO,
  FromSources,
  bound_from_parents,
  has_linear,
  is_nonlinear,
)
from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Failure, LinearPart, Node, ScalarPart, in_order
from lipjax.certify.magnitudes import times_above
from lipjax.certify.range_rules import RANGE_RULES, Range, row_reach, widened

#: In graphs with more nodes ranges are not refined by LipLT.
NODES_UP_TO = 400

#: Functions with bounded values, wherever their input lies.
BOUNDED = {"logistic": (0.0, 1.0), "tanh": (-1.0, 1.0), "erf": (-1.0, 1.0), "sin": (-1.0, 1.0)}
BOUNDED |= {"cos": (-1.0, 1.0), "sign": (-1.0, 1.0)}


def value_range(operand: Any, *, at_point: bool = False) -> Range | None:
  """Lower and upper ends of all entries of a node or a constant; None if nothing is known.

  At the one input in the middle of the domain if `at_point`.
  """
  if not isinstance(operand, Node):
    return jnp.asarray(operand), jnp.asarray(operand)
  key = "point" if at_point else "range"
  if key not in operand.cache:
    operand.cache[key] = _sane(_of_node(operand, at_point))
  return operand.cache[key]


def full_range(node: Node, *, at_point: bool = False) -> tuple[jax.Array, jax.Array]:
  """The range of a node that has one, an end for each entry."""
  found = value_range(node, at_point=at_point)
  if found is None:
    msg = "Nothing is known of this node's values."
    raise CertifyError(msg)
  return jnp.broadcast_to(found[0], node.shape), jnp.broadcast_to(found[1], node.shape)


def largest_magnitude(operand: Any) -> Any:
  """At least the magnitude of every entry; None if there is no bound."""
  found = value_range(operand)
  if found is None:
    return None
  return jnp.maximum(jnp.max(jnp.abs(found[0]), initial=0), jnp.max(jnp.abs(found[1]), initial=0))


def reach(node: Node) -> jax.Array:
  """A bound of how far the node moves for each unit that the input moves, on the domain."""
  if "reach" not in node.cache:
    for parent in node.parents if is_nonlinear(node) else ():
      _refine(parent)
    bounds = {id(parent): reach(parent) for parent in node.parents}
    node.cache["reach"] = bound_from_parents(node, bounds)
  return node.cache["reach"]


def movement(node: Node) -> jax.Array:
  """How far the node can be, in l2, from its value at the domain's point; else infinite."""
  domain = domain_of(node)
  if domain is None:
    return jnp.asarray(jnp.inf)
  _refine(node)
  return times_above(reach(node), domain.radius)


def _refine(node: Node) -> None:
  """A better `reach`, and one for each entry, by LipLT; once, and for what is small."""
  is_small = 0 < math.prod(node.shape) <= ROWS_UP_TO
  if "entries" in node.cache or not is_small or not has_linear(node):
    return
  # With an added constant it is the same map of the same parents.
  known = node.parents[0].cache.setdefault("refined", {})
  key = (id(node.part), *map(id, node.parents))
  if key not in known:
    known[key] = (node, *_refined(node))
  _, node.cache["reach"], node.cache["entries"] = known[key]


def _refined(node: Node) -> tuple[jax.Array, jax.Array | None]:
  bound, order = reach(node), in_order([node])
  if len(order) > NODES_UP_TO:
    return bound, None
  better = FromSources(node, order, {id(x): reach(x) for x in order})
  return jnp.fmin(better.total(), bound), better.entries()


def domain_of(node: Node) -> Domain | None:
  """The domain of the inputs."""
  while node.part is not None:
    if "domain" in node.cache:
      return node.cache["domain"]
    if not node.parents:
      return None
    below, node = node, node.parents[0]
    if "domain" in node.cache:
      below.cache["domain"] = node.cache["domain"]
  return node.domain


def _of_node(node: Node, at_point: bool) -> Range | None:
  if isinstance(node.part, Failure):
    return None
  if node.part is None:
    domain = node.domain
    if domain is None:
      return None
    return (domain.point, domain.point) if at_point else (domain.lower, domain.upper)
  found = _by_rule(node, at_point)
  point = None if at_point or domain_of(node) is None else value_range(node, at_point=True)
  if point is None:
    return found
  try:
    far, rows = movement(node), row_reach(node, movement)
  except CertifyError:
    return found
  entries, domain = node.cache.get("entries"), domain_of(node)
  if entries is not None and domain is not None:
    entries = times_above(entries, domain.radius)
  for distance in (far, rows, entries):
    if distance is not None:
      found = _meet(found, widened(point[0] - distance, point[1] + distance))
  return found


def _by_rule(node: Node, at_point: bool) -> Range | None:
  """From the operands' ranges."""
  recipe = node.recipe
  if isinstance(node.part, ScalarPart):
    base = value_range(node.parents[0], at_point=at_point)
    if base is not None:
      return _of_scalar_function(node.part, base)
    return BOUNDED.get(recipe.name) if recipe is not None else None
  if recipe is None:
    # What a rule put in between only moves or copies entries.
    within = value_range(node.parents[0], at_point=at_point)
    part = node.part
    if within is None or not isinstance(part, LinearPart) or not part.is_selection:
      return None
    apply = lambda x: part.apply(jnp.broadcast_to(x, node.parents[0].shape))
    return apply(within[0]), apply(within[1])
  rule = RANGE_RULES.get(recipe.name)
  ranges = [value_range(x, at_point=at_point) for x in recipe.operands]
  if rule is None or any(x is None for x in ranges):
    return None
  return rule(recipe, *map(_fitted, ranges, recipe.operands))


def _fitted(found: Any, operand: Any) -> Range:
  """A range in the shape and the dtype that a primitive wants."""
  if not isinstance(operand, Node):
    return found
  lower, upper = (jnp.broadcast_to(end, operand.shape) for end in found)
  if lower.dtype == operand.aval.dtype:
    return lower, upper
  return widened(lower.astype(operand.aval.dtype), upper.astype(operand.aval.dtype))


def _of_scalar_function(part: ScalarPart, base: Range) -> Range | None:
  try:
    return part.cells().values(*base)
  except CertifyError:
    return None


def _meet(one: Range | None, other: Range) -> Range:
  if one is None:
    return other
  # Where rounding made them miss each other, either is right.
  lower, upper = jnp.maximum(one[0], other[0]), jnp.minimum(one[1], other[1])
  return jnp.minimum(lower, upper), jnp.maximum(lower, upper)


def _sane(found: Range | None) -> Range | None:
  """What is not a number bounds nothing."""
  if found is None:
    return None
  lower, upper = found
  return jnp.where(jnp.isnan(lower), -jnp.inf, lower), jnp.where(jnp.isnan(upper), jnp.inf, upper)
