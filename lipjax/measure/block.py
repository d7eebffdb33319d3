"""Several singular vectors at once: what is followed from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lipjax.measure.starts import noise, random_unit
from lipjax.operators.base import LinearOperator
from lipjax.operators.products import compute_dtype

#: Singular values that are followed unless told otherwise: one for so many rows or columns
#: of the largest matrix (whichever it has fewer of), within these limits. With 4 of a large
#: matrix a step takes half to three quarters of the time on a CPU, and two to three times as
#: many are needed where values crowd at the top. Convolutions have whole clusters of them.
SIZE_OF_ONE, FEWEST, MOST, CONVOLUTIONS = 4, 4, 8, 12


class SingularBlock(NamedTuple):
  """The top singular values of an operator, and the subspace that they were found in.

  Guarantee: estimates from below.

  Attributes:
    sigma: the top `k` values, ``batch_shape + (k,)``, float32 or wider; 0 where there are
      fewer, and before anything was measured.
    u: the top left vector, ``batch_shape + output dimensions``.
    v: ``batch_shape + (rows,) + input dimensions``: the top `k` right vectors, then the
      `k` of the step before. One row for an operator with a closed form.
  """

  sigma: Any
  u: Any
  v: Any


def default_k(operators: Mapping[str, LinearOperator], leaves: Mapping[str, Any]) -> int:
  """How many singular values of every operator of a tree are followed."""

  def size(operator, shape):
    n = len(operator.batch_shape(shape))
    return min(
      math.prod(operator.input_shape(shape)[n:]), math.prod(operator.output_shape(shape)[n:])
    )

  moving = {path: op for path, op in operators.items() if not op.has_closed_form}
  if any(op.has_probes for op in moving.values()):
    return CONVOLUTIONS
  largest = max((size(op, leaves[path].shape) for path, op in moving.items()), default=0)
  return min(max(largest // SIZE_OF_ONE, FEWEST), MOST)


def n_rows(operator: LinearOperator, k: int) -> int:
  """Right vectors that a block holds."""
  return 1 if operator.has_closed_form else 2 * k


def block_shapes(operator: LinearOperator, shape: tuple[int, ...], k: int) -> SingularBlock:
  """Shapes of the block of a leaf of this shape."""
  batch = operator.batch_shape(shape)
  inputs = operator.input_shape(shape)[len(batch) :]
  rows = n_rows(operator, k)
  return SingularBlock((*batch, k), operator.output_shape(shape), (*batch, rows, *inputs))


def random_block(
  operator: LinearOperator, w: jax.Array | jax.ShapeDtypeStruct, k: int, key: jax.Array, path: str
) -> SingularBlock:
  """Random right vectors, nothing measured."""
  shapes, dtype = block_shapes(operator, w.shape, k), compute_dtype(w.dtype)
  n_batch = len(operator.batch_shape(w.shape))
  v = random_unit(key, path, shapes.v, n_batch + 1, dtype)
  return SingularBlock(jnp.zeros(shapes.sigma, dtype), jnp.zeros(shapes.u, dtype), v)


def fixed_rows(n: int, size: int, dtype: Any) -> jax.Array:
  """`n` fixed vectors of length about 1 and without structure, where directions were lost.

  A zero, short-rank or non-finite weight leaves fewer directions than there are rows, and no
  key is at hand in an update.
  """
  return noise((n, size), dtype) * math.sqrt(3 / max(size, 1))
