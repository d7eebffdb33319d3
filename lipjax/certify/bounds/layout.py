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

from lipjax.certify.bounds.effort import Effort, is_worth
from lipjax.certify.bounds.graph import product_bounds
from lipjax.certify.bounds.layers import Layers, RawLayer, padded
from lipjax.certify.bounds.slots import Before, Slot, stacks_of
from lipjax.certify.facts import LipschitzPart, ScalarPart
from lipjax.certify.linear import compute_norms
from lipjax.certify.maps import (
  Known,
  live,
  norms_of,
  rows_at,
  rows_back,
  rows_joined,
)
from lipjax.certify.matrix import Rows
from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.powers import exponent_of, times_power_of_two
from lipjax.rounding.products import underflow


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
  stacks = stacks_of(known, order, outputs)
  sizes = [sum(known.nodes[slot.before].size for slot in stack) for stack in stacks]
  if len(stacks) == 1 or min(sizes) == 0 or not is_worth(effort, sizes):
    return None
  if any(i not in bounds for i in order):
    compute_norms(norms_of(known, order))
    bounds = product_bounds(known, order) | dict(bounds)
  layout = _Layout(known, bounds)
  # Inputs stand one after the other; of the values of a later layer some are not read again.
  before: list[Before] = [(i, known.nodes[i].size) for i in order if known.part(i) is None]
  layers = []
  for stack in stacks:
    layer = layout.layer(stack, before)
    if layer is None:
      return None
    layers.append(layer)
    before = [(slot.after, known.nodes[slot.before].size) for slot in stack]
  layers = [layout.in_units(layer) for layer in padded(layers)]
  return Layers(layers, layers[-1].after)


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

  def layer(self, slots: Sequence[Slot], before: Sequence[Before]) -> RawLayer | None:
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
        groups[-1] = np.full(size, starts[Slot(slot.reader, slot.reader, slot.reader)])
    after = [slot.before for slot in slots]
    read = [slot.before if slot.reader is None else slot.reader for slot in slots]
    matrix = jnp.concatenate([jnp.concatenate(blocks, axis=1) for blocks, _ in rows])
    matrix = matrix.astype(self._wide)
    return RawLayer(
      matrix,
      self._lost(slots, before, [lost for _, lost in rows], matrix.shape),
      _joined(slopes, 1).astype(self._wide),
      self._places(*zip(*before, strict=True)),
      self._places(after, sizes),
      self._places(read, sizes),
      np.concatenate(groups),
    )

  def in_units(self, layer: RawLayer) -> RawLayer:
    """With exponents of units for places among the nodes."""
    places = layer.before, layer.after, layer.read
    found = jnp.split(self._units(np.concatenate(places)), np.cumsum([len(x) for x in places[:2]]))
    return layer._replace(before=found[0], after=found[1], read=found[2])

  def _places(self, nodes: Sequence[int | None], sizes: Sequence[int]) -> np.ndarray:
    """For each entry of nodes which one it is of."""
    return np.repeat([0 if i is None else self._place[i] for i in nodes], sizes)

  def _units(self, places: np.ndarray) -> jax.Array:
    return self._exponents.at[places].get(mode="promise_in_bounds")

  def _rows(
    self, slot: Slot, before: Sequence[Before]
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
    small = jnp.asarray(underflow(len(found) + 1, shape, self._wide), self._wide)
    if not found:
      return small
    error, i, k = zip(*found, strict=True)
    one = lambda nodes: self._units(self._places(nodes, [1] * len(nodes)))
    lost = times_power_of_two(jnp.stack(error).astype(self._wide), one(i) - one(k))
    return up(jnp.sum(lost) + small, len(found) + 1)

  def _ways(self, slot: Slot, before: set[int | None]) -> dict[int, Rows] | None:
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

  def _slopes(self, slot: Slot) -> tuple[Any, Any, Any]:
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
