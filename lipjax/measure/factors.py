"""Cholesky factors and triangular solutions of many matrices, a few at a time on a CPU.

A large batch is split among the threads of XLA's pool by the one that works on it, which then
waits for the others. Two batches of one program that need nothing of each other can so hold all
threads and wait for ever: with jaxlib 0.10 on two cores two batches of four matrices of 128 rows
do. A small batch is done by the thread that has it, and nobody waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from lipjax.measure.turns import in_turns

#: Of matrices at a time, and of cubes of their rows: an eighth of what was seen to be split.
AT_ONCE, OPERATIONS = 256, 2**18


def _few_at_a_time(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """A function of stacks of matrices, of which ``vmap`` makes a loop over small stacks."""
  batched = custom_vmap(fn)

  @batched.def_vmap
  def rule(size: int, is_batched: Any, *args: jax.Array) -> tuple[jax.Array, bool]:
    pairs = zip(args, is_batched, strict=True)
    args = tuple(x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in pairs)
    # Other devices have true kernels for batches.
    if jax.default_backend() != "cpu" or size == 0:
      return batched(*args), True
    count = _at_once([x.shape[1:] for x in args], size)
    if count == size:
      return batched(*args), True
    return in_turns(batched, args, -(-size // count)), True

  return batched


def _at_once(shapes: Sequence[tuple[int, ...]], size: int) -> int:
  """How many more of a stack of so many matrices."""
  stacked, n = math.prod(shapes[0][:-2]), max(shape[-1] for shape in shapes)
  most = min(AT_ONCE, OPERATIONS // max(n, 1) ** 3)
  return min(max(most // max(stacked, 1), 1), size)


@_few_at_a_time
def cholesky(a: jax.Array) -> jax.Array:
  """The lower factors of a stack of matrices, of their lower halves; NaN where there is none."""
  return lax.linalg.cholesky(a, symmetrize_input=False)


@_few_at_a_time
def solve_lower(factor: jax.Array, right: jax.Array) -> jax.Array:
  """The inverses of a stack of lower triangular matrices, times others."""
  return lax.linalg.triangular_solve(factor, right, left_side=True, lower=True)


@_few_at_a_time
def solve_upper(factor: jax.Array, right: jax.Array) -> jax.Array:
  """The inverses of the transposes of lower triangular matrices, times others."""
  return lax.linalg.triangular_solve(factor, right, left_side=True, lower=True, transpose_a=True)
