"""Between which numbers the entries of a node lie, whatever the input."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from lipjax.certify.graph import LinearPart, Node
from lipjax.measure.rounding import unit_roundoff, up

#: Lower and upper end, numbers or scalars.
Range = tuple[Any, Any]

#: Functions with bounded values.
BOUNDED = {"logistic": (0.0, 1.0), "tanh": (-1.0, 1.0), "erf": (-1.0, 1.0), "sin": (-1.0, 1.0)}
BOUNDED |= {"cos": (-1.0, 1.0), "softmax": (0.0, 1.0), "sign": (-1.0, 1.0)}


def value_range(operand: Any) -> Range | None:
  """Lower and upper end for all entries of a node or a constant; None if there is none."""
  if not isinstance(operand, Node):
    constant = jnp.asarray(operand)
    is_number = jnp.issubdtype(constant.dtype, jnp.floating) and constant.size
    return (jnp.min(constant), jnp.max(constant)) if is_number else None
  if not operand.range_cache:
    operand.range_cache.append(_of_node(operand))
  return operand.range_cache[0]


def largest_magnitude(operand: Any) -> Any:
  """At least the magnitude of every entry; None if there is no bound."""
  found = value_range(operand)
  return None if found is None else jnp.maximum(abs(found[0]), abs(found[1]))


def _of_node(node: Node) -> Range | None:
  name, _, operands = node.recipe or (None, None, ())
  if name in BOUNDED:
    return BOUNDED[name]
  if name in ("add", "sub", "mul", "max", "min", "neg"):
    ranges = [value_range(x) for x in operands]
    known = [x for x in ranges if x is not None]
    return _combined(name, *known) if len(known) == len(ranges) else None
  if not isinstance(node.part, LinearPart) or node.has_constants or len(node.parents) != 1:
    return None
  within = value_range(node.parents[0])
  if (
    within is None
    or (node.part.is_selection and node.part.roundings == 0)
    or node.part.magnitude is None
  ):
    return within if node.part.is_selection else None
  size = largest_magnitude(node.parents[0])
  most = jnp.max(node.part.magnitude(jnp.full(node.parents[0].shape, size)), initial=0)
  most = up(most, node.part.roundings)
  return -most, most


def _combined(name: str, a: Range, b: Range | None = None) -> Range:
  if name == "neg" or b is None:
    return -a[1], -a[0]
  if name in ("max", "min"):
    pick = jnp.maximum if name == "max" else jnp.minimum
    return pick(a[0], b[0]), pick(a[1], b[1])
  if name == "sub":
    b = (-b[1], -b[0])
  ends = [x * y for x in a for y in b] if name == "mul" else [a[0] + b[0], a[1] + b[1]]
  low, high = functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends)
  # Made wider by what rounding can have taken away.
  margin = 8 * unit_roundoff(jnp.result_type(low)) * jnp.maximum(abs(low), abs(high))
  return low - margin, high + margin
