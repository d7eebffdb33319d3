"""Norms of maps between nodes, and how far they move entries: of matrices of one shape together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.fast import fast_jit
from lipjax.certify.matrix import Rows
from lipjax.measure.gram import gram_upper_bound
from lipjax.rounding.errors import gamma, up
from lipjax.rounding.numbers import norm_above, times_above, tiny

#: Matrices of more entries are measured one by one, so that few are held at once.
STACKED_UP_TO = 2**18


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


def is_small(x: Rows) -> bool:
  """Whether many of its size may be held at once."""
  return x.value.size <= STACKED_UP_TO


def norm_of(x: Rows) -> jax.Array:
  """At least the norm of the exact matrix."""
  return _norms([x.value], [x.absolute], x.relative)[0]


def measured(x: Rows, entries: jax.Array | None = None) -> Measured | Rows:
  """What is kept of a matrix, from how far each entry of the node moves."""
  if is_small(x):
    return x
  of = x.value[None], x.absolute[None]
  moved = None if entries is None else _moved(*of, entries[None], x.relative)
  return Measured(norm_of(x), _row_norms(*of, x.relative)[0], moved)


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
  if is_small(way):
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
