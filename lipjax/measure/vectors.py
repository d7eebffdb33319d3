"""Singular vectors of a whole params tree, as one small state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lipjax.measure.block import SingularBlock
from lipjax.measure.groups import Group, stack_by_path, unstack_by_path
from lipjax.measure.packing import pack, packed_sizes, path_index, unpack


class SingularVectors(NamedTuple):
  """The top singular values and vectors of every operator of a params tree, warm to go on.

  Made by `init_singular_vectors`, moved on by `update_singular_vectors`, and part of the
  states of `add_spectral_decay` and `keep_params_in_spectral_ball`. Some
  ``rows + 16 columns`` numbers a matrix (2k columns, for the k that are followed) in three
  flat arrays: a state with arrays of its own for every leaf would cost more to pass in and
  out of a training step than the steps themselves.

  Guarantee: estimates from below.

  Attributes:
    sigma: the k largest values of every operator, flat, in path order; 0 before the first
      update. `read_spectral_norms` and `read_singular_values` give them by path.
    u: top left vectors, flat, float32 or wider.
    v: right vectors of the last two steps.
    steps: how many steps were taken in all, int32.
    paths: whose values are where, ``{path: {shape: None}}``; it holds no arrays.
  """

  sigma: Any
  u: Any
  v: Any
  steps: Any
  paths: Any


def pack_vectors(
  groups: Sequence[Group], blocks: list[SingularBlock], steps: jax.Array
) -> SingularVectors:
  """The stacked blocks of groups as one state."""
  if not groups:
    # Arrays of their own, not one three times: a state's buffers may be donated.
    empty = lambda: jnp.zeros((0,), jnp.float32)
    return SingularVectors(empty(), empty(), empty(), steps, {})
  return SingularVectors(*pack(groups, blocks), steps, path_index(groups))


def unpack_vectors(vectors: SingularVectors, groups: Sequence[Group]) -> list[SingularBlock]:
  """The stacked blocks of groups, of a state that was checked to be theirs."""
  if not groups:
    return []
  n = sum(group.n_slices for group in groups)
  return unpack(groups, SingularBlock(*vectors[:3]), vectors.sigma.shape[-1] // max(n, 1))


def pack_by_path(
  groups: Sequence[Group], blocks: Mapping[str, SingularBlock], steps: jax.Array
) -> SingularVectors:
  """Blocks by path as one state."""
  return pack_vectors(groups, [stack_by_path(group, blocks) for group in groups], steps)


def unpack_by_path(vectors: SingularVectors, groups: Sequence[Group]) -> dict[str, SingularBlock]:
  """The reverse of `pack_by_path`, sorted by path."""
  found = {}
  for group, block in zip(groups, unpack_vectors(vectors, groups), strict=True):
    found |= unstack_by_path(group, block)
  return dict(sorted(found.items()))


def check_vectors(vectors: Any, groups: Sequence[Group], caller: str, k: int | None = None) -> None:
  """Raises a `ValueError` for what is no state of these groups, with this k unless it is None."""
  if isinstance(vectors, Mapping):
    msg = (
      f"{caller} got a dictionary of vectors, as init_singular_vectors made them before it"
      " followed several a leaf. Vectors are a lipjax.SingularVectors now: make them anew with"
      " lipjax.init_singular_vectors(params, …)."
    )
    raise ValueError(msg)
  if not isinstance(vectors, SingularVectors):
    msg = (
      f"{caller} got {_described(vectors)} where singular vectors belong; expected a"
      " lipjax.SingularVectors, from lipjax.init_singular_vectors(params, …) or"
      " lipjax.update_singular_vectors. Strengths, targets and the like go by name."
    )
    raise ValueError(msg)
  have, need = vectors.paths, path_index(groups)
  if have != need:
    differing = {path for path in {*have, *need} if have.get(path) != need.get(path)}
    shapes = lambda index: {path: next(iter(index[path])) for path in differing & set(index)}
    msg = (
      f"The vectors of {caller} were made for other params: they are for leaves of shape"
      f" {shapes(have)}, and these params have {shapes(need)}. Make them anew for these params,"
      " with init or init_singular_vectors and the same layout."
    )
    raise ValueError(msg)
  if not groups:
    return
  found = max(vectors.sigma.shape[-1] // sum(group.n_slices for group in groups), 1)
  sizes = tuple(x.shape[-1] for x in vectors[:3])
  needed = packed_sizes(groups, found)
  if sizes != needed:
    msg = (
      f"The vectors of {caller} have arrays of the lengths {sizes}; for these params they need"
      f" {needed}. They were made with another layout, or by a version of lipjax that followed"
      " one vector a leaf: make them anew."
    )
    raise ValueError(msg)
  if k is not None and found != k:
    msg = (
      f"The vectors of {caller} follow k={found} singular values of each operator, and k={k} is"
      " asked for. Make them anew for another k."
    )
    raise ValueError(msg)


def _described(value: Any) -> str:
  text = repr(value)
  return f"{type(value).__name__} {text if len(text) < 40 else text[:37] + '…'}"
