"""Writing into places that are constants."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, LinearPart, LipschitzPart, Operand
from lipjax.certify.graph import Node
from lipjax.certify.linear import merged, moved, of_moving, parents, times
from lipjax.certify.primitives import ranges
from lipjax.certify.primitives.record import record
from lipjax.certify.primitives.shapes import constants_of, copied
from lipjax.rounding.errors import up

_AT = np.array([1, 0, 1])


@record(
  "scatter", range=ranges.monotone,
  examples=[
    lambda x: x.at[_AT].set(3 * x[_AT]), lambda x: x.at[np.array([1, 7])].set(x, mode="drop"),
    lambda x: jnp.ones((2, 3)).at[:, 1].set(x[:, 0]),
  ],
)  # fmt: skip
def scatter(node: Node, x: Operand, indices: Operand, updates: Operand) -> Depends:
  """√(sum of the squares of both arrays), at places that are constants."""
  (at,) = constants_of(node, [indices])
  n, n_updates = math.prod(x.shape), math.prod(updates.shape)
  olds = np.arange(n, dtype=np.int32).reshape(x.shape)
  news = np.arange(n, n + n_updates, dtype=np.int32).reshape(updates.shape)

  # A scatter onto the same place twice has no transpose, its entries' places have.
  def write(x: Any, updates: Any) -> Any:
    places = node.scattered(lax.scatter, olds, at, news)
    return jnp.concatenate([x.ravel(), updates.ravel()])[places]

  return merged(write, (x, updates))


@record(
  "scatter-add", "scatter-sub", range=ranges.scattered_sums,
  examples=[
    lambda x: x.at[_AT].add(3 * x[_AT]), lambda x: jnp.ones((2, 3)).at[_AT].subtract(x[_AT]),
  ],
)  # fmt: skip
def scatter_add(node: Node, x: Operand, indices: Operand, updates: Operand) -> Depends:
  """Slope 1, plus √(most updates of one entry) of these, at places that are constants."""
  (at,) = constants_of(node, [indices])
  if not updates.moves:
    return Depends(moved(lambda value: value), (x.place,))
  add = functools.partial(node.scattered, lax.scatter_add)

  def most_updates() -> Any:
    ones = jnp.ones(updates.shape, jnp.int32)
    return jnp.max(add(jnp.zeros(x.shape, jnp.int32), at, ones), initial=0)

  def linear(sign: int) -> Callable[..., Any]:
    return of_moving(lambda x, update: add(x, at, sign * update), (x, updates))

  moving = parents((x, updates))
  windows = math.prod(indices.shape[:-1])
  apply = linear(-1 if node.name == "scatter-sub" else 1)
  norms = ((lambda: 1.0),) * len(moving)
  part = LinearPart(apply, norms, roundings=windows + 1, magnitude=linear(1))
  return Depends(copied(part, most_updates, indices, len(moving) - 1), moving)


@record(
  "scatter-max", "scatter-min", range=ranges.monotone,
  examples=[lambda x: x.at[_AT].max(3 * x[_AT]), lambda x: x.at[_AT].min(x[_AT][:, ::-1])],
)  # fmt: skip
def scatter_max(node: Node, x: Operand, indices: Operand, updates: Operand) -> Depends:
  """√(sum of the squares of both arrays), at places that are constants."""
  constants_of(node, [indices])
  # A maximum moves at most as far as the one of its terms that moves furthest, and every
  # update is a term of at most one of them.
  moving = parents((x, updates))
  return Depends(LipschitzPart((1.0,) * len(moving)), moving)


@record("scatter-mul", examples=[lambda x: x.at[_AT].multiply(3.0)])
def scatter_mul(node: Node, x: Operand, indices: Operand, updates: Operand) -> Depends:
  """As a product with constants: the largest magnitude, at places that are constants too."""
  (at,) = constants_of(node, [indices])
  if updates.moves:
    msg = f"'scatter-mul' by updates that depend on the input{node.line} has no rule: its slope"
    msg = f"{msg} grows with them. Write x.at[places].set(x[places] * updates), on a domain."
    raise CertifyError(msg)
  factor = node.scattered(lax.scatter_mul, jnp.ones(x.shape, x.node.wide), at, updates.value)
  # Of places that are listed often.
  return times(x, up(factor, math.prod(indices.shape[:-1])), node.shape)
