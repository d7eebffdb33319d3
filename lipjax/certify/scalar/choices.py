r"""Choices between two functions of one input, which may jump where the condition changes.

A choice has the slopes of its branches only if they agree wherever the condition changes. Two
things prove that. Where one side of a comparison is a constant c, both branches have one
exact value when the other side is set to c: as in ``where(u > 0, u, expm1(u))``, for whatever u
that does not jump itself. Or the sides cross in one point of a box, and there, found and exact,
both branches have one value.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipjax.certify.scalar.exact import candidates, exact_values, gap
from lipjax.certify.scalar.graph import COMPARISONS, LOGIC, Graph, Node
from lipjax.certify.scalar.rules import Boxes, Dual
from lipjax.rounding import interval as iv
from lipjax.rounding.interval import Interval

#: In how many boxes of one round a choice is looked into, one by one; in others it may jump.
MOST_CROSSINGS = 256


class Truth(NamedTuple):
  """What a condition can be."""

  can_hold: NDArray[np.bool_]
  can_fail: NDArray[np.bool_]


def compare(ar: Any, node: Node, known: list[Any], *, ignores_equality: bool = False) -> Truth:
  """What a comparison can be; inputs at which both sides are equal may be left out."""
  a, b = (known[i] for i in node.inputs)
  x, y = ar.bounds(a.value), ar.bounds(b.value)
  if node.inputs[0] == node.inputs[1]:
    always = np.full(x.lo.shape, node.name in ("le", "eq"))
    return Truth(always, ~always)
  below, above = x.lo < y.hi, x.hi > y.lo
  if ignores_equality:
    match node.name:
      case "lt" | "le":
        return Truth(below | ~above, above)
      case name:
        never = np.zeros(x.lo.shape, bool)
        return Truth(never, ~never) if name == "eq" else Truth(~never, never)
  # Infinity is a constant that no number reaches.
  is_infinite = np.isinf(y.lo) & (y.lo == y.hi) | np.isinf(x.lo) & (x.lo == x.hi)
  can_equal = (x.lo <= y.hi) & (x.hi >= y.lo) & ~is_infinite
  can_differ = below | above
  match node.name:
    case "lt":
      return Truth(below, can_equal | above)
    case "le":
      return Truth(can_equal | below, above)
    case "eq":
      return Truth(can_equal, can_differ)
    case _:
      return Truth(can_differ, can_equal)


def combine(name: str, operands: list[Truth]) -> Truth:
  """What a combination of conditions can be."""
  a, b = operands[0], operands[-1]
  match name:
    case "not":
      return Truth(a.can_fail, a.can_hold)
    case "and":
      return Truth(a.can_hold & b.can_hold, a.can_fail | b.can_fail)
    case "or":
      return Truth(a.can_hold | b.can_hold, a.can_fail & b.can_fail)
    case _:
      return Truth(
        (a.can_hold & b.can_fail) | (a.can_fail & b.can_hold),
        (a.can_hold & b.can_hold) | (a.can_fail & b.can_fail),
      )


def agreements(graph: Graph) -> dict[int, set[int]]:
  """For each choice the comparisons with a constant at whose equality its branches agree."""
  found: dict[int, set[int]] = {}
  for place, node in enumerate(graph.nodes):
    if node.name == "select_n":
      found[place] = {i for i in comparisons(graph, node.inputs[0]) if _agree_at(graph, node, i)}
  return found


def _agree_at(graph: Graph, choice: Node, comparison: int) -> bool:
  """Whether both branches agree wherever the sides of a comparison with a constant are equal."""
  left, right = graph.nodes[comparison].inputs
  for side, other in ((left, right), (right, left)):
    constant = graph.nodes[other]
    if constant.name == "constant" and np.isfinite(constant.parameter):
      values = exact_values(graph, None, {side: Fraction(constant.parameter)})
      if_not, if_so = (values[i] for i in choice.inputs[1:])
      return if_not is not None and if_not == if_so
  return False


def comparisons(graph: Graph, place: int) -> set[int]:
  """The comparisons that a condition is made of."""
  node = graph.nodes[place]
  if node.name in COMPARISONS:
    return {place}
  return set().union(*(comparisons(graph, i) for i in node.inputs)) if node.inputs else set()


def choose(graph: Graph, ar: Any, node: Node, known: list[Any], agreed: set[int]) -> Dual:
  """The dual of a choice; `agreed` are the comparisons at whose equality its branches agree."""
  condition = _almost_everywhere(graph, ar, node.inputs[0], known, agreed)
  if_not, if_so = (_where_chosen(graph, ar, node, known, is_so) for is_so in (False, True))
  undecided = condition.can_hold & condition.can_fail
  holds, jumps = condition.can_hold & ~undecided, undecided.copy()
  if undecided.any():
    crossings = _Crossings(graph, ar, node, known, agreed)
    jumps &= ~crossings.are_agreed
    for box in np.flatnonzero(jumps)[:MOST_CROSSINGS] if isinstance(ar, Boxes) else ():
      x = crossings.meeting(box)
      if x is not None:
        jumps[box] = False
        holds[box], undecided[box] = crossings.side(box, x)
  parts = []
  for not_part, so_part in zip(if_not, if_so, strict=True):
    decided = ar.choose(holds, so_part, not_part)
    parts.append(ar.choose(undecided, ar.hull(not_part, so_part), decided))
  value, slope = parts
  return Dual(value, ar.choose(jumps, ar.whole(slope), slope))


def _where_chosen(graph: Graph, ar: Any, node: Node, known: list[Any], is_so: bool) -> Dual:
  """A branch, whose values the condition bounds if the branch is one side of a comparison."""
  place = node.inputs[2 if is_so else 1]
  branch, condition = known[place], graph.nodes[node.inputs[0]]
  if condition.name not in ("lt", "le") or place not in condition.inputs:
    return branch
  left, right = (ar.bounds(known[i].value) for i in condition.inputs)
  if (place == condition.inputs[0]) == is_so:  # the smaller side
    limit = left.hi if not is_so else right.hi
    bounds = Interval(np.full_like(limit, -np.inf), limit)
  else:
    limit = right.lo if not is_so else left.lo
    bounds = Interval(limit, np.full_like(limit, np.inf))
  # A branch that is nowhere chosen has no such values.
  value = ar.bounds(branch.value)
  is_empty = (value.lo > bounds.hi) | (value.hi < bounds.lo)
  return Dual(ar.within(branch.value, iv.choose(is_empty, value, bounds)), branch.slope)


def _almost_everywhere(
  graph: Graph, ar: Any, place: int, known: list[Any], agreed: set[int]
) -> Truth:
  """What a condition can be where no agreed comparison has equal sides."""
  node = graph.nodes[place]
  if place in agreed:
    return compare(ar, node, known, ignores_equality=True)
  if node.name in LOGIC:
    operands = [_almost_everywhere(graph, ar, i, known, agreed) for i in node.inputs]
    return combine(node.name, operands)
  return known[place]


class _Crossings:
  """Where the condition of a choice changes, and whether its branches agree there.

  It changes where the sides of a comparison cross. If all of these are agreed on, and sides do
  not jump, nothing is left to do. If only one comparison is undecided on a
  box, and the difference of its sides is strictly monotone, they cross in one point at most:
  that is found, and there both branches are computed exactly.
  """

  def __init__(self, graph: Graph, ar: Any, node: Node, known: list[Any], agreed: set[int]):
    self.graph, self.node, self.ar = graph, node, ar
    self.open: dict[int, NDArray[np.bool_]] = {}
    self.is_monotone: dict[int, NDArray[np.bool_]] = {}
    #: Where all open comparisons are agreed ones, and their sides do not jump over each other.
    self.are_agreed = np.array(True)
    for place in comparisons(graph, node.inputs[0]):
      left, right = (ar.bounds(known[i].slope) for i in graph.nodes[place].inputs)
      difference = iv.subtract(left, right)
      self.open[place] = known[place].can_hold & known[place].can_fail
      self.is_monotone[place] = (difference.lo > 0) | (difference.hi < 0)
      is_fine = iv.is_bounded(difference) if place in agreed else np.array(False)
      self.are_agreed = self.are_agreed & (is_fine | ~self.open[place])

  def meeting(self, box: int) -> Fraction | None:
    """The one input in a box where the condition changes, if the branches agree there."""
    places = [place for place, is_open in self.open.items() if is_open[box]]
    if len(places) != 1 or not self.is_monotone[places[0]][box]:
      return None
    comparison = self.graph.nodes[places[0]]
    lo, hi = float(self.ar.boxes.lo[box]), float(self.ar.boxes.hi[box])
    for x in candidates(self.graph, comparison, lo, hi):
      if gap(self.graph, comparison, x) == 0:
        values = exact_values(self.graph, x)
        if_not, if_so = (values[i] for i in self.node.inputs[1:])
        return x if if_not is not None and if_not == if_so else None
    return None

  def side(self, box: int, x: Fraction) -> tuple[bool, bool]:
    """Whether the condition holds on all of a box but x, and whether it is undecided there.

    If x is an end of the box, one branch is the function on all of it, since both agree at x.
    """
    lo, hi = Fraction(float(self.ar.boxes.lo[box])), Fraction(float(self.ar.boxes.hi[box]))
    if x in (lo, hi):
      holds = exact_values(self.graph, (lo + hi) / 2)[self.node.inputs[0]]
      if lo < hi and holds is not None:
        return bool(holds), False
    return False, True
