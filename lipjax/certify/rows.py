"""The matrix of a composition, a row for each entry of its result, and what rounding did to it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.graph import LinearPart, Node
from lipjax.measure.gram import gram_upper_bound
from lipjax.measure.rounding import gamma, pairwise_sum, pairwise_terms, unit_roundoff, up
from lipjax.operators.products import compute_dtype


def identity_rows(node: Node, dtype: Any):
  """Of the target itself."""
  n = math.prod(node.shape)
  eye = jnp.eye(n, dtype=dtype).reshape((n, *node.shape))
  return Rows(eye, jnp.zeros((), dtype), is_selection=True, is_exact=True)


class Rows:
  """The matrix from a node to the target, a row for each of the target's entries.

  Attributes:
    value: as computed, ``(rows, *shape of the node)``.
    error: at least the norm of what rounding did to it.
    is_selection: whether each row holds one 1, so that a product with it rounds nothing.
    is_exact: whether the value is the exact matrix.
  """

  def __init__(self, value, error, *, is_selection: bool = False, is_exact: bool = False):
    self.value, self.error = value, error
    self.is_selection, self.is_exact = is_selection, is_exact

  @property
  def n_rows(self) -> int:
    """How many entries the target has."""
    return self.value.shape[0]

  def norm(self):
    """At least the norm of the exact matrix."""
    return _with_error(self.value, self.error)

  def row_norms(self):
    """At least the norm of each row of the exact matrix."""
    rows = self.value.reshape((self.n_rows, -1))
    scale = jnp.max(jnp.abs(rows), axis=1, initial=0)
    scale = jnp.where(scale > 0, scale, 1)
    square = jnp.sum(jnp.square(rows / scale[:, None]), axis=1)
    return up(scale * jnp.sqrt(square), rows.shape[1] + 8) + self.error

  def scaled(self, factor: Any):
    """Times a number, or one for each entry of the node."""
    lost = unit_roundoff(self.value.dtype) * _norm_above(self.value * factor)
    return Rows(self.value * factor, up(jnp.max(jnp.abs(factor)) * self.error + 2 * lost))

  def plus(self, other: Any):
    """Of two ways to the target."""
    total = self.value + other.value
    lost = 2 * unit_roundoff(total.dtype) * _norm_above(total)
    return Rows(total, up(self.error + other.error + lost))

  def through(self, node: Node, part: LinearPart, i: int, gain: Any):
    """To the i-th parent of a node with a linear part."""
    value = _transposed(part.apply, node, i)(self.value)
    error = self.error * gain
    rounds = bool(part.roundings) and not self.is_selection
    if rounds and part.magnitude is not None:
      magnitude = _transposed(part.magnitude, node, i)(jnp.abs(self.value))
      error = error + gamma(part.roundings + 2, value.dtype) * _norm_above(magnitude)
    elif rounds:
      # ‖|A|‖ ≤ ‖A‖_F ≤ √rank ‖A‖.
      rank = min(math.prod(node.shape), math.prod(node.parents[i].shape))
      relative = gamma(part.roundings + 2, value.dtype) * math.sqrt(rank)
      error = error + relative * gain * _norm_above(self.value)
    return Rows(
      value,
      up(error),
      is_selection=self.is_selection and part.is_selection,
      is_exact=self.is_exact and not rounds and part.is_exact,
    )


@jax.jit
def _with_error(rows: Any, error: Any):
  return up(gram_upper_bound(rows.reshape((rows.shape[0], -1))) + error, 2)


def _transposed(apply: Any, node: Node, i: int):
  avals = [jax.ShapeDtypeStruct(p.shape, compute_dtype(p.aval.dtype)) for p in node.parents]

  def one(x: Any):
    zeros = [jnp.zeros(a.shape, a.dtype) for a in avals]
    return apply(*zeros[:i], x, *zeros[i + 1 :])

  transpose = jax.linear_transpose(one, avals[i])
  return jax.vmap(lambda row: transpose(row)[0])


@jax.jit
def _norm_above(x: Any):
  """At least the spectral norm of rows: their Frobenius norm, or by largest sums."""
  x = jnp.abs(x.reshape((x.shape[0], -1)))
  largest = jnp.max(x, initial=0)
  scale = jnp.where(largest > 0, largest, 1)
  x = x / scale
  square = pairwise_sum(jnp.square(x).ravel(), 0)
  sums = jnp.max(jnp.sum(x, axis=0), initial=0) * jnp.max(jnp.sum(x, axis=1), initial=0)
  terms = 4 + max(pairwise_terms(x.size), sum(x.shape))
  return up(scale * jnp.sqrt(jnp.minimum(square, sums)), terms)
