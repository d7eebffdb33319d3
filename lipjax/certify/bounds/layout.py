r"""A graph as layers :math:`z \leftarrow c \circ (Gz) + h \circ \delta` of all values together.

Functions are in levels: those of a level read none of each other. Before each level z are the
values that it or a later one reads, as linear functions of what the level before gave and left.
Each is to be in units of a power of two near the bound of how far its node moves, so that matrices
and covariances are near 1, whatever the scale of the network is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.certify.bounds.effort import Effort, is_worth
from lipjax.certify.bounds.graph import product_bounds
from lipjax.certify.bounds.layers import Layers, RawLayer, padded
from lipjax.certify.facts import LipschitzPart, ScalarPart
from lipjax.certify.linear import compute_norms
from lipjax.certify.maps import (
  Known,
  is_nonlinear,
  live,
  norms_of,
  rows_at,
  rows_back,
  rows_joined,
)
from lipjax.certify.matrix import Rows
from lipjax.certify.scalar.cells import outward
from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.interval import Interval
from lipjax.rounding.powers import exponent_of, times_power_of_two
from lipjax.rounding.products import underflow

#: A node before a level of functions, or what is not read again, and its number of entries.
_Before = tuple[int | None, int]


class _Slot(NamedTuple):
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


def layers_of(
  known: Known, outputs: Sequence[int], bounds: Mapping[int, Any], effort: Effort
) -> Layers | None:
  """The layers to the outputs, or None: not worth the effort, or nothing nonlinear.

  Args:
    known: about the graph.
    outputs: the nodes in question.
    bounds: of each node that they depend on, by another engine.
    effort: how much work they are worth.
  """
  known = known.seen()
  order = live(known, outputs)
  levels = _levels(known, order)
  n_levels = max((levels[i] for i in order if is_nonlinear(known.part(i))), default=0)
  stacks = [_slots(known, order, outputs, levels, level) for level in range(n_levels)]
  stacks.append([_Slot(i, i) for i in outputs])
  sizes = [sum(known.nodes[slot.before].size for slot in stack) for stack in stacks]
  if n_levels == 0 or min(sizes) == 0 or not is_worth(effort, sizes):
    return None
  if any(i not in bounds for i in order):
    compute_norms(norms_of(known, order))
    bounds = product_bounds(known, order) | dict(bounds)
  layout = _Layout(known, bounds)
  # Inputs stand one after the other; of the values of a later layer some are not read again.
  before: list[_Before] = [(i, known.nodes[i].size) for i in order if known.part(i) is None]
  layers = []
  for stack in stacks:
    layer = layout.layer(stack, before)
    if layer is None:
      return None
    layers.append(layer)
    before = [(slot.after, known.nodes[slot.before].size) for slot in stack]
  layers = padded(layers)
  return Layers(layers, layers[-1].after)


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
) -> list[_Slot]:
  """What z holds before the functions that come after a level."""
  slots: list[_Slot] = []
  kept = {i for i in outputs if levels[i] <= level}
  for i in order:
    part = known.part(i)
    if is_nonlinear(part) and levels[i] == level + 1:
      is_scalar = isinstance(part, ScalarPart)
      slots += [_Slot(k, i if is_scalar else None, i) for k in dict.fromkeys(known.parents(i))]
      slots += [] if is_scalar else [_Slot(i, i, i)]
    elif levels[i] > level:
      kept |= {k for k in known.parents(i) if levels[k] <= level}
  return [*slots, *(_Slot(i, i) for i in sorted(kept))]


class _Layout:
  """Layers of a graph."""

  def __init__(self, known: Known, bounds: Mapping[int, Any]):
    self._known, self._bounds = known, bounds
    # One dtype for all layers, as wide as each node's and each slope's.
    parts = [part for part in map(known.part, bounds) if isinstance(part, ScalarPart)]
    slopes = [x for part in parts for x in (part.lower, part.upper) if isinstance(x, jax.Array)]
    self._wide = jnp.result_type(*slopes, *(known.nodes[i].wide for i in bounds))
    # Each asked for several times.
    self._rest, self._weights = functools.cache(self._rest_of), functools.cache(self._weights_of)
    # Distances between inputs are given, and at most 1: theirs is 0.
    moves = [0.5 if known.part(i) is None else bounds[i] for i in sorted(bounds)]
    self._exponents = exponent_of(jnp.stack(moves).astype(self._wide))
    self._place = {i: place for place, i in enumerate(sorted(bounds))}

  def layer(self, slots: Sequence[_Slot], before: Sequence[_Before]) -> RawLayer | None:
    """From the layer before; None if something on the way is too large."""
    sizes = [self._known.nodes[slot.before].size for slot in slots]
    starts = dict(zip(slots, np.cumsum([0, *sizes]), strict=False))
    rows, slopes, groups = [], [], []
    for slot, size in zip(slots, sizes, strict=True):
      found = self._rows(slot, before)
      if found is None:
        return None
      rows.append(found)
      slopes.append(_joined([_full(x, size)[None] for x in self._slopes(slot)]))
      groups.append(np.arange(size) + starts[slot])
      if slot.reader is not None and isinstance(self._known.part(slot.reader), LipschitzPart):
        groups[-1] = np.full(size, starts[_Slot(slot.reader, slot.reader, slot.reader)])
    after = self._units([(slot.before, size) for slot, size in zip(slots, sizes, strict=True)])
    read = [slot.before if slot.reader is None else slot.reader for slot in slots]
    read = self._units(list(zip(read, sizes, strict=True)))
    matrix = jnp.concatenate([jnp.concatenate(blocks, axis=1) for blocks, _ in rows])
    matrix = matrix.astype(self._wide)
    return RawLayer(
      matrix,
      self._lost(slots, before, [lost for _, lost in rows], matrix.shape),
      _joined(slopes, 1).astype(self._wide),
      self._units(before),
      after,
      read,
      np.concatenate(groups),
    )

  def _units(self, nodes: Sequence[_Before]) -> jax.Array:
    """For each entry of nodes the exponent of the power of two that it is in units of."""
    place = lambda i: 0 if i is None else self._place[i]
    places = np.concatenate([np.full(size, place(i)) for i, size in nodes])
    return self._exponents.at[places].get(mode="promise_in_bounds")

  def _rows(
    self, slot: _Slot, before: Sequence[_Before]
  ) -> tuple[list[jax.Array], list[jax.Array | None]] | None:
    """Of a slot in G, for each node before, and at least the norm of what they have lost."""
    node = self._known.nodes[slot.before]
    ways = self._ways(slot, {i for i, _ in before})
    if ways is None:
      return None
    blocks, lost = [], []
    for i, size in before:
      if i is None or i not in ways:
        blocks.append(jnp.zeros((node.size, size), node.wide))
        lost.append(None)
        continue
      block, error = ways[i].value.reshape((node.size, size)), lax.stop_gradient(ways[i].error)
      if slot.reader == slot.before:
        is_split = self._rest(slot.before)[1]
        block, error = block * is_split, error * is_split
      blocks.append(block)
      lost.append(error)
    return blocks, lost

  def _lost(
    self,
    slots: Sequence[_Slot],
    before: Sequence[_Before],
    errors: Sequence[Sequence[jax.Array | None]],
    shape: tuple[int, ...],
  ) -> jax.Array:
    """At least the norm of what a layer's matrix has lost, in the units of its values."""
    found = [
      (error, i, slot.before)
      for slot, of_slot in zip(slots, errors, strict=True)
      for error, (i, _) in zip(of_slot, before, strict=True)
      if error is not None
    ]
    small = jnp.asarray(underflow(len(found) + 1, shape, self._wide), self._wide)
    if not found:
      return small
    error, i, k = zip(*found, strict=True)
    one = lambda nodes: self._units([(node, 1) for node in nodes])
    lost = times_power_of_two(jnp.stack(error).astype(self._wide), one(i) - one(k))
    return up(jnp.sum(lost) + small, len(found) + 1)

  def _ways(self, slot: _Slot, before: set[int | None]) -> dict[int, Rows] | None:
    """The matrices to a slot; of a function's result to its linear part."""
    known, target = self._known, slot.before
    is_result = slot.reader == target
    if is_result and self._rest(target)[1] is None:
      return {}
    ways: dict[int, Rows] = {target: rows_at(known, target)}
    found: dict[int, Rows] = {}
    for i in range(target, -1, -1):
      if i not in ways:
        continue
      way = ways.pop(i)
      if i in before and not (is_result and i == target):
        found[i] = way
        continue
      for k, parent in enumerate(known.parents(i)):
        earlier = rows_back(known, i, k, way)
        if earlier is None:
          return None
        ways[parent] = rows_joined(known, ways[parent], earlier) if parent in ways else earlier
    return found

  def _slopes(self, slot: _Slot) -> tuple[Any, Any, Any]:
    """Of the function w, and the lowest and the highest slope."""
    if slot.reader is None:
      return 0.0, 1.0, 1.0
    if slot.before == slot.reader:  # c = h = 1
      return 0.0, 0.0, 2.0
    part = self._known.part(slot.reader)
    if not isinstance(part, ScalarPart):
      return self._weights(slot.reader)[slot.before], 1.0, 1.0
    lower, upper = part.lower, part.upper
    if not (isinstance(lower, jax.Array) or isinstance(upper, jax.Array)):
      ends = Interval(np.asarray(lower, np.float64), np.asarray(upper, np.float64))
      lower, upper = outward(ends, self._known.nodes[slot.reader].wide)
    return 1.0, lower, upper

  def _rest_of(self, i: int) -> tuple[list[Any], Any]:
    """A function's constants, less its linear part's where that is less; and 1 there, else 0."""
    part = self._known.part(i)
    if not isinstance(part, LipschitzPart) or part.linear is None:
      return list(getattr(part, "constants", ())), None
    rest = part.rest()
    is_split = jnp.asarray(sum(rest) < sum(part.constants))
    pairs = zip(rest, part.constants, strict=True)
    wide = self._known.nodes[i].wide
    return [jnp.where(is_split, *pair) for pair in pairs], is_split.astype(wide)

  def _weights_of(self, i: int) -> dict[int, jax.Array]:
    """Of each parent: where movements add, (Σ a)² ≤ Σ a²/share for shares that add up to 1."""
    known, part, wide = self._known, self._known.part(i), self._known.nodes[i].wide
    weights: dict[int, jax.Array] = {}
    for k, constant in zip(known.parents(i), self._rest(i)[0], strict=True):
      weights[k] = up(weights.get(k, jnp.zeros((), wide)) + jnp.asarray(constant, wide))
    if isinstance(part, LipschitzPart) and part.adds and len(weights) > 1:
      # As if all moved as far as they can.
      sizes = jnp.stack([w * self._bounds[k] for k, w in weights.items()])
      shares = jnp.maximum(sizes / nonzero(jnp.sum(sizes)), 1e-3)
      shares = shares / jnp.sum(shares) * (1 - 32 * unit_roundoff(wide))
      roots = lax.stop_gradient(jnp.sqrt(shares))
      weights = {k: up(w / roots[j]) for j, (k, w) in enumerate(weights.items())}
    return weights


# What does not depend on an array costs no operation.


def _full(x: Any, size: int) -> Any:
  """One number for each entry."""
  xp = jnp if isinstance(x, jax.Array) else np
  return xp.broadcast_to(xp.ravel(x), size)


def _joined(parts: Sequence[Any], axis: int = 0) -> Any:
  xp = jnp if any(isinstance(x, jax.Array) for x in parts) else np
  return xp.concatenate(parts, axis)
