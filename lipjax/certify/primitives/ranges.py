"""Interval arithmetic of single primitives, rounded outward, on arrays of ends."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.facts import Operand, Range
from lipjax.certify.graph import Node
from lipjax.rounding.errors import gamma, unit_roundoff, up
from lipjax.rounding.numbers import max_magnitude, times_above, tiny


def widened(lower: jax.Array, upper: jax.Array, error: Any = 0.0, terms: int = 4) -> Range:
  """A range with what rounding of a few operations on its ends can have taken away."""
  dtype = jnp.result_type(lower)
  u = unit_roundoff(dtype)
  error = (1 + 8 * u) * error + terms * tiny(dtype)
  lower, upper = lower - terms * u * jnp.abs(lower), upper + terms * u * jnp.abs(upper)
  return Range(lower - error, upper + error)


def fitted(x: Operand, found: Range) -> Range:
  """A range in the shape and the dtype that a primitive gets."""
  if not x.node.is_float:
    return found
  return Range(*(end.astype(x.node.wide) for end in map(jnp.asarray, found.full(x.shape))))


def monotone(node: Node, *ranges: Range) -> Range:
  """Of what grows with every operand, and rounds nothing."""
  lowers, uppers = zip(*ranges, strict=True)
  return Range(node.bind(*lowers), node.bind(*uppers))


def same(node: Node, x: Range) -> Range:
  """Of what changes no number: the function is taken to convert without rounding."""
  del node
  return x


def sums(node: Node, *ranges: Range) -> Range:
  """Of what grows with every operand, and adds."""
  lower, upper = monotone(node, *ranges)
  terms = max(math.prod(jnp.shape(x.lower)) for x in ranges) // max(math.prod(lower.shape), 1) + 1
  if node.name in ("cumsum", "reduce_window_sum"):
    terms = math.prod(jnp.shape(ranges[0].lower))
  sizes = node.bind(*(x.size() for x in ranges))
  return widened(lower, upper, gamma(terms, lower.dtype) * sizes + terms * tiny(lower.dtype))


def scattered_sums(node: Node, x: Range, indices: Range, updates: Range) -> Range:
  """Of sums at places."""
  scatter, sign, at = node.bind, -1 if node.name == "scatter-sub" else 1, indices.lower
  lower, upper = (scatter(a, at, b) for a, b in zip(x, updates[::sign], strict=True))
  terms = math.prod(jnp.shape(updates.lower)) + 1
  lost = gamma(terms, lower.dtype) * scatter(x.size(), at, sign * updates.size())
  return widened(lower, upper, lost + terms * tiny(lower.dtype))


def cumulative_log_sum_exp(node: Node, x: Range) -> Range:
  """Between the largest term and n of it."""
  axis = node.params["axis"]
  lower, upper = (lax.cummax(end, axis, node.params["reverse"]) for end in x)
  return widened(lower, upper + math.log(max(lower.shape[axis], 1)))


def difference(node: Node, a: Range, b: Range) -> Range:
  """Of a - b."""
  return widened(node.bind(a.lower, b.upper), node.bind(a.upper, b.lower))


def negative(node: Node, a: Range) -> Range:
  """Of -a."""
  del node
  return Range(-a.upper, -a.lower)


def product(node: Node, a: Range, b: Range) -> Range:
  """Of a·b and a/b."""
  ends = [node.bind(x, y) for x in a for y in b]
  lower, upper = functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends)
  if node.name == "div":
    has_zero = (b.lower <= 0) & (b.upper >= 0)
    lower, upper = jnp.where(has_zero, -jnp.inf, lower), jnp.where(has_zero, jnp.inf, upper)
  return widened(lower, upper)


def bilinear(node: Node, a: Range, b: Range) -> Range:
  """Of sums of products: matrix products and convolutions."""
  (a_middle, a_radius), (b_middle, b_radius) = _middle(*a), _middle(*b)
  middle = node.bind(a_middle, b_middle)
  a_size, b_size = jnp.abs(a_middle), jnp.abs(b_middle)
  terms = product_terms(node, jnp.shape(a_middle), jnp.shape(b_middle)) + 2
  radius = node.bind(a_size, b_radius) + node.bind(a_radius, b_size + b_radius)
  lost = gamma(terms, middle.dtype) * (node.bind(a_size, b_size) + radius)
  # Of three products.
  lost = lost + 6 * terms * tiny(middle.dtype)
  return widened(middle - radius, middle + radius, lost)


def _middle(lower: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
  middle = lower / 2 + upper / 2
  radius = up(jnp.maximum(upper - middle, middle - lower), 2) + tiny(middle.dtype)
  return middle, jnp.where(lower == upper, 0, radius)


def product_terms(node: Node, left: tuple[int, ...], right: tuple[int, ...]) -> int:
  """How many products are summed for an entry."""
  if node.name == "dot_general":
    return math.prod(left[i] for i in node.params["dimension_numbers"][0][0])
  return math.prod(right) // right[node.params["dimension_numbers"].rhs_spec[0]]


def row_movement(node: Node, operands: tuple[Operand, ...], far: Any) -> Any:
  """Of a product with a weight, how far each entry moves: a row's norm times the movement."""
  weight = next(jnp.asarray(x.value, x.node.wide) for x in operands if not x.moves)
  largest = max_magnitude(weight)
  scale = jnp.where(largest > 0, largest, 1)
  square = jnp.square(weight / scale)
  squares = [jnp.ones(x.shape, x.node.wide) if x.moves else square for x in operands]
  terms, square = product_terms(node, *(x.shape for x in operands)), node.bind(*squares)
  # Weights far below the largest one have squares of 0.
  norms = scale * jnp.sqrt(up(square + 2 * terms * tiny(square.dtype), terms + 8))
  return times_above(up(norms, 4), far)
