"""The matrix of a composition, a row for each entry of its result, and what rounding did to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.facts import LinearPart
from lipjax.certify.fast import fast_jit
from lipjax.certify.graph import Node
from lipjax.measure.gram import gram_upper_bound
from lipjax.rounding.errors import gamma, unit_roundoff, up
from lipjax.rounding.numbers import flushed, max_magnitude, norm_above, times_above, tiny
from lipjax.rounding.products import matrix_norm_above

#: Matrices of more entries are measured one by one, so that few are held at once.
STACKED_UP_TO = 2**14


def identity_rows(node: Node) -> Rows:
  """Of the target itself."""
  eye = jnp.eye(node.size, dtype=node.wide).reshape((node.size, *node.shape))
  return Rows(eye, jnp.zeros((), node.wide), is_selection=True)


class Measured(NamedTuple):
  """What is kept of a large matrix.

  Attributes:
    norm: at least its norm.
    row_norms: at least that of each of its rows.
    moved: how far each row's entry of the target moves at most, if the node's entries do as far as
      was said.
  """

  norm: jax.Array
  row_norms: jax.Array
  moved: jax.Array | None


class Rows:
  """The matrix from a node to the target, a row for each of the target's entries.

  Attributes:
    value: as computed, ``(rows, *shape of the node)``.
    error: at least the norm of what rounding did to it.
    is_selection: whether each row holds one 1, so that a product with it rounds nothing.
  """

  def __init__(
    self,
    value: jax.Array,
    error: jax.Array,
    size: jax.Array | None = None,
    *,
    is_selection: bool = False,
  ):
    self.value, self.error, self._size = value, error, size
    self.is_selection = is_selection

  @property
  def n_rows(self) -> int:
    """How many entries the target has."""
    return self.value.shape[0]

  @property
  def size(self) -> jax.Array:
    """At least the norm of the value; looser than `norm`, and cheap."""
    if self._size is None:
      self._size = _norm_above(self.value)
    return self._size

  @property
  def is_small(self) -> bool:
    """Whether many of its size may be held at once."""
    return self.value.size <= STACKED_UP_TO

  def norm(self) -> jax.Array:
    """At least the norm of the exact matrix."""
    return _norms([self.value], [self.error])[0]

  def measured(self, entries: jax.Array | None = None) -> Measured | Rows:
    """What is kept of it, from how far each entry of the node moves."""
    if self.is_small:
      return self
    moved = None if entries is None else _moved(self.value[None], self.error[None], entries[None])
    return Measured(self.norm(), _row_norms([self.value], [self.error])[0], moved)

  def scaled(self, factor: Any) -> Rows:
    """Times a number, or one for each entry of the node."""
    return Rows(*_scaled(self.value, self.error, factor))

  def plus(self, other: Rows) -> Rows:
    """Of two ways to the target."""
    return Rows(*_sum(self.value, self.error, other.value, other.error))

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
      error = _rounded(self.error, terms, self.value, gain, part.roundings + 2, max(sizes))
    elif isinstance(gain, float) and gain == 1:
      error = self.error
    else:
      error = times_above(self.error, gain)
    if part.lost is not None:
      error = up(error + times_above(part.lost, self.size))
    return Rows(
      value,
      error,
      is_selection=self.is_selection and part.is_selection,
    )


@fast_jit()
def _scaled(value: jax.Array, error: jax.Array, factor: Any) -> tuple[jax.Array, ...]:
  # Slopes are wider where there are 64 bits. That the product is rounded once more is in `lost`.
  scaled = (value * factor).astype(value.dtype)
  size, largest = _norm_above(scaled), max_magnitude(factor)
  low = _too_small(value.size, 3, value.dtype)
  moves = (jnp.any(value != 0) | (error > 0)) & (largest > 0)
  lost = 2 * unit_roundoff(value.dtype) * size + jnp.where(moves, low, 0)
  return scaled, up(largest * error + lost).astype(value.dtype), size


@fast_jit()
def _sum(one: jax.Array, of_one: jax.Array, other: jax.Array, of_other: jax.Array):
  total = one + other
  size = _norm_above(total)
  lost = 2 * unit_roundoff(total.dtype) * size + flushed(one) + flushed(other)
  return total, up(of_one + of_other + lost), size


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


def spectral_norms_of(matrices: Sequence[Rows | Measured]) -> list[jax.Array]:
  """At least the norm of each exact matrix."""
  return _in_stacks(matrices, _norms, lambda x: x.norm)


def movements_of(
  matrices: Sequence[Rows | Measured],
  moved: Sequence[jax.Array],
  entries: Sequence[jax.Array | None],
  radius: Any,
) -> list[jax.Array]:
  """How far each row's entry of the target moves at most.

  Args:
    matrices: from several nodes.
    moved: how far each node moves in l2, in units of the radius.
    entries: how far each of its entries does; None if that is not known.
    radius: the unit.
  """

  def of_rows(values, errors, moved, entries):
    return _movements(values, errors, moved, entries, radius)

  def of_measured(x: Measured, moved: jax.Array, entries: Any) -> jax.Array:
    del entries
    far = times_above(x.row_norms, times_above(moved, radius))
    return far if x.moved is None else jnp.fmin(far, x.moved[0])

  known = [
    jnp.full(1, jnp.inf, x.dtype) if y is None else y for x, y in zip(moved, entries, strict=True)
  ]
  return _in_stacks(matrices, of_rows, of_measured, moved, known)


def _in_stacks(
  matrices: Sequence[Rows | Measured], fn: Any, known: Any, *others: Sequence[Any]
) -> list[jax.Array]:
  """Of matrices of one shape together: one program for them, which compiles sooner than many."""
  stacks: dict[Any, list[int]] = {}
  found: dict[int, jax.Array] = {}
  for i, x in enumerate(matrices):
    if isinstance(x, Measured):
      found[i] = known(x, *(other[i] for other in others))
    else:
      stacks.setdefault((x.n_rows, x.value.size), []).append(i)
  for indices in stacks.values():
    rows = [x for x in (matrices[i] for i in indices) if isinstance(x, Rows)]
    rest = ([other[i] for i in indices] for other in others)
    results = fn([x.value for x in rows], [x.error for x in rows], *rest)
    found |= dict(zip(indices, results, strict=True))
  return [found[i] for i in range(len(matrices))]


@fast_jit()
def _norms(values: list[jax.Array], errors: list[jax.Array]) -> list[jax.Array]:
  return list(up(jax.vmap(gram_upper_bound)(_stacked(values)) + jnp.stack(errors), 2))


@fast_jit()
def _row_norms(values: list[jax.Array], errors: list[jax.Array]) -> list[jax.Array]:
  return list(up(norm_above(_stacked(values), 2) + jnp.stack(errors)[:, None], 2))


@fast_jit()
def _movements(
  values: list[jax.Array],
  errors: list[jax.Array],
  moved: list[jax.Array],
  entries: list[jax.Array],
  radius: Any,
) -> list[jax.Array]:
  stack, error = _stacked(values), jnp.stack(errors)
  row_norms = up(norm_above(stack, 2) + error[:, None], 2)
  far = times_above(row_norms, times_above(jnp.stack(moved), radius)[:, None])
  full = (jnp.broadcast_to(x.ravel(), stack.shape[-1:]) for x in entries)
  return list(jnp.fmin(far, _moved(stack, error, jnp.stack(list(full)))))


@fast_jit()
def _moved(stack: jax.Array, error: jax.Array, entries: jax.Array) -> jax.Array:
  """Of each matrix, how far rows move when entries of the node move so far."""
  stack, n = stack.reshape((*stack.shape[:2], -1)), entries[0].size
  entries = entries.reshape((len(stack), n)).astype(stack.dtype)
  total = jnp.einsum("krn,kn->kr", jnp.abs(stack), entries, precision=lax.Precision.HIGHEST)
  # An error of norm e moves no entry further than e times the l2 norm, which is at most the sum.
  lost = up(jnp.sum(entries, axis=1) * error, n) + 4 * n * tiny(stack.dtype)
  return up(total * (1 + gamma(n + 2, stack.dtype)) + lost[:, None], 4)


def _stacked(values: list[jax.Array]) -> jax.Array:
  return jnp.stack([x.reshape((x.shape[0], -1)) for x in values])


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
