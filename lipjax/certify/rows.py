"""The matrix of a composition, a row for each entry of its result, and what rounding did to it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.graph import LinearPart, Node
from lipjax.certify.magnitudes import flushed, norm_above, times_above, tiny
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
    return up(norm_above(rows, 1) + self.error, 2)

  def scaled(self, factor: Any):
    """Times a number, or one for each entry of the node."""
    value = self.value * factor
    largest = jnp.max(jnp.abs(factor), initial=0)
    lost = 2 * unit_roundoff(value.dtype) * _norm_above(value)
    lost = lost + self._too_small(largest, 2)
    return Rows(value, up(times_above(largest, self.error) + lost))

  def plus(self, other: Any):
    """Of two ways to the target."""
    total = self.value + other.value
    lost = 2 * unit_roundoff(total.dtype) * _norm_above(total)
    lost = lost + flushed(self.value) + flushed(other.value)
    return Rows(total, up(self.error + other.error + lost))

  def through(self, node: Node, part: LinearPart, i: int, gain: Any):
    """To the i-th parent of a node with a linear part."""
    value = _transposed(part.apply, node, i)(self.value)
    error = times_above(self.error, gain)
    if part.lost is not None:
      error = error + times_above(part.lost, _norm_above(self.value))
    rounds = bool(part.roundings) and not self.is_selection
    if rounds and part.magnitude is not None:
      magnitude = _transposed(part.magnitude, node, i)(jnp.abs(self.value))
      error = error + gamma(part.roundings + 2, value.dtype) * _norm_above(magnitude)
    elif rounds:
      # ‖|A|‖ ≤ ‖A‖_F ≤ √rank ‖A‖.
      rank = min(math.prod(node.shape), math.prod(node.parents[i].shape))
      relative = gamma(part.roundings + 2, value.dtype) * math.sqrt(rank)
      error = error + relative * gain * _norm_above(self.value)
    if rounds:
      size = max(math.prod(node.shape), math.prod(node.parents[i].shape))
      error = error + self._too_small(gain, 2 * (part.roundings + 2), size)
    return Rows(
      value,
      up(error),
      is_selection=self.is_selection and part.is_selection,
      is_exact=self.is_exact and not rounds and part.is_exact,
    )

  def _too_small(self, gain: Any, terms: int, n_columns: int | None = None):
    """What products of so many terms lose by being too small; nothing if all are 0."""
    n_columns = math.prod(self.value.shape[1:]) if n_columns is None else n_columns
    low = terms * math.sqrt(self.n_rows * n_columns) * tiny(self.value.dtype)
    return jnp.where(jnp.any(self.value != 0) & (gain > 0), low, 0)


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
  scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
  x = x / scale
  square = pairwise_sum(jnp.square(x).ravel(), 0)
  sums = jnp.max(jnp.sum(x, axis=0), initial=0) * jnp.max(jnp.sum(x, axis=1), initial=0)
  terms = 4 + max(pairwise_terms(x.size), sum(x.shape))
  return up(scale * jnp.sqrt(jnp.minimum(square, sums)), terms)
