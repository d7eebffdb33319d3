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
  middles = [x.middle.value for x in nodes if x.middle is not None]
  if len(middles) < len(nodes):
    return LipschitzPart(tuple(constants), adds=True)

  def around(a: jax.Array, b: jax.Array) -> Callable[..., jax.Array]:
    return lambda x, y: bind(a, y.astype(a.dtype)) + bind(x.astype(b.dtype), b)

  linear = LinearPart(
    around(*middles),
    # The middle is within rounding of the values that the constants are of.
    tuple(functools.partial(up, jnp.asarray(c), 64) for c in constants),
    roundings=2 * terms + 2,
    magnitude=around(*map(jnp.abs, middles)),
  )
  rest = functools.cache(lambda: tuple(_from_middle(x) for x in nodes[::-1]))
  return LipschitzPart(tuple(constants), adds=True, linear=linear, rest=rest)


def _from_middle(x: Operand) -> jax.Array:
  """At least how far a node can be, in l2, from what is computed in the domain's middle."""
  within, middle = x.range, x.middle
  if within is None or middle is None:
    return jnp.asarray(jnp.inf)
  far = norm_above(jnp.maximum(within.upper - middle.value, middle.value - within.lower))
  return jnp.fmin(far, up(movement(x) + middle.error, 2))
