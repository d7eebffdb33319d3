"""Functions of several arrays that are 1-Lipschitz in all of them together, and two ways."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.facts import Depends, LinearPart, LipschitzPart, Operand, Range
from lipjax.certify.graph import Node
from lipjax.certify.linear import moved
from lipjax.certify.primitives.ranges import widened
from lipjax.certify.primitives.record import record


def _range(node: Node, rows: Range) -> Range:
  return _RANGES[node.params["how"]](*(Range(*ends) for ends in zip(*rows, strict=True)))


@record(
  "of_rows",
  range=_range,
  examples=[
    lambda x: jnp.maximum(x, x[:, ::-1]),
    lambda x: lax.clamp(x[:, ::-1], x, jnp.tanh(x)),
    lambda x: jnp.logaddexp(x, x[:, ::-1]),
    lambda x: jnp.hypot(x, x[:, ::-1]),
  ],
)
def of_rows(node: Node, x: Operand) -> Depends:
  """Slope 1 of all arrays together: max, min, clamp, logaddexp and hypot of arrays that move."""
  del node
  return Depends(LipschitzPart((1.0,)), (x.place,))


@record("either", examples=[lambda x: jnp.maximum(x, x[:, ::-1])])
def either(node: Node, by_norms: Operand, by_magnitude: Operand) -> Depends:
  """What is known in two ways: one for norms, and in ellipsoids the other."""
  del node
  seen = Depends(moved(lambda x: x), (by_magnitude.place,))
  return by_norms.facts.depends._replace(seen=seen)


@record("combination", examples=[lambda x: jnp.minimum(x, x[:, ::-1])])
def combination(node: Node, *operands: Operand) -> Depends:
  """Of a sum, or an array, and a magnitude: the magnitudes of both factors."""
  one, other = node.params["factors"]
  part = LinearPart(
    lambda x, size: one * x + other * size,
    (lambda: abs(one) * (1 + 1e-6), lambda: abs(other) * (1 + 1e-6)),
    roundings=3,
    magnitude=lambda x, size: abs(one) * x + abs(other) * size,
  )
  return Depends(part, tuple(x.place for x in operands))


def _monotone(function: Callable[..., jax.Array]) -> Callable[..., Range]:
  return lambda *rows: Range(*(function(*ends) for ends in zip(*rows, strict=True)))


def _log_add_exp(a: Range, b: Range) -> Range:
  largest = jnp.maximum(a.lower, b.lower), jnp.maximum(a.upper, b.upper)
  return widened(largest[0], largest[1] + math.log(2))


def _hypotenuse(a: Range, b: Range) -> Range:
  least = [jnp.maximum(jnp.maximum(x.lower, -x.upper), 0) for x in (a, b)]
  return widened(jnp.maximum(*least), jnp.hypot(a.size(), b.size()) * (1 + 1e-6))


_RANGES: dict[str, Callable[..., Range]] = {
  "max": _monotone(jnp.maximum),
  "min": _monotone(jnp.minimum),
  "clamp": _monotone(lambda low, x, high: jnp.minimum(jnp.maximum(x, low), high)),
  "log_add_exp": _log_add_exp,
  "hypotenuse": _hypotenuse,
}
