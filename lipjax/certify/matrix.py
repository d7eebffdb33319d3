"""The matrix of a composition, a row for each entry of its result, and what rounding did to it."""

from __future__ import annotations

import functools
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
STACKED_UP_TO = 2**18


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
    """At least the norm of the value; looser than `norm`, and cheap."""
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

  @property
  def is_small(self) -> bool:
    """Whether many of its size may be held at once."""
    return self.value.size <= STACKED_UP_TO

  def norm(self) -> jax.Array:
    """At least the norm of the exact matrix."""
    return _norms([self.value], [self.absolute], self.relative)[0]

  def measured(self, entries: jax.Array | None = None) -> Measured | Rows:
    """What is kept of it, from how far each entry of the node moves."""
    if self.is_small:
      return self
    of = self.value[None], self.absolute[None]
    moved = None if entries is None else _moved(*of, entries[None], self.relative)
    return Measured(self.norm(), _row_norms(*of, self.relative)[0], moved)

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

  def of_rows(values, errors, relative, moved, entries):
    return _movements(values, errors, relative, moved, entries, radius)

  def of_measured(x: Measured, moved: jax.Array, entries: Any) -> jax.Array:
    del entries
    far = times_above(x.row_norms, times_above(moved, radius))
    return far if x.moved is None else jnp.fmin(far, x.moved[0])

  known = [
    jnp.full(1, jnp.inf, x.dtype) if y is None else y for x, y in zip(moved, entries, strict=True)
  ]
  return _in_stacks(matrices, of_rows, of_measured, moved, known)


def lost_on(way: Rows | jax.Array, entries: jax.Array) -> Any:
  """How far entries of the target are off at most, if those of a node are so far; or what says it.

  Of a matrix that is not small at once, so that it need not be kept; of a norm in l2.
  """
  if not isinstance(way, Rows):
    return times_above(way, norm_above(entries))
  if way.is_small:
    return way, entries
  return _moved(way.value[None], way.absolute[None], entries[None], way.relative)[0]


def moved_by(lost: Sequence[Any]) -> list[jax.Array]:
  """How far entries of the target are off at most, for each of what `lost_on` gives."""
  pairs = [x for x in lost if isinstance(x, tuple)]
  of_rows = lambda values, errors, relative, entries: list(
    _moved(_stacked(values), jnp.stack(errors), jnp.stack([x.ravel() for x in entries]), relative)
  )
  known = _in_stacks([way for way, _ in pairs], of_rows, None, [entries for _, entries in pairs])
  return [*known, *(x for x in lost if not isinstance(x, tuple))]


def _in_stacks(
  matrices: Sequence[Rows | Measured], fn: Any, of_measured: Any, *others: Sequence[Any]
) -> list[jax.Array]:
  """Of matrices of one shape together: one program for them, which compiles sooner than many."""
  stacks: dict[Any, list[int]] = {}
  found: dict[int, jax.Array] = {}
  for i, x in enumerate(matrices):
    if isinstance(x, Measured):
      found[i] = of_measured(x, *(other[i] for other in others))
    else:
      stacks.setdefault((x.n_rows, x.value.size), []).append(i)
  for indices in stacks.values():
    rows = [x for x in (matrices[i] for i in indices) if isinstance(x, Rows)]
    rest = ([other[i] for i in indices] for other in others)
    known = [x.value for x in rows], [x.absolute for x in rows], max(x.relative for x in rows)
    results = fn(*known, *rest)
    found |= dict(zip(indices, results, strict=True))
  return [found[i] for i in range(len(matrices))]


@fast_jit(static_argnums=(2,))
def _norms(values: list[jax.Array], errors: list[jax.Array], relative: float) -> list[jax.Array]:
  stack = _stacked(values)
  # As in `through`, ‖|A|‖ ≤ √rank ‖A‖.
  norms = jax.vmap(gram_upper_bound)(stack) * (1 + math.sqrt(min(stack.shape[1:])) * relative)
  return list(up(norms + jnp.stack(errors), 4))


@fast_jit(static_argnums=(2,))
def _row_norms(stack: jax.Array, error: jax.Array, relative: float) -> jax.Array:
  norms = norm_above(stack.reshape((*stack.shape[:2], -1)), 2)
  return up(norms * (1 + relative) + error[:, None], 4)


@fast_jit(static_argnums=(2,))
def _movements(
  values: list[jax.Array],
  errors: list[jax.Array],
  relative: float,
  moved: list[jax.Array],
  entries: list[jax.Array],
  radius: Any,
) -> list[jax.Array]:
  stack, error = _stacked(values), jnp.stack(errors)
  far = times_above(
    _row_norms(stack, error, relative), times_above(jnp.stack(moved), radius)[:, None]
  )
  full = (jnp.broadcast_to(x.ravel(), stack.shape[-1:]) for x in entries)
  return list(jnp.fmin(far, _moved(stack, error, jnp.stack(list(full)), relative)))


@fast_jit(static_argnums=(3,))
def _moved(stack: jax.Array, error: jax.Array, entries: jax.Array, relative: float) -> jax.Array:
  """Of each matrix, how far rows move when entries of the node move so far."""
  stack, n = stack.reshape((*stack.shape[:2], -1)), entries[0].size
  entries = entries.reshape((len(stack), n)).astype(stack.dtype)
  total = jnp.einsum("krn,kn->kr", jnp.abs(stack), entries, precision=lax.Precision.HIGHEST)
  # An error of norm e moves no entry further than e times the l2 norm, which is at most the sum.
  lost = up(jnp.sum(entries, axis=1) * error, n) + 4 * n * tiny(stack.dtype)
  return up(total * (1 + gamma(n + 2, stack.dtype) + 2 * relative) + lost[:, None], 4)


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
