"""Interval arithmetic of single primitives, rounded outward, on arrays of ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.facts import Operand, Range
from lipjax.certify.graph import Node
from lipjax.rounding.errors import gamma, product_error, transpose_product, unit_roundoff, up
from lipjax.rounding.numbers import max_magnitude, times_above, tiny

#: Terms of a product of matrices that are summed in one go.
PRODUCT_CHUNK = 16


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
  if found.is_known:
    return Range.of(found.full(x.shape).lower.astype(x.node.wide))
  return Range(*(end.astype(x.node.wide) for end in found.full(x.shape)))


def monotone(node: Node, *ranges: Range) -> Range:
  """Of what grows with every operand, and rounds nothing."""
  if all(x.is_known for x in ranges):
    return Range.of(node.bind(*(x.lower for x in ranges)))
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
  return Range.of(-a.lower) if a.is_known else Range(-a.upper, -a.lower)


def product(node: Node, a: Range, b: Range) -> Range:
  """Of a·b and a/b."""
  # Of what is known one end is both.
  ends = [node.bind(x, y) for x in a[a.is_known :] for y in b[b.is_known :]]
  lower, upper = functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends)
  if node.name == "div":
    has_zero = (b.lower <= 0) & (b.upper >= 0)
    lower, upper = jnp.where(has_zero, -jnp.inf, lower), jnp.where(has_zero, jnp.inf, upper)
  return widened(lower, upper)


def bilinear(node: Node, a: Range, b: Range) -> Range:
  """Of sums of products: matrix products and convolutions."""
  (a_middle, a_radius), (b_middle, b_radius) = _middle(a), _middle(b)
  a_size, b_size = jnp.abs(a_middle), jnp.abs(b_middle)
  middle, relative = _product(node, a_middle, b_middle)
  terms = product_terms(node, jnp.shape(a_middle), jnp.shape(b_middle)) + 2
  both = 1 + 2 * gamma(terms, middle.dtype)
  # Also of products that are too small.
  lost = relative * both * node.bind(a_size, b_size) + 8 * terms * tiny(middle.dtype)
  if b_radius is not None:
    lost = lost + both * node.bind(a_size, b_radius)
    b_size = b_size + b_radius
  if a_radius is not None:
    lost = lost + both * node.bind(a_radius, b_size)
  return widened(middle, middle, lost)


def _middle(x: Range) -> tuple[jax.Array, jax.Array | None]:
  if x.is_known:
    return x.lower, None
  middle = x.lower / 2 + x.upper / 2
  radius = up(jnp.maximum(x.upper - middle, middle - x.lower), 2) + tiny(middle.dtype)
  return middle, jnp.where(x.lower == x.upper, 0, radius)


def _product(node: Node, a: jax.Array, b: jax.Array) -> tuple[jax.Array, float]:
  """With few roundings, and how much it is off relative to that of magnitudes."""
  if node.name != "dot_general":
    return node.bind(a, b), gamma(product_terms(node, a.shape, b.shape) + 2, a.dtype)
  contract, batch = node.params["dimension_numbers"]
  (left, rows), (right, columns) = map(_matrices, (a, b), contract, batch)
  value = transpose_product(left, right, PRODUCT_CHUNK)
  relative = product_error(left.shape[-2], PRODUCT_CHUNK, value.dtype)
  return value.reshape((*value.shape[:-2], *rows, *columns)), relative


def _matrices(
  x: jax.Array, inner: Sequence[int], outer: Sequence[int]
) -> tuple[jax.Array, list[int]]:
  """Of each batch the matrix with a row for every term of a sum; and the shape of its columns."""
  free = [i for i in range(x.ndim) if i not in (*inner, *outer)]
  stack, terms, columns = ([x.shape[i] for i in axes] for axes in (outer, inner, free))
  matrices = jnp.transpose(x, (*outer, *inner, *free))
  return matrices.reshape((*stack, math.prod(terms), math.prod(columns))), columns


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
