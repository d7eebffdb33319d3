r"""From a graph to facts: one loop over its nodes, each from what is known of those before it.

Ranges are interval arithmetic, primitive by primitive, for all inputs of a domain and for the one
input in its middle. Around the latter a node also moves by no more than its Lipschitz constant
times the domain's radius, and an entry of a product with a weight by no more than the norm of one
row times how far the other factor moves. The smallest of these ranges counts.

All of it holds with rounding, by the model of `lipjax.rounding.errors`; conversions between
floating-point types count as exact.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from lipjax.certify.domain import Domain
from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, Facts, Operand, Range
from lipjax.certify.graph import Graph, Node
from lipjax.certify.maps import (
  Known,
  bound_from_parents,
  has_linear,
  is_nonlinear,
  live,
)
from lipjax.certify.primitives import RECORDS
from lipjax.certify.primitives.ranges import fitted, row_movement, widened
from lipjax.certify.primitives.scalar import range_anywhere
from lipjax.certify.register import RULES, depends_by_rule, range_by_rule
from lipjax.certify.sources import Deviations, FromSources
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
  sweep = _Sweep(graph, next((domain.radius for domain in domains if domain is not None), None))
  for node in graph.nodes:
    if node.name == "input":
      facts = _of_input(node, domains[node.params["index"]])
    elif not node.moves:
      values = {k: sweep.facts[k].value for k in node.inputs}
      facts = _of_constant(graph.constant(len(sweep.facts), arrays, values))
    else:
      facts = sweep.of_node(node)
    sweep.facts.append(facts)
  return sweep.facts


def _of_input(node: Node, domain: Domain | None) -> Facts:
  if domain is None:
    return Facts()
  within, point = Range(domain.lower, domain.upper), Range(domain.point, domain.point)
  return Facts(range=within, point=point, bound=jnp.ones((), node.wide))


def _of_constant(value: Any) -> Facts:
  return Facts(value=value, range=Range(value, value), point=Range(value, value))


class _Sweep:
  """What is known of the nodes so far."""

  def __init__(self, graph: Graph, radius: Any | None):
    self.nodes, self.radius = graph.nodes, radius
    self._deviations = Deviations(radius)
    self.facts: list[Facts] = []
    self._is_sharp: set[int] = set()
    # Bounds by the maps of the same parents, by their part: of a shifted node those of the one
    # before.
    self._by_maps: dict[int, tuple[Any, Any]] = {}

  def of_node(self, node: Node) -> Facts:
    """Of the next node."""
    depends = _depends(node, self._operands(node))
    operands, facts = self._operands(node), Facts(depends=depends)
    if self.radius is None:
      return facts._replace(range=_sane(_by_rule(node, operands, at_point=False)))
    # Functions of other nodes are sources of all that comes after them.
    for x in operands if is_nonlinear(depends.part) else ():
      x.sharp()
    bounds = {k: x.bound for k, x in enumerate(self.facts)}
    known = Known(self.nodes, [*self.facts, facts])
    point = _sane(_by_rule(node, operands, at_point=True))
    bound = bound_from_parents(known, len(self.facts), bounds)
    facts = facts._replace(bound=bound, point=point)
    distances = [times_above(bound, self.radius)]
    moving = [x for x in operands if x.moves]
    if node.name in ("dot_general", "conv_general_dilated") and len(moving) == 1:
      far = times_above(moving[0].facts.bound, self.radius)
      distances.append(row_movement(node, operands, far))
    within = _around(facts, distances, _by_rule(node, operands, at_point=False))
    return facts._replace(range=_sane(within))

  def sharp(self, i: int) -> Facts:
    """Of a node, by the linear maps to it from all functions before it, where it is small."""
    facts, part = self.facts[i], self.facts[i].depends.part
    known = Known(self.nodes, self.facts)
    if i in self._is_sharp or self.radius is None or not (known.is_small(i) and has_linear(part)):
      return facts
    self._is_sharp.add(i)
    if id(part) not in self._by_maps:
      order = live(known, [i])
      if len(order) > NODES_UP_TO:
        return facts
      bounds = {k: x.bound for k, x in enumerate(self.facts)}
      better = FromSources(known, i, order, bounds, self._deviations)
      self._by_maps[id(part)] = jnp.fmin(better.total(), facts.bound), better.entries()
    bound, entries = self._by_maps[id(part)]
    distances = [times_above(bound, self.radius), *([] if entries is None else [entries])]
    within = _sane(_around(facts, distances, facts.range))
    self.facts[i] = facts._replace(bound=bound, entries=entries, range=within)
    return self.facts[i]

  def _operands(self, node: Node) -> tuple[Operand, ...]:
    of = lambda k: functools.partial(self.sharp, k)
    return tuple(Operand(k, self.nodes[k], self.facts[k], self.radius, of(k)) for k in node.inputs)


def _around(facts: Facts, distances: Sequence[Any], within: Range | None) -> Range | None:
  """A range and those that are so far around the value at the domain's point."""
  point = facts.point
  if point is None:
    return within
  for distance in distances:
    within = _meet(within, widened(point.lower - distance, point.upper + distance))
  return within


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
