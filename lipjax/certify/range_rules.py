"""Interval arithmetic of single primitives, rounded outward, on arrays of ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.graph import Node, Recipe
from lipjax.certify.magnitudes import times_above, tiny
from lipjax.measure.rounding import gamma, unit_roundoff, up

#: Lower and upper ends of all entries, arrays that broadcast to the node's shape.
Range = tuple[Any, Any]
#: From a recipe and its operands' ranges to the result's.
RANGE_RULES: dict[str, Callable[..., Range | None]] = {}

#: Grow with every operand, and round nothing.
MONOTONE = """
broadcast_in_dim clamp concatenate copy cummax cummin
dynamic_slice dynamic_update_slice gather max min optimization_barrier pad reduce_max reduce_min
 reduce_window_max reduce_window_min reshape rev select_n sharding_constraint slice
scatter scatter-max scatter-min sort split squeeze stack tile top_k transpose unstack
"""
#: Grow with every operand, and add.
SUMS = ("add", "add_any", "reduce_sum", "cumsum", "reduce_window_sum")


def range_rule(*names: str):
  """Registers the rule of primitives or patterns."""

  def register(rule):
    for name in names:
      RANGE_RULES[name] = rule
    return rule

  return register


def widened(lower: jax.Array, upper: jax.Array, error: Any = 0.0, terms: int = 4) -> Range:
  """A range with what rounding of a few operations on its ends can have taken away."""
  dtype = jnp.result_type(lower)
  u = unit_roundoff(dtype)
  error = (1 + 8 * u) * error + terms * tiny(dtype)
  return lower - terms * u * jnp.abs(lower) - error, upper + terms * u * jnp.abs(upper) + error


def _bind(recipe: Recipe) -> Callable[..., jax.Array]:
  if recipe.bind is None:
    msg = f"{recipe.name} is a pattern."
    raise TypeError(msg)
  return recipe.bind


@range_rule(*MONOTONE.split())
def _monotone(recipe: Recipe, *ranges: Range) -> Range:
  lowers, uppers = zip(*ranges, strict=True)
  return _bind(recipe)(*lowers), _bind(recipe)(*uppers)


@range_rule("convert_element_type")
def _conversion(recipe: Recipe, x: Range) -> Range:
  # The function is taken to convert without rounding.
  return widened(*_monotone(recipe, x))


@range_rule(*SUMS)
def _sum(recipe: Recipe, *ranges: Range) -> Range:
  lower, upper = _monotone(recipe, *ranges)
  terms = max(math.prod(jnp.shape(x[0])) for x in ranges) // max(math.prod(lower.shape), 1) + 1
  if recipe.name in ("cumsum", "reduce_window_sum"):
    terms = math.prod(jnp.shape(ranges[0][0]))
  sizes = _bind(recipe)(*(jnp.maximum(jnp.abs(lo), jnp.abs(hi)) for lo, hi in ranges))
  return widened(lower, upper, gamma(terms, lower.dtype) * sizes + terms * tiny(lower.dtype))


@range_rule("scatter-add", "scatter-sub")
def _scattered_sum(recipe: Recipe, x: Range, indices: Range, updates: Range) -> Range:
  scatter, sign = _bind(recipe), -1 if recipe.name == "scatter-sub" else 1
  lower, upper = (scatter(a, indices[0], b) for a, b in zip(x, updates[::sign], strict=True))
  sizes = [jnp.maximum(jnp.abs(lo), jnp.abs(hi)) for lo, hi in (x, updates)]
  terms = math.prod(jnp.shape(updates[0])) + 1
  lost = gamma(terms, lower.dtype) * scatter(sizes[0], indices[0], sign * sizes[1])
  return widened(lower, upper, lost + terms * tiny(lower.dtype))


@range_rule("cumlogsumexp")
def _cumulative_log_sum_exp(recipe: Recipe, x: Range) -> Range:
  # Between the largest term and n of it.
  axis = recipe.params["axis"]
  lower, upper = (lax.cummax(end, axis, recipe.params["reverse"]) for end in x)
  return widened(lower, upper + math.log(max(lower.shape[axis], 1)))


@range_rule("sub")
def _difference(recipe: Recipe, a: Range, b: Range) -> Range:
  return widened(_bind(recipe)(a[0], b[1]), _bind(recipe)(a[1], b[0]))


@range_rule("neg")
def _negative(recipe: Recipe, a: Range) -> Range:
  del recipe
  return -a[1], -a[0]


@range_rule("mul", "div")
def _product(recipe: Recipe, a: Range, b: Range) -> Range | None:
  ends = [_bind(recipe)(x, y) for x in a for y in b]
  lower, upper = functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends)
  if recipe.name == "div":
    has_zero = (b[0] <= 0) & (b[1] >= 0)
    lower, upper = jnp.where(has_zero, -jnp.inf, lower), jnp.where(has_zero, jnp.inf, upper)
  return widened(lower, upper)


@range_rule("dot_general", "conv_general_dilated")
def _bilinear(recipe: Recipe, a: Range, b: Range) -> Range:
  (a_middle, a_radius), (b_middle, b_radius) = _middle(*a), _middle(*b)
  middle = _bind(recipe)(a_middle, b_middle)
  a_size, b_size = jnp.abs(a_middle), jnp.abs(b_middle)
  terms = _terms(recipe) + 2
  radius = _bind(recipe)(a_size, b_radius) + _bind(recipe)(a_radius, b_size + b_radius)
  lost = gamma(terms, middle.dtype) * (_bind(recipe)(a_size, b_size) + radius)
  # Of three products.
  lost = lost + 6 * terms * tiny(middle.dtype)
  return widened(middle - radius, middle + radius, lost)


def _middle(lower: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
  middle = lower / 2 + upper / 2
  radius = up(jnp.maximum(upper - middle, middle - lower), 2) + tiny(middle.dtype)
  return middle, jnp.where(lower == upper, 0, radius)


def _terms(recipe: Recipe) -> int:
  if recipe.name == "dot_general":
    axes = recipe.params["dimension_numbers"][0][0]
    return math.prod(jnp.shape(recipe.operands[0])[i] for i in axes)
  kernel = jnp.shape(recipe.operands[1])
  return math.prod(kernel) // kernel[recipe.params["dimension_numbers"].rhs_spec[0]]


def row_reach(node: Node, movement: Callable[[Node], Any]) -> Any:
  """Of a product with a weight, how far each entry moves: a row's norm times the movement."""
  recipe = node.recipe
  if recipe is None or recipe.name not in ("dot_general", "conv_general_dilated"):
    return None
  factors = [x for x in recipe.operands if isinstance(x, Node)]
  if len(factors) != 1:
    return None
  far = movement(factors[0])
  squares = [
    jnp.ones(x.shape, x.aval.dtype) if isinstance(x, Node) else _scaled_square(x)
    for x in recipe.operands
  ]
  scale = next(_largest(x) for x in recipe.operands if not isinstance(x, Node))
  terms, square = _terms(recipe), _bind(recipe)(*squares)
  # Weights far below the largest one have squares of 0.
  norms = scale * jnp.sqrt(up(square + 2 * terms * tiny(square.dtype), terms + 8))
  return times_above(up(norms, 4), far)


def _largest(weight: Any) -> jax.Array:
  largest = jnp.max(jnp.abs(weight), initial=0)
  return jnp.where(largest > 0, largest, 1)


def _scaled_square(weight: Any) -> jax.Array:
  return jnp.square(weight / _largest(weight))


@range_rule("softmax")
def _softmax(recipe: Recipe, z: Range) -> Range:
  return softmax_range(*z, recipe.params["axes"])


def softmax_range(lower: jax.Array, upper: jax.Array, axes: tuple[int, ...]) -> Range:
  """Of exp(z)/sum(exp(z)): largest where z is and the others are smallest, and the reverse."""
  top = jnp.max(upper, axes, keepdims=True)
  least, most = jnp.exp(lower - top), jnp.exp(upper - top)
  # Exponents above -104, smaller ones give 0, are off by less than 128 roundings.
  lost = 4 * (lower.size + 512) * unit_roundoff(lower.dtype)
  others = lambda x, sign: jnp.maximum(_total(x, axes) * (1 + sign * lost) - x, 0)
  high = most / (most + others(least, -1)) * (1 + lost) + tiny(lower.dtype)
  low = least / (least + others(most, 1)) * (1 - lost)
  high, low = jnp.where(jnp.isnan(high), 1, high), jnp.where(jnp.isnan(low), 0, low)
  return jnp.clip(low, 0, 1), jnp.clip(high, 0, 1)


def _total(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  return jnp.sum(x, axes, keepdims=True)
