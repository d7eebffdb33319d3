r"""From a graph to facts: one loop over its nodes, each from what is known of those before it.

Ranges are interval arithmetic, primitive by primitive, for all inputs of a domain. Around what it
is for the input in the middle a node also moves by no more than its Lipschitz constant times the
domain's radius, and an entry of a product with a weight by no more than the norm of one row times
how far the other factor moves. The smallest of these ranges counts.

In the middle values are computed, and how far, in l2, rounding has taken them from the exact ones:
an error grows from node to node by no more than the Lipschitz constant, which intervals do not
know: they grow by the norm of absolute values.

All of it holds with rounding, by the model of `lipjax.rounding.errors`; conversions between
floating-point types count as exact.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.domain import Domain
from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, Facts, Middle, Operand, Range
from lipjax.certify.graph import Graph, Node
from lipjax.certify.maps import (
  Known,
  gains,
  has_linear,
  is_nonlinear,
  joint,
  live,
)
from lipjax.certify.primitives import RECORDS
from lipjax.certify.primitives.ranges import fitted, row_movement, widened
from lipjax.certify.primitives.scalar import range_anywhere
from lipjax.certify.register import RULES, depends_by_rule, range_by_rule
from lipjax.certify.sources import Deviations, FromSources
from lipjax.rounding.errors import up
from lipjax.rounding.numbers import norm_above, times_above, tiny

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
  within, none = Range(domain.lower, domain.upper), jnp.zeros((), node.wide)
  return Facts(range=within, middle=Middle(domain.point, none), bound=jnp.ones((), node.wide))


def _of_constant(value: Any) -> Facts:
  return Facts(value=value, range=Range.of(value), middle=Middle(value, 0.0))


class _Sweep:
  """What is known of the nodes so far."""

  def __init__(self, graph: Graph, radius: Any | None):
    self.nodes, self.radius = graph.nodes, radius
    self._deviations = Deviations(radius)
    self.facts: list[Facts] = []
    self._is_sharp: set[int] = set()
    # Bounds by the maps of the same parents, by their part: of a shifted node those of the one
    # before.
    self._by_maps: dict[int, tuple[Any, Any, Any]] = {}

  def of_node(self, node: Node) -> Facts:
    """Of the next node."""
    depends = _depends(node, self._operands(node))
    operands, facts = self._operands(node), Facts(depends=depends)
    if self.radius is None:
      return facts._replace(
        range=_sane(_by_rule(node, operands, [x.facts.range for x in operands]))
      )
    # Functions of other nodes are sources of all that comes after them.
    for x in operands if is_nonlinear(depends.part) else ():
      x.sharp()
    known, i = Known(self.nodes, [*self.facts, facts]), len(self.facts)
    factors = gains(depends.part)
    bound = joint(known, i, factors, {k: x.bound for k, x in enumerate(self.facts)})
    facts = facts._replace(bound=bound, middle=self._middle(known, i, factors, operands))
    distances = [times_above(bound, self.radius)]
    moving = [x for x in operands if x.moves]
    if node.name in ("dot_general", "conv_general_dilated") and len(moving) == 1:
      far = times_above(moving[0].facts.bound, self.radius)
      distances.append(row_movement(node, operands, far))
    within = _by_rule(node, operands, [x.facts.range for x in operands])
    return facts._replace(range=_sane(_around(facts, distances, within)))

  def _middle(
    self, known: Known, i: int, factors: Sequence[Any], operands: tuple[Operand, ...]
  ) -> Middle | None:
    """Of a node, from those of its operands and how far it moves when its parents do."""
    node = self.nodes[i]
    if node.name == "either":
      return operands[0].middle
    found = [x.middle for x in operands if x.middle is not None]
    if len(found) < len(operands):
      return None
    within = _by_rule(node, operands, [Range.of(x.value) for x in found])
    if within is None:
      return None
    value, away = _halfway(node, within)
    errors = [(x.place, y.error) for x, y in zip(operands, found, strict=True) if x.moves]
    depends = known.facts[i].depends
    if depends.gain is None:
      error = joint(known, i, factors, dict(errors))
    else:
      total = functools.reduce(jnp.add, [error for _, error in errors])
      error = times_above(up(total, len(errors)), depends.gain)
    if away is not None:
      error = up(error + norm_above(away), 2)
    error = jnp.where(jnp.isnan(error), jnp.inf, error)
    lost = _lost(depends, operands, away, error)
    return Middle(value, error, None if lost is None else jnp.broadcast_to(lost, node.shape))

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
      off = {k: jnp.inf if x.middle is None else x.middle.error for k, x in enumerate(self.facts)}
      self._by_maps[id(part)] = (
        jnp.fmin(better.total(), facts.bound),
        better.entries(),
        better.errors(off),
      )
    bound, entries, errors = self._by_maps[id(part)]
    facts = facts._replace(middle=_with_errors(facts.middle, errors), bound=bound, entries=entries)
    distances = [times_above(bound, self.radius), *([] if entries is None else [entries])]
    self.facts[i] = facts._replace(range=_sane(_around(facts, distances, facts.range)))
    return self.facts[i]

  def _operands(self, node: Node) -> tuple[Operand, ...]:
    of = lambda k: functools.partial(self.sharp, k)
    return tuple(Operand(k, self.nodes[k], self.facts[k], self.radius, of(k)) for k in node.inputs)


def _around(facts: Facts, distances: Sequence[Any], within: Range | None) -> Range | None:
  """A range and those that are so far around the value in the domain's middle."""
  if facts.middle is None:
    return within
  value, error, _, errors = facts.middle
  error = error if errors is None else errors
  for distance in distances:
    within = _meet(within, widened(value - distance, value + distance, error))
  # Slopes on a range are to hold between the computed value and the exact one too.
  return None if within is None else Range(*_hull(within, value))


def _lost(
  depends: Depends, operands: tuple[Operand, ...], away: jax.Array | None, error: jax.Array
) -> jax.Array | None:
  """What a node has lost since its parents: more than this one step where they lie before it."""
  if depends.gain is None:
    return away
  (x, *others) = [x for x in operands if x.moves]
  if others or x.middle is None or x.facts.depends.parents != depends.parents:
    return error
  if x.middle.lost is None:
    return away
  lost = times_above(x.middle.lost, depends.gain)
  return lost if away is None else up(lost + away, 2)


def _with_errors(middle: Middle | None, errors: jax.Array) -> Middle | None:
  """With what comes by maps from other nodes, where that is less."""
  if middle is None:
    return None
  if middle.lost is not None:
    errors = up(errors + middle.lost, 2)
  # Either may be no number: 0 times an infinite one.
  error = jnp.fmin(middle.error, norm_above(errors))
  return middle._replace(error=error, errors=jnp.fmin(errors, error))


def _hull(within: Range, value: jax.Array) -> tuple[jax.Array, jax.Array]:
  return jnp.minimum(within.lower, value), jnp.maximum(within.upper, value)


def _halfway(node: Node, within: Range) -> tuple[jax.Array, jax.Array | None]:
  """Between the ends of a range, and at least how far they are from that; None if they are it."""
  if within.is_known:
    return within.full(node.shape).lower.astype(node.wide), None
  lower, upper = (jnp.asarray(end, node.wide) for end in within.full(node.shape))
  value = lower / 2 + upper / 2
  # A difference can be too small to be normal.
  away = jnp.maximum(up(jnp.maximum(upper - value, value - lower), 2), tiny(value.dtype))
  is_known = jnp.isfinite(value)
  return jnp.where(is_known, value, 0), jnp.where(is_known, away, jnp.inf)


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


def _by_rule(
  node: Node, operands: tuple[Operand, ...], ranges: Sequence[Range | None]
) -> Range | None:
  """From the operands' ranges."""
  if node.primitive in RULES:
    known = [within for within in ranges if within is not None]
    return range_by_rule(node, operands, known) if len(known) == len(ranges) else None
  if node.name == "either":
    return ranges[0]
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
