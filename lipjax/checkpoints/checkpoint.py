"""What every checkpoint is here: arrays by path, whose shapes are known before they are read."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np


class CheckpointError(ValueError):
  """A file or folder that cannot be read as a checkpoint."""


class Checkpoint(abc.ABC):
  """Arrays in files.

  Attributes:
    format: what it is, in words.
    leaves: shape and dtype of every array, by its path with slashes between.
  """

  format: ClassVar[str]
  leaves: dict[str, jax.ShapeDtypeStruct]

  @abc.abstractmethod
  def read(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Some of the arrays, in memory."""

  def batches(self, paths: Sequence[str], n_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    """The arrays, so many at a time as have so many bytes, or one."""
    some: list[str] = []
    size = 0
    for path in paths:
      more = size_of(self.leaves[path])
      if some and size + more > n_bytes:
        yield self.read(some)
        some, size = [], 0
      some.append(path)
      size += more
    if some:
      yield self.read(some)


def size_of(leaf: jax.ShapeDtypeStruct) -> int:
  """In bytes."""
  return leaf.size * np.dtype(leaf.dtype).itemsize


def by_path(where: Path, leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
  """What is found under each path, once."""
  found: dict[str, Any] = {}
  for path, leaf in leaves:
    if path in found:
      msg = f"{where}: there are two arrays named {path!r}."
      raise CheckpointError(msg)
    found[path] = leaf
  return found


def struct(shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
  """Of what a file says of an array; not JAX's own, which has 64 bits only where it may."""
  return jax.ShapeDtypeStruct(tuple(map(int, shape)), np.dtype(dtype))
