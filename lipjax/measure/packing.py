"""Blocks of a whole tree in three flat arrays.

An optimizer state with three arrays a leaf doubles the number of buffers that every
training step passes in and out, which on a tree of 64 small leaves costs more than the
iteration itself. Flat arrays also give the state one structure for every params tree,
which `optax.tree.map_params` needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.measure.block import SingularBlock
from lipjax.measure.groups import Group


def pack(groups: Sequence[Group], stacked: list[SingularBlock]) -> SingularBlock:
  """Flat sigma (in path order), u and v (in group order)."""
  dtype = jnp.result_type(*[group.compute_dtype for group in groups])
  k = stacked[0].sigma.shape[-1]
  sigma = jnp.concatenate([x.sigma.reshape((-1, k)).astype(dtype) for x in stacked])
  u, v = (
    jnp.concatenate([jnp.ravel(x).astype(dtype) for x in arrays])
    for arrays in list(zip(*stacked, strict=True))[1:]
  )
  sigma = _taken(sigma, np.argsort(_sigma_slots(groups)))
  return SingularBlock(jnp.ravel(sigma), _padded(u), _padded(v))


def unpack(groups: Sequence[Group], packed: SingularBlock, k: int) -> list[SingularBlock]:
  """The reverse of `pack`."""
  shapes = [group.block_shapes(k) for group in groups]
  sigma = _taken(packed.sigma.reshape((-1, k)), _sigma_slots(groups))
  columns = zip(
    _split(jnp.ravel(sigma), [shape.sigma for shape in shapes]),
    _split(packed.u, [shape.u for shape in shapes]),
    _split(packed.v, [shape.v for shape in shapes]),
    strict=True,
  )
  return [
    SingularBlock(*(x.astype(group.compute_dtype) for x in arrays))
    for group, arrays in zip(groups, columns, strict=True)
  ]


def packed_sizes(groups: Sequence[Group], k: int) -> tuple[int, int, int]:
  """Lengths of the three flat arrays."""
  shapes = [group.block_shapes(k) for group in groups]
  sigma, u, v = (sum(map(math.prod, column)) for column in zip(*shapes, strict=True))
  return sigma, _indivisible(u), _indivisible(v)


def path_index(groups: Sequence[Group]) -> dict[str, Any]:
  """``{path: {"64x32": None}}``, with nested lists of None for stacked leaves.

  One None for every operator: a pytree without arrays, that says whose values are where,
  for which shape of leaf, and survives every serializer.
  """
  index = {}
  for group in groups:
    shape = "x".join(map(str, group.shape))
    for path in group.paths:
      index[path] = {shape: _nones(group.operator.batch_shape(group.shape))}
  return dict(sorted(index.items()))


def sigma_by_path(sigma: jax.Array, index: dict[str, Any]) -> dict[str, jax.Array]:
  """Splits the flat sigma by `path_index`: ``{path: batch_shape + (k,)}``.

  Axes before the last are those of a vmapped state.
  """
  batches = {path: _nones_shape(*index[path].values()) for path in sorted(index)}
  k = sigma.shape[-1] // max(sum(map(math.prod, batches.values())), 1)
  parts = _split(sigma, [(*batch, k) for batch in batches.values()])
  return dict(zip(batches, parts, strict=True))


def _indivisible(n: int) -> int:
  """The first length from `n` on that shares no factor with 2·3·5·7.

  On automatic meshes the compiler would shard a vector like the weights where the
  mesh divides its length, and a state that comes out sharded otherwise than it went in
  recompiles the training step. The length must not depend on the devices at hand, so
  that a checkpoint does not either.
  """
  return next(m for m in range(n, n + 10) if math.gcd(m, 210) == 1)


def _padded(x: jax.Array) -> jax.Array:
  """`x` with zeros appended up to an indivisible length."""
  n_zeros = _indivisible(x.size) - x.size
  return jnp.concatenate([x, jnp.zeros((n_zeros,), x.dtype)]) if n_zeros else x


def _sigma_slots(groups: Sequence[Group]) -> np.ndarray:
  """For every operator in group order, its place in path order."""
  entries = [
    (path, i)
    for group in groups
    for path in group.paths
    for i in range(math.prod(group.operator.batch_shape(group.shape)))
  ]
  place = {entry: slot for slot, entry in enumerate(sorted(entries))}
  return np.array([place[entry] for entry in entries], np.int32)


def _taken(x: jax.Array, order: np.ndarray) -> jax.Array:
  return x if np.array_equal(order, np.arange(len(order))) else x[order]


def _split(flat, shapes):
  """Cuts the last axis into pieces of these shapes."""
  ends = np.cumsum([math.prod(shape) for shape in shapes])
  parts, begin = [], 0
  for end, shape in zip(ends.tolist(), shapes, strict=True):
    parts.append(flat[..., begin:end].reshape((*flat.shape[:-1], *shape)))
    begin = end
  return parts


def _nones(shape):
  return None if not shape else [_nones(shape[1:]) for _ in range(shape[0])]


def _nones_shape(nones) -> tuple[int, ...]:
  if nones is None:
    return ()
  return (len(nones), *(_nones_shape(nones[0]) if len(nones) else ()))
