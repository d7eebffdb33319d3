r"""A graph as layers :math:`z \leftarrow c \circ (Gz) + h \circ \delta` of all values together.

Before each level of functions z are the values that it or a later one reads, as linear functions of
what the level before gave and left. Each is to be in units of a power of two near the bound of how
far its node moves, so that matrices and covariances are near 1, whatever the scale of the network.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.certify.bounds.layers import RawLayer
from lipjax.certify.bounds.slots import Before, Slot, ways_to
from lipjax.certify.facts import LipschitzPart, ScalarPart
from lipjax.certify.maps import (
  Known,
  rows_at,
  rows_back,
  rows_joined,
)
from lipjax.certify.matrix import Rows
from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.powers import exponent_of, times_power_of_two
from lipjax.rounding.products import underflow


class Layout:
  """Layers of a graph."""

  def __init__(self, known: Known, bounds: Mapping[int, Any], sources: Sequence[int]):
    self._known, self._bounds = known, bounds
    # One dtype for all layers, as wide as each node's and each slope's.
    parts = [part for part in map(known.part, bounds) if isinstance(part, ScalarPart)]
    slopes = [x for part in parts for x in (part.lower, part.upper) if isinstance(x, jax.Array)]
    self.wide = jnp.result_type(*slopes, *(known.nodes[i].wide for i in bounds))
    # Each asked for several times.
    self._rest, self._weights = functools.cache(self._rest_of), functools.cache(self._weights_of)
    # Distances between sources are given, and at most 1: theirs is 0.
    moves = [0.5 if i in sources else bounds[i] for i in sorted(bounds)]
    self._exponents = exponent_of(jnp.stack(moves).astype(self.wide))
    self._place = {i: place for place, i in enumerate(sorted(bounds))}

  def layer(self, slots: Sequence[Slot], before: Sequence[Before]) -> RawLayer | None:
    """From the layer before; None if something on the way is too large."""
    rows, lost = [], []
    for slot in slots:
      maps, size = self.maps(slot, {i for i, _ in before}), self._known.nodes[slot.before].size
      if maps is None:
        return None
      zeros = lambda n, size=size: jnp.zeros((size, n), self.wide)
      blocks = [maps[i][0].reshape((size, n)) if i in maps else zeros(n) for i, n in before]
      rows.append(jnp.concatenate(blocks, axis=1))
      lost.append([maps[i][1] if i in maps else None for i, _ in before])
    matrix = jnp.concatenate(rows).astype(self.wide)
    before_places = self.places(*zip(*before, strict=True))
    lost = self.lost(slots, before, lost, matrix.shape)
    return RawLayer(matrix, lost, before=before_places, **self.functions(slots))

  def functions(self, slots: Sequence[Slot]) -> dict[str, Any]:
    """The other fields of a layer."""
    sizes = [self._known.nodes[slot.before].size for slot in slots]
    starts = dict(zip(slots, np.cumsum([0, *sizes]), strict=False))
    slopes, groups = [], []
    for slot, size in zip(slots, sizes, strict=True):
      slopes.append(_joined([_full(x, size)[None] for x in self.slopes(slot)]))
      groups.append(np.arange(size) + starts[slot])
      if slot.reader is not None and isinstance(self._known.part(slot.reader), LipschitzPart):
        groups[-1] = np.full(size, starts[Slot(slot.reader, slot.reader, slot.reader)])
    return {
      "slopes": _joined(slopes, 1).astype(self.wide),
      "after": self.places([slot.before for slot in slots], sizes),
      "read": self.places([slot.read for slot in slots], sizes),
      "group": np.concatenate(groups),
    }

  def in_units(self, layer: RawLayer) -> RawLayer:
    """With exponents of units for places among the nodes."""
    places = layer.before, layer.after, layer.read
    found = jnp.split(self._units(np.concatenate(places)), np.cumsum([len(x) for x in places[:2]]))
    return layer._replace(before=found[0], after=found[1], read=found[2])

  def places(self, nodes: Sequence[int | None], sizes: Sequence[int]) -> np.ndarray:
    """For each entry of nodes which one it is of."""
    return np.repeat([0 if i is None else self._place[i] for i in nodes], sizes)

  def _units(self, places: np.ndarray) -> jax.Array:
    return self._exponents.at[places].get(mode="promise_in_bounds")

  def maps(
    self, slot: Slot, before: set[int | None]
  ) -> dict[int | None, tuple[jax.Array, jax.Array]] | None:
    """The rows of a slot for each node before, and at least the norm of what they have lost."""
    ways = self.ways(slot, before)
    if ways is None:
      return None
    found: dict[int | None, tuple[jax.Array, jax.Array]] = {}
    for i, way in ways.items():
      block, error = way.value, lax.stop_gradient(way.error)
      if slot.reader == slot.before:
        is_split = self._rest(slot.before)[1]
        block, error = block * is_split, error * is_split
      found[i] = block, error
    return found

  def lost(
    self,
    slots: Sequence[Slot],
    before: Sequence[Before],
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
    small = jnp.asarray(underflow(len(found) + 1, shape, self.wide), self.wide)
    if not found:
      return small
    error, i, k = zip(*found, strict=True)
    one = lambda nodes: self._units(self.places(nodes, [1] * len(nodes)))
    lost = times_power_of_two(jnp.stack(error).astype(self.wide), one(i) - one(k))
    return up(jnp.sum(lost) + small, len(found) + 1)

  def ways(self, slot: Slot, before: set[int | None]) -> dict[int, Rows] | None:
    """The matrices to a slot; of a function's result to its linear part."""
    known, target = self._known, slot.before
    is_result = slot.reader == target
    if is_result and self._rest(target)[1] is None:
      return {}
    back = functools.partial(rows_back, known)
    join = functools.partial(rows_joined, known)
    start = rows_at(known, target)
    return ways_to(known, target, before, start, back, join, is_result=is_result)

  def slopes(self, slot: Slot) -> tuple[Any, Any, Any]:
    """Of the function w, and the lowest and the highest slope."""
    if slot.reader is None:
      return 0.0, 1.0, 1.0
    if slot.before == slot.reader:  # c = h = 1
      return 0.0, 0.0, 2.0
    part = self._known.part(slot.reader)
    if not isinstance(part, ScalarPart):
      return self._weights(slot.reader)[slot.before], 1.0, 1.0
    return 1.0, part.lower, part.upper

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
