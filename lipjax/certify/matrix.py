"""The matrix of a composition, a row for each entry of its result, and what rounding did to it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.facts import LinearPart
from lipjax.certify.fast import fast_jit
from lipjax.certify.graph import Node
from lipjax.rounding.errors import gamma, unit_roundoff, up
from lipjax.rounding.numbers import flushed, max_magnitude, times_above, tiny
from lipjax.rounding.products import matrix_norm_above


def identity_rows(node: Node) -> Rows:
  """Of the target itself."""
  eye = jnp.eye(node.size, dtype=node.wide).reshape((node.size, *node.shape))
  return Rows(eye, jnp.zeros((), node.wide), is_selection=True)


class Rows:
  """The matrix from a node to the target, a row for each of the target's entries.

  Attributes:
    value: as computed, ``(rows, *shape of the node)``.
    absolute: at least the norm of what rounding did to it, but for the relative roundings.
    n_relative: how many roundings of its entries by themselves are not a part of `absolute` yet:
      the next product bounds what they do with its own.
    is_selection: whether each row holds one 1, so that a product with it rounds nothing.
  """

  def __init__(
    self,
    value: jax.Array,
    absolute: jax.Array,
    n_relative: int = 0,
    *,
    is_selection: bool = False,
  ):
    self.value, self.absolute, self.n_relative = value, absolute, n_relative
    self.is_selection = is_selection

  @property
  def n_rows(self) -> int:
    """How many entries the target has."""
    return self.value.shape[0]

  @functools.cached_property
  def size(self) -> jax.Array:
    """At least the norm of the value; looser than `norm_of`, and cheap."""
    return _norm_above(self.value)

  @property
  def relative(self) -> float:
    """At least what an entry is off, as a share of it, beyond `absolute`."""
    return 2 * self.n_relative * unit_roundoff(self.value.dtype)

  @property
  def error(self) -> jax.Array:
    """At least the norm of all that rounding did to it."""
    if not self.n_relative:
      return self.absolute
    return up(self.absolute + self.relative * self.size, 2)

  def scaled(self, factor: Any) -> Rows:
    """Times a number, or one for each entry of the node."""
    value, absolute = _scaled(self.value, self.absolute, factor)
    # Slopes are wider where there are 64 bits: a product that is rounded once more.
    return Rows(value, absolute, self.n_relative + 2)

  def plus(self, other: Rows) -> Rows:
    """Of two ways to the target."""
    total, absolute = _sum(self.value, self.error, other.value, other.error)
    return Rows(total, absolute, 1)

  def through(
    self, node: Node, part: LinearPart, parents: Sequence[Node], i: int, gain: Any
  ) -> Rows:
    """To the i-th parent of a node with a linear part."""
    value = _transposed(part.apply, parents, i)(self.value)
    rounds = bool(part.roundings) and not self.is_selection
    if rounds:
      sizes = node.size, parents[i].size
      if part.magnitude is not None:
        terms = _norm_above(_transposed(part.magnitude, parents, i)(jnp.abs(self.value)))
      else:
        # ‖|A|‖ ≤ ‖A‖_F ≤ √rank ‖A‖.
        terms = math.sqrt(min(sizes)) * gain * self.size
      roundings = part.roundings + self.n_relative + 2
      absolute = _rounded(self.absolute, terms, self.value, gain, roundings, max(sizes))
    elif isinstance(gain, float) and gain == 1:
      absolute = self.absolute
    else:
      absolute = times_above(self.absolute, gain)
    if part.lost is not None:
      absolute = up(absolute + times_above(part.lost, self.size))
    return Rows(
      value,
      absolute,
      0 if rounds else self.n_relative,
      is_selection=self.is_selection and part.is_selection,
    )


@fast_jit()
def _scaled(value: jax.Array, absolute: jax.Array, factor: Any) -> tuple[jax.Array, jax.Array]:
  scaled = (value * factor).astype(value.dtype)
  largest, low = max_magnitude(factor), _too_small(value.size, 3, value.dtype)
  moves = (jnp.any(value != 0) | (absolute > 0)) & (largest > 0)
  return scaled, up(largest * absolute + jnp.where(moves, low, 0)).astype(value.dtype)


@fast_jit()
def _sum(one: jax.Array, of_one: jax.Array, other: jax.Array, of_other: jax.Array):
  return one + other, up(of_one + of_other + flushed(one) + flushed(other))


@fast_jit(static_argnums=(4, 5))
def _rounded(error, terms, value, gain, roundings, n_columns) -> jax.Array:
  """The error of a product with a matrix of norm `gain`, of an inexact `value`."""
  lost = gamma(roundings, value.dtype) * terms
  low = _too_small(value.shape[0] * n_columns, 2 * roundings + 1, value.dtype)
  moves = (jnp.any(value != 0) | (error > 0)) & (gain > 0)
  return up(error * gain + lost + jnp.where(moves, low, 0))


def _too_small(n_entries: int, terms: int, dtype: Any) -> float:
  """What products of so many terms lose by being too small."""
  return terms * math.sqrt(n_entries) * tiny(dtype)


def _transposed(apply: Any, parents: Sequence[Node], i: int):
  avals = [jax.ShapeDtypeStruct(parent.shape, parent.wide) for parent in parents]

  def one(x: Any):
    zeros = [jnp.zeros(a.shape, a.dtype) for a in avals]
    return apply(*zeros[:i], x, *zeros[i + 1 :])

  transpose = jax.linear_transpose(one, avals[i])
  return jax.vmap(lambda row: transpose(row)[0])


@fast_jit()
def _norm_above(x: Any):
  """At least the spectral norm of rows."""
  return matrix_norm_above(x.reshape((x.shape[0], math.prod(x.shape[1:]))))
