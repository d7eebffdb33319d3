r"""Layers :math:`z \leftarrow c \circ (Gz) + h \circ \delta` of all values of a graph together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import up
from lipjax.rounding.numbers import times_above
from lipjax.rounding.powers import exponent_of, power_of_two
from lipjax.rounding.products import underflow

#: Layers up to this width are made the same, so that one program does for all of them.
PADDED_UP_TO = 128
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
  """

  matrix: Any
  lost: Any
  weights: Any
  linear: Any
  half: Any
  group: Any


class Layers(NamedTuple):
  """A graph's layers; of the last one's values, the outputs, no function follows.

  Attributes:
    layers: from the inputs on.
    exponents: of each entry of the outputs, of the power of two that it is in units of.
  """

  layers: list[Layer]
  exponents: jax.Array

  @property
  def widths(self) -> list[int]:
    """How many values there are at a time."""
    return [len(layer.matrix) for layer in self.layers]


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


def padded(layers: list[Layer]) -> list[Layer]:
  """Narrow layers all of one width, a power of two, by entries that do nothing."""
  power = lambda n: 1 << (n - 1).bit_length() if 0 < n <= PADDED_UP_TO else n
  n_inputs, found = layers[0].matrix.shape[1], []
  widths = [len(layer.matrix) for layer in layers]
  width = max((power(n) for n in widths if n <= PADDED_UP_TO), default=0)
  before = power(n_inputs)
  for layer in layers:
    n, m = layer.matrix.shape
    more = max(width - n, 0)
    zeros = lambda x, more=more: jnp.pad(x, (0, more))
    matrix = jnp.pad(layer.matrix, [(0, more), (0, before - m)])
    group = jnp.concatenate([layer.group, jnp.arange(n, n + more)])
    weights, linear, half = map(zeros, (layer.weights, layer.linear, layer.half))
    found.append(Layer(matrix, layer.lost, weights, linear, half, group))
    before = n + more
  return found


def balanced(layers: list[Layer]) -> list[Layer]:
  """Every entry in units of its own, a power of two near how far it moves beside the others.

  What is added for rounding is the same for all entries: it must not be more than the small ones.
  """

  def step(before: jax.Array, layer: Layer) -> tuple[jax.Array, Layer]:
    matrix = layer.matrix * before
    moves = lax.stop_gradient(jnp.sum(jnp.abs(matrix), axis=1))
    exponent = exponent_of(moves / nonzero(jnp.max(moves)))
    unit = power_of_two(jnp.clip(exponent, -SPREAD, 0), moves.dtype)
    small = underflow(2, matrix.shape, matrix.dtype)
    lost = up((layer.lost * jnp.max(before) + small) / jnp.min(unit))
    # An entry and its own δ are in the same units.
    of = jnp.where((layer.weights > 0) & (layer.half > 0), 1, unit)
    weights, half = times_above(layer.weights, of), times_above(layer.half, 1 / of)
    rows = matrix / unit[:, None]
    return unit, Layer(rows, lost, weights, layer.linear, half, layer.group)

  # The outputs keep their units.
  *inner, last = layers
  unit, inner = over_layers(step, jnp.ones(layers[0].matrix.shape[1], layers[0].lost.dtype), inner)
  small = underflow(1, last.matrix.shape, unit.dtype)
  return [*inner, last._replace(matrix=last.matrix * unit, lost=up(last.lost + small))]
