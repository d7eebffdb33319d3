"""Products of two arrays that depend on the input, where both are bounded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.facts import LinearPart, LipschitzPart, Operand
from lipjax.rounding.errors import up
from lipjax.rounding.numbers import norm_above, times_above


def movement(x: Operand) -> jax.Array:
  """How far a node can be, in l2, from its value at the domain's point; else infinite."""
  bound = x.sharp().bound
  if x.radius is None or bound is None:
    return jnp.asarray(jnp.inf)
  return times_above(bound, x.radius)


def of_two(
  nodes: Sequence[Operand], constants: Any, bind: Callable[..., jax.Array], terms: int
) -> LipschitzPart:
  """A product of two nodes; on a domain it is linear but for the product of what they move."""
  points = [x.point for x in nodes]
  if None in points:
    return LipschitzPart(tuple(constants), adds=True)
  # In the dtype of bounds: of half precision the middles would be rounded again.
  middles = [
    (point.lower / 2 + point.upper / 2).astype(x.node.wide)
    for x, point in zip(nodes, points, strict=True)
    if point is not None
  ]

  def around(a: jax.Array, b: jax.Array) -> Callable[..., jax.Array]:
    return lambda x, y: bind(a, y.astype(a.dtype)) + bind(x.astype(b.dtype), b)

  linear = LinearPart(
    around(*middles),
    # The middle is within rounding of the values that the constants are of.
    tuple(functools.partial(up, jnp.asarray(c), 64) for c in constants),
    roundings=2 * terms + 2,
    magnitude=around(*map(jnp.abs, middles)),
  )
  away = lambda: [_distance(x, middle) for x, middle in zip(nodes, middles, strict=True)]
  rest = functools.cache(lambda: tuple(away()[::-1]))
  return LipschitzPart(tuple(constants), adds=True, linear=linear, rest=rest)


def _distance(x: Operand, middle: jax.Array) -> jax.Array:
  """At least how far a node can be, in l2, from a value."""
  within, point = x.range, x.point
  if within is None or point is None:
    return jnp.asarray(jnp.inf)
  far = norm_above(jnp.maximum(within.upper - middle, middle - within.lower))
  off = jnp.maximum(point.upper - middle, middle - point.lower)
  return jnp.fmin(far, up(movement(x) + norm_above(off), 2))
