r"""Layers :math:`z \leftarrow c \circ (Gz) + h \circ \delta` of all values of a graph together."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.certify.facts import ScalarPart
from lipjax.certify.maps import half_slope, middle_slope
from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.numbers import times_above, tiny
from lipjax.rounding.powers import exponent_of, power_of_two, times_power_of_two
from lipjax.rounding.products import matrix_norm_above, underflow

#: Layers of such widths are made the same, so that one program does for all of them.
PADDED_FROM, PADDED_UP_TO = 16, 128
#: Exponents of two by which entries' units may differ.
SPREAD = 50


class Layer(NamedTuple):
  r"""The values before a level of functions, and what the functions make of them.

  Entries of a group share a multiplier; the :math:`\delta_i^2` of a group together are at most
  the sum of :math:`(w_j z_j)^2` over its entries.

  Attributes:
    matrix: G as computed, (values, values before).
    lost: at least the norm of exact minus computed.
    weights: w, 0 where no function reads.
    linear: c.
    half: h, 0 or 1 in groups of several entries.
    group: the number of an entry's group.
    blocks: where values are images, of which frequencies before it each frequency is made:
      matrix is (K, frequencies, values, values before), blocks (K, frequencies).
    flips: where that is the conjugate; None if what is made of images are no images.
  """

  matrix: Any
  lost: Any
  weights: Any
  linear: Any
  half: Any
  group: Any
  blocks: Any = None
  flips: Any = None


class RawLayer(NamedTuple):
  """A layer as a graph gives it.

  Attributes:
    matrix: G as computed, before values are in units of powers of two.
    lost: as of a `Layer`.
    slopes: w, and the lowest and the highest slope of the functions, (3, values).
    before: of each value before, the exponent of its unit; in a graph, which node it is of.
    after: of each value.
    read: of what the functions make of it, if they do.
    group: as of a `Layer`, as are `blocks` and `flips`.
  """

  matrix: Any
  lost: Any
  slopes: Any
  before: Any
  after: Any
  read: Any
  group: Any
  blocks: Any = None
  flips: Any = None


class Layers(NamedTuple):
  """A graph's layers; of the last one's values, the outputs, no function follows.

  Attributes:
    layers: from the inputs on, `padded`.
    exponents: of each of the last layer's entries, of the power of two that it is in units of.
  """

  layers: list[RawLayer]
  exponents: jax.Array

  @property
  def widths(self) -> list[tuple[int, int]]:
    """How many blocks of values there are at a time, and how many values."""
    shapes = [layer.matrix.shape for layer in self.layers]
    return [(1 if len(shape) == 2 else shape[1], shape[-2]) for shape in shapes]


def over_layers(
  step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, layers: Sequence[Any]
) -> tuple[Any, list[Any]]:
  """``carry, out = step(carry, layer)`` for each; layers of equal shapes are compiled once."""
  outs: list[Any] = []
  shapes = lambda layer: [jnp.shape(x) for x in jax.tree.leaves(layer)]
  for _, group in itertools.groupby(layers, shapes):
    run = list(group)
    if len(run) == 1:
      carry, out = step(carry, run[0])
      outs.append(out)
    else:
      carry, stack = lax.scan(step, carry, jax.tree.map(lambda *x: jnp.stack(x), *run))
      outs.extend(jax.tree.map(lambda x, i=i: x[i], stack) for i in range(len(run)))
  return carry, outs


def padded(layers: list[RawLayer]) -> list[RawLayer]:
  """Narrow layers and inputs all of one width, a power of two, by entries that do nothing."""
  if any(layer.blocks is not None for layer in layers):
    return layers
  sizes = [layers[0].matrix.shape[1], *(len(layer.matrix) for layer in layers)]
  widest = max((n for n in sizes if n <= PADDED_UP_TO), default=0)
  # Few widths, as each is a program to compile.
  width = max(1 << (widest - 1).bit_length(), PADDED_FROM) if widest else 0
  found = []
  for layer in layers:
    n, m = layer.matrix.shape
    more, earlier = max(width - n, 0), max(width - m, 0)
    xp = jnp if isinstance(layer.slopes, jax.Array) else np
    fill = lambda x, more=more: np.pad(x, (0, more), mode="edge")
    padded_layer = RawLayer(
      jnp.pad(layer.matrix, [(0, more), (0, earlier)]),
      layer.lost,
      xp.pad(layer.slopes, [(0, 0), (0, more)]),
      fill(layer.before, earlier),
      fill(layer.after),
      fill(layer.read),
      np.concatenate([layer.group, np.arange(n, n + more)]),
    )
    found.append(padded_layer)
  return found


def scaled(layer: RawLayer, by: jax.Array) -> RawLayer:
  """A layer of what moves by so much, not by 1."""
  # Rounded to the matrix' dtype.
  by = up(by.astype(layer.matrix.dtype))
  matrix = layer.matrix * by
  lost = layer.lost * by + 2 * unit_roundoff(matrix.dtype) * matrix_norm_above(matrix)
  small = underflow(1, matrix.shape[-2:], matrix.dtype)
  return layer._replace(matrix=matrix, lost=up(lost + small, 4).astype(matrix.dtype))


def prepared(raw: list[RawLayer]) -> list[Layer]:
  """Every entry in units of its own, a power of two near how far it moves beside the others.

  What is added for rounding is the same for all entries: it must not be more than the small ones.
  """

  def step(before: jax.Array, layer: RawLayer) -> tuple[jax.Array, Layer]:
    exponents = layer.before - layer.after[:, None]
    matrix = times_power_of_two(layer.matrix, exponents) * before
    weights, linear, half = _functions(layer)
    moves = lax.stop_gradient(_moves(matrix))
    if layer.flips is not None:
      # A channel's squares are known together, real and imaginary parts, in one unit only.
      moves = jax.ops.segment_max(moves, layer.group, len(moves))[layer.group]
    exponent = exponent_of(moves / nonzero(jnp.max(moves)))
    unit = power_of_two(jnp.clip(exponent, -SPREAD, 0), moves.dtype)
    small = underflow(3, matrix.shape[-2:], matrix.dtype)
    lost = up((layer.lost * jnp.max(before) + small) / jnp.min(unit))
    # An entry and its own δ are in the same units.
    of = jnp.where((weights > 0) & (half > 0), 1, unit)
    weights, half = times_above(weights, of), times_above(half, 1 / of)
    matrix = matrix / unit[:, None]
    return unit, Layer(matrix, lost, weights, linear, half, *layer[-3:])

  start = jnp.ones(raw[0].matrix.shape[-1], raw[0].lost.dtype)
  before, layers = over_layers(step, start, raw[:-1])
  # The outputs keep their units.
  last = raw[-1]
  matrix = times_power_of_two(last.matrix, last.before - last.after[:, None]) * before
  lost = up(last.lost + underflow(2, matrix.shape[-2:], matrix.dtype))
  # An exponent would make a finite number of an infinite one.
  arrays = [x for layer in raw for x in layer[:3] if isinstance(x, jax.Array)]
  is_known = functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(x)) for x in arrays))
  matrix = jnp.where(is_known, matrix, jnp.nan)
  return [*layers, Layer(matrix, lost, None, None, None, None, *last[-2:])]


def _moves(matrix: jax.Array) -> jax.Array:
  """How far each value moves if all before it move by 1."""
  moves = jnp.sum(jnp.abs(matrix), axis=-1)
  return moves if moves.ndim == 1 else jnp.max(jnp.sum(moves, axis=0), axis=0)


def _functions(layer: RawLayer) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of the functions w, c and h, w and c in units of what they make for one of what they read."""
  weights, *slopes = layer.slopes
  slopes = ScalarPart(*slopes)
  unit = times_power_of_two(jnp.ones_like(weights), layer.after - layer.read)
  middle, half = middle_slope(slopes), half_slope(slopes)
  linear = middle * unit
  # What would be too small to be normal is a part of the rest.
  is_lost = jnp.abs(linear) < tiny(linear.dtype)
  half = up(half + jnp.where(is_lost, jnp.abs(middle), 0))
  # A unit that is too small to be normal must not make a function constant.
  unit = jnp.maximum(unit, tiny(unit.dtype))
  weights = times_above(weights, unit)
  # Of w and h only the product counts: large slopes make one of them small, the other one large.
  top = jax.ops.segment_max(weights, layer.group, len(weights))[layer.group]
  balance = exponent_of(nonzero(top))
  weights, half = _in_units(weights, -balance), _in_units(half, balance)
  return weights, jnp.where(is_lost, 0, linear), half


def _in_units(x: jax.Array, exponent: jax.Array) -> jax.Array:
  """Times a power of two, and above 0 where it was."""
  return jnp.where(x > 0, jnp.maximum(times_power_of_two(x, exponent), tiny(x.dtype)), 0)
