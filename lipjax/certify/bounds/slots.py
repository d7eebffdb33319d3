"""Levels of functions, those of a level reading none of each other, and the values before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from lipjax.certify.facts import ScalarPart
from lipjax.certify.maps import Known, is_nonlinear

W = TypeVar("W")

#: A node before a level of functions, or what is not read again, and its number of entries.
Before = tuple[int | None, int]


class Slot(NamedTuple):
  """A value in z.

  Attributes:
    before: the node that it is before the functions; after a function of several arrays, y, too,
      of which the linear part is there.
    after: the node that it is after them; None if nothing reads it then.
    reader: the function that reads or makes it; None if it is kept for later.
  """

  before: int
  after: int | None
  reader: int | None = None

  @property
  def read(self) -> int:
    """What the value is in units of, made into by its function, if there is one."""
    return self.before if self.reader is None else self.reader


def stacks_of(known: Known, order: Sequence[int], outputs: Sequence[int]) -> list[list[Slot]]:
  """What z holds before each level, and at last the outputs."""
  levels = _levels(known, order)
  n_levels = max((levels[i] for i in order if is_nonlinear(known.part(i))), default=0)
  stacks = [_slots(known, order, outputs, levels, level) for level in range(n_levels)]
  return [*stacks, [Slot(i, i) for i in outputs]]


def ways_to(
  known: Known,
  target: int,
  before: set[int | None],
  start: W,
  back: Callable[[int, int, W], W | None],
  join: Callable[[W, W], W | None],
  *,
  is_result: bool = False,
) -> dict[int, W] | None:
  """The maps from the nodes before to a target; None if something on the way has none.

  Args:
    known: about the graph.
    target: the node.
    before: nodes that everything passes through.
    start: the map from the target to itself.
    back: of a node, which of its parents, and the map from it, the map from that parent.
    join: of two ways from a node.
    is_result: whether the target is what a function makes of nodes before, and one of them too.
  """
  ways, found = {target: start}, {}
  for i in range(target, -1, -1):
    if i not in ways:
      continue
    way = ways.pop(i)
    if i in before and not (is_result and i == target):
      found[i] = way
      continue
    parents = known.parents(i)
    if not parents:
      return None
    for k, parent in enumerate(parents):
      earlier = back(i, k, way)
      if earlier is not None and parent in ways:
        earlier = join(ways[parent], earlier)
      if earlier is None:
        return None
      ways[parent] = earlier
  return found


def _levels(known: Known, order: Sequence[int]) -> dict[int, int]:
  """How many functions are at most in line before a node, with itself."""
  levels: dict[int, int] = {}
  for i in order:
    before = max((levels[k] for k in known.parents(i)), default=0)
    levels[i] = before + is_nonlinear(known.part(i))
  return levels


def _slots(
  known: Known,
  order: Sequence[int],
  outputs: Sequence[int],
  levels: Mapping[int, int],
  level: int,
) -> list[Slot]:
  """What z holds before the functions that come after a level."""
  slots: list[Slot] = []
  kept = {i for i in outputs if levels[i] <= level}
  for i in order:
    part = known.part(i)
    if is_nonlinear(part) and levels[i] == level + 1:
      is_scalar = isinstance(part, ScalarPart)
      slots += [Slot(k, i if is_scalar else None, i) for k in dict.fromkeys(known.parents(i))]
      slots += [] if is_scalar else [Slot(i, i, i)]
    elif levels[i] > level:
      kept |= {k for k in known.parents(i) if levels[k] <= level}
  return [*slots, *(Slot(i, i) for i in sorted(kept))]
