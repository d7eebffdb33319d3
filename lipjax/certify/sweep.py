r"""From a graph to facts: one loop over its nodes, each from what is known of those before it.

Ranges are interval arithmetic, primitive by primitive, for all inputs of a domain and for the one
input in its middle. Around the latter a node also moves by no more than its Lipschitz constant
times the domain's radius, and an entry of a product with a weight by no more than the norm of one
row times how far the other factor moves. The smallest of these ranges counts.

All of it holds with rounding, by the model of `lipjax.rounding.errors`; conversions between
floating-point types count as exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from lipjax.certify.domain import Domain
from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, Facts, Operand, Range
from lipjax.certify.graph import Graph, Node
from lipjax.certify.maps import (
  ROWS_UP_TO,
  FromSources,
  Known,
  bound_from_parents,
  has_linear,
  live,
)
from lipjax.certify.primitives import RECORDS
from lipjax.certify.primitives.ranges import fitted, row_movement, widened
from lipjax.certify.primitives.scalar import range_anywhere
from lipjax.certify.primitives.two import movement
from lipjax.certify.register import RULES, depends_by_rule, range_by_rule
from lipjax.rounding.numbers import times_above

#: In graphs with more nodes ranges are not refined by LipLT.
NODES_UP_TO = 400


def facts_of(graph: Graph, arrays: Sequence[Any], domains: Sequence[Domain | None]) -> list[Facts]:
  """What is known of every node.

  Args:
    graph: of the function.
    arrays: its constants.
    domains: where each of its inputs may lie; None for everywhere.

  Raises:
    CertifyError: a node that the results depend on has no bound.
  """
  radius = next((domain.radius for domain in domains if domain is not None), None)
  facts: list[Facts] = []
  # Maps of the same parents, by their part: of a shifted node those of the node before.
  refined: dict[int, tuple[Any, Any]] = {}
  for node in graph.nodes:
    operands = tuple(Operand(k, graph.nodes[k], facts[k], radius) for k in node.inputs)
    if node.name == "input":
      facts.append(_of_input(node, domains[node.params["index"]]))
    elif not node.moves:
      values = {x.place: x.value for x in operands}
      facts.append(_of_constant(graph.constant(len(facts), arrays, values)))
    else:
      facts.append(_of_node(Known(graph.nodes, facts), node, operands, radius, refined))
  return facts


def _of_input(node: Node, domain: Domain | None) -> Facts:
  if domain is None:
    return Facts()
  within, point = Range(domain.lower, domain.upper), Range(domain.point, domain.point)
  return Facts(range=within, point=point, bound=jnp.ones((), node.wide))


def _of_constant(value: Any) -> Facts:
  return Facts(value=value, range=Range(value, value), point=Range(value, value))


def _of_node(
  known: Known,
  node: Node,
  operands: tuple[Operand, ...],
  radius: Any,
  refined: dict[int, tuple[Any, Any]],
) -> Facts:
  facts = Facts(depends=_depends(node, operands))
  if radius is None:
    return facts._replace(range=_sane(_by_rule(node, operands, at_point=False)))
  place = len(known.facts)
  known = Known(known.nodes, [*known.facts, facts])
  facts = _with_bound(known, place, facts, refined)
  point = _sane(_by_rule(node, operands, at_point=True))
  within = _by_rule(node, operands, at_point=False)
  if point is not None:
    for distance in _distances(node, operands, facts, radius):
      around = widened(point.lower - distance, point.upper + distance)
      within = _meet(within, around)
  return facts._replace(range=_sane(within), point=point)


def _depends(node: Node, operands: tuple[Operand, ...]) -> Depends:
  if node.name == "failure":
    raise CertifyError(node.params["text"])
  if node.primitive in RULES:
    return depends_by_rule(node, operands)
  if node.name not in RECORDS:
    name = node.name or str(node.primitive)
    msg = (
      f"There is no rule for {name!r}{node.line}. Write one with lipjax.register_rule, or bound "
      "the parts of the function before and after it apart."
    )
    raise CertifyError(msg)
  return RECORDS[node.name].transfer(node, *operands)


def _with_bound(known: Known, i: int, facts: Facts, refined: dict[int, tuple[Any, Any]]) -> Facts:
  """How far a node moves, also by LipLT where it is small: as a whole, and each entry."""
  bounds = {k: x.bound for k, x in enumerate(known.facts)}
  bound, part = bound_from_parents(known, i, bounds), facts.depends.part
  if not (0 < known.nodes[i].size <= ROWS_UP_TO and has_linear(part)):
    return facts._replace(bound=bound)
  if id(part) not in refined:
    order = live(known, [i])
    if len(order) > NODES_UP_TO:
      refined[id(part)] = bound, None
    else:
      better = FromSources(known, i, order, {**bounds, i: bound})
      refined[id(part)] = jnp.fmin(better.total(), bound), better.entries()
  bound, entries = refined[id(part)]
  return facts._replace(bound=bound, entries=entries)


def _distances(node: Node, operands: tuple[Operand, ...], facts: Facts, radius: Any) -> list[Any]:
  """How far entries can be from their values at the domain's point, as several ways say."""
  found = [times_above(facts.bound, radius)]
  moving = [x for x in operands if x.moves]
  if node.name in ("dot_general", "conv_general_dilated") and len(moving) == 1:
    found.append(row_movement(node, operands, movement(moving[0])))
  if facts.entries is not None:
    found.append(times_above(facts.entries, radius))
  return found


def _by_rule(node: Node, operands: tuple[Operand, ...], *, at_point: bool) -> Range | None:
  """From the operands' ranges."""
  ranges = [x.facts.point if at_point else x.facts.range for x in operands]
  if node.primitive in RULES:
    known = [within for within in ranges if within is not None]
    return range_by_rule(node, operands, known) if len(known) == len(ranges) else None
  record = RECORDS.get(node.name)
  if record is None or record.range is None or not node.is_float:
    return None
  if None in ranges:
    return range_anywhere(node, operands[0]) if node.name == "scalar" else None
  known = [fitted(x, found) for x, found in zip(operands, ranges, strict=True) if found is not None]
  return record.range(node, *known)


def _meet(one: Range | None, other: Range) -> Range:
  if one is None:
    return other
  # Where rounding made them miss each other, either is right.
  lower, upper = jnp.maximum(one[0], other[0]), jnp.minimum(one[1], other[1])
  return Range(jnp.minimum(lower, upper), jnp.maximum(lower, upper))


def _sane(found: Range | None) -> Range | None:
  """What is not a number bounds nothing."""
  if found is None:
    return None
  lower, upper = found
  lower = jnp.where(jnp.isnan(lower), -jnp.inf, lower)
  return Range(lower, jnp.where(jnp.isnan(upper), jnp.inf, upper))
