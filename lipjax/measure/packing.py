"""Singular triplets of a whole tree in three flat arrays.

An optimizer state with three arrays a leaf doubles the number of buffers that
every training step passes in and out, which on a tree of 64 small leaves costs
more than the power iteration itself. Flat arrays also give the state one
structure for every params tree, which `optax.tree.map_params` needs.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.measure.groups import Group
from lipjax.measure.triplet import SingularTriplet


def pack(groups: list[Group], stacked: list[SingularTriplet]) -> SingularTriplet:
  """Flat sigma (in path order), u and v (in group order)."""
  dtype = jnp.result_type(*[group.compute_dtype for group in groups])
  sigma, u, v = (
    jnp.concatenate([jnp.ravel(x).astype(dtype) for x in arrays])
    for arrays in zip(*stacked, strict=True)
  )
  return SingularTriplet(sigma[np.argsort(_sigma_slots(groups))], _padded(u), _padded(v))


def unpack(groups: list[Group], packed: SingularTriplet) -> list[SingularTriplet]:
  """The reverse of `pack`."""
  columns = zip(
    _split(packed.sigma[_sigma_slots(groups)], [g.triplet_shapes().sigma for g in groups]),
    _split(packed.u, [g.triplet_shapes().u for g in groups]),
    _split(packed.v, [g.triplet_shapes().v for g in groups]),
    strict=True,
  )
  return [
    SingularTriplet(*(x.astype(group.compute_dtype) for x in arrays))
    for group, arrays in zip(groups, columns, strict=True)
  ]


def path_index(groups: list[Group]) -> dict[str, Any]:
  """``{path: {"64x32": None}}``, with nested lists of None for stacked leaves.

  One None for every sigma: a pytree without arrays, that says whose norm is where,
  for which shape of leaf, and survives every serializer.
  """
  index = {}
  for group in groups:
    shape = "x".join(map(str, group.shape))
    for path in group.paths:
      index[path] = {shape: _nones(group.operator.batch_shape(group.shape))}
  return dict(sorted(index.items()))


def sigma_by_path(sigma: jax.Array, index: dict[str, Any]) -> dict[str, jax.Array]:
  """Splits the flat sigma by `path_index`; axes before the last are those of a vmapped state."""
  shapes = {path: _nones_shape(*index[path].values()) for path in sorted(index)}
  parts = _split(sigma, list(shapes.values()))
  return dict(zip(shapes, parts, strict=True))


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


def _sigma_slots(groups: list[Group]) -> np.ndarray:
  """For every sigma in group order, its place in path order."""
  entries = [
    (path, i)
    for group in groups
    for path in group.paths
    for i in range(math.prod(group.operator.batch_shape(group.shape)))
  ]
  place = {entry: slot for slot, entry in enumerate(sorted(entries))}
  return np.array([place[entry] for entry in entries], np.int32)


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
