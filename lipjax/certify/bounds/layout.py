r"""A graph as layers :math:`z \leftarrow c \circ (Gz) + h \circ \delta` of all values together.

Functions are in levels: those of a level read none of each other. Before each level z are the
values that it or a later one reads, as linear functions of what the level before gave and left.
They are in units of powers of two near the bounds of how far they move, so that matrices and
covariances are near 1, whatever the scale of the network is.
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
from lipjax.certify.bounds.layers import Layer, Layers, balanced, padded
from lipjax.certify.facts import LipschitzPart, ScalarPart
from lipjax.certify.maps import Known, half_slope, is_nonlinear, middle_slope, rows_back
from lipjax.certify.matrix import Rows, identity_rows
from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.numbers import times_above, tiny
from lipjax.rounding.powers import exponent_of, power_of_two
from lipjax.rounding.products import underflow


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
  known: Known,
  order: Sequence[int],
  outputs: Sequence[int],
  bounds: Mapping[int, Any],
  effort: Effort,
) -> Layers | None:
  """The layers to the outputs, or None: not worth the effort, or nothing nonlinear.

  Args:
    known: about the graph.
    order: the nodes that the outputs depend on, parents first.
    outputs: the nodes in question.
    bounds: of each node, by another engine.
    effort: how much work they are worth.
  """
  levels = _levels(known, order)
  n_levels = max((levels[i] for i in order if is_nonlinear(known.part(i))), default=0)
  stacks = [_slots(known, order, outputs, levels, level) for level in range(n_levels)]
  stacks.append([_Slot(i, i) for i in outputs])
  sizes = [sum(known.nodes[slot.before].size for slot in stack) for stack in stacks]
  if n_levels == 0 or min(sizes) == 0 or not is_worth(effort, sizes):
    return None
  layout = _Layout(known, bounds)
  # Inputs stand one after the other; of the values of a later layer some are not read again.
  before: list[tuple[int | None, int]]
  before = [(i, known.nodes[i].size) for i in order if known.part(i) is None]
  layers = []
  for stack in stacks:
    layer = layout.layer(stack, before)
    if layer is None:
      return None
    layers.append(layer)
    before = [(slot.after, known.nodes[slot.before].size) for slot in stack]
  units = [jnp.full(known.nodes[i].size, layout.exponent(i)) for i in outputs]
  return Layers(balanced(padded(layers)), jnp.concatenate(units))


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
    # Each asked for several times.
    self._rest, self._weights = functools.cache(self._rest_of), functools.cache(self._weights_of)
    self.exponent, self._unit = functools.cache(self._exponent_of), functools.cache(self._unit_of)

  def _exponent_of(self, i: int) -> jax.Array:
    """Of a node, of the power of two that its entries are in units of."""
    # Distances between inputs are given, and at most 1.
    return jnp.int32(0) if self._known.part(i) is None else exponent_of(self._bounds[i])

  def layer(self, slots: Sequence[_Slot], before: Sequence[tuple[int | None, int]]) -> Layer | None:
    """From the layer before; None if something on the way is too large."""
    sizes = [self._known.nodes[slot.before].size for slot in slots]
    starts = dict(zip(slots, np.cumsum([0, *sizes]), strict=False))
    blocks, lost, entries = [], [], []
    for slot, size in zip(slots, sizes, strict=True):
      rows = self._rows(slot, before)
      if rows is None:
        return None
      blocks.append(rows[0])
      lost.append(rows[1])
      group = np.arange(size) + starts[slot]
      if slot.reader is not None and isinstance(self._known.part(slot.reader), LipschitzPart):
        group = np.full(size, starts[_Slot(slot.reader, slot.reader, slot.reader)])
      entries.append([jnp.ravel(jnp.broadcast_to(x, size)) for x in (*self._made(slot), group)])
    of_entries = [jnp.concatenate(x) for x in zip(*entries, strict=True)]
    return Layer(jnp.concatenate(blocks), up(sum(lost[1:], lost[0]), len(lost)), *of_entries)

  def _rows(
    self, slot: _Slot, before: Sequence[tuple[int | None, int]]
  ) -> tuple[jax.Array, jax.Array] | None:
    """Of a slot in G, and at least the norm of what they have lost."""
    node = self._known.nodes[slot.before]
    ways = self._ways(slot, {i for i, _ in before})
    if ways is None:
      return None
    blocks, lost = [], []
    for i, size in before:
      if i is None or i not in ways:
        blocks.append(jnp.zeros((node.size, size), node.wide))
        continue
      unit = self._unit(i, slot.before)
      if slot.reader == slot.before:
        unit = unit * self._rest(slot.before)[1]
      blocks.append(ways[i].value.reshape((node.size, size)) * unit)
      lost.append(lax.stop_gradient(ways[i].error) * unit)
    small = underflow(len(lost) + 1, (node.size, sum(n for _, n in before)), node.wide)
    return jnp.concatenate(blocks, axis=1), up(jnp.asarray(sum(lost, small)), len(lost) + 1)

  def _ways(self, slot: _Slot, before: set[int | None]) -> dict[int, Rows] | None:
    """The matrices to a slot; of a function's result to its linear part."""
    known, target = self._known, slot.before
    is_result = slot.reader == target
    if is_result and self._rest(target)[1] is None:
      return {}
    ways: dict[int, Rows] = {target: identity_rows(known.nodes[target])}
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
        ways[parent] = ways[parent].plus(earlier) if parent in ways else earlier
    return found

  def _made(self, slot: _Slot) -> tuple[Any, Any, Any]:
    """w, c and h."""
    if slot.reader is None:
      return 0.0, 1.0, 0.0
    if slot.before == slot.reader:
      return 0.0, 1.0, 1.0
    part = self._known.part(slot.reader)
    unit = self._unit(slot.before, slot.reader)
    if isinstance(part, ScalarPart):
      middle, half = (jnp.ravel(x) for x in (middle_slope(part), half_slope(part)))
      linear = middle * unit
      # What would be too small to be normal is a part of the rest.
      is_lost = jnp.abs(linear) < tiny(linear.dtype)
      half = times_above(half + jnp.where(is_lost, jnp.abs(middle), 0), unit)
      return 1.0, jnp.where(is_lost, 0, linear), half
    weight = self._weights(slot.reader)[slot.before]
    return times_above(weight, unit), 1.0, 0.0

  def _unit_of(self, i: int, k: int) -> jax.Array:
    """What one node's numbers are multiplied by to be in the units of another's."""
    return power_of_two(self.exponent(i) - self.exponent(k), self._known.nodes[k].wide)

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
