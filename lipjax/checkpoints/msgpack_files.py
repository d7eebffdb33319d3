"""What `flax.serialization.to_bytes` writes: nested maps with arrays at the ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from flax import serialization

from lipjax.checkpoints.checkpoint import Checkpoint, CheckpointError, by_path, struct

#: Flax's codes of an array, and of a scalar in the form of one.
ARRAYS = 1, 3
#: Flax cuts arrays above a gigabyte into parts, in a map with this key.
CHUNKED = "__msgpack_chunked_array__"
#: First bytes of maps and of extensions, and bytes of their lengths after it.
MAPS, EXTENSIONS = {0xDE: 2, 0xDF: 4}, {0xC7: 1, 0xC8: 2, 0xC9: 4}
#: Of extensions of a fixed length.
FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
#: Bytes read at a time where values are small.
HEAD = 4096


class Place(NamedTuple):
  """An array in the file, not read."""

  begin: int
  size: int
  leaf: jax.ShapeDtypeStruct


class Msgpack(Checkpoint):
  """A Flax state; arrays are found by one pass over the file that leaves them out."""

  format = "Flax msgpack"

  def __init__(self, path: Path):
    self._path = path
    with path.open("rb") as file:
      try:
        found = by_path(path, _arrays("", _value(file, os.path.getsize(path))))
      except CheckpointError:
        raise
      except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        msg = f"{path} is damaged, incomplete or no Flax msgpack: {reason}."
        raise CheckpointError(msg) from error
    self.leaves = {name: leaf for name, (leaf, _) in found.items()}
    self._places = {name: places for name, (_, places) in found.items()}

  def read(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Each by Flax."""
    with self._path.open("rb") as file:
      return {path: self._read(file, path) for path in paths}

  def _read(self, file: BinaryIO, path: str) -> np.ndarray:
    parts = []
    for place in self._places[path]:
      file.seek(place.begin)
      packed: Any = msgpack.packb(msgpack.ExtType(ARRAYS[0], file.read(place.size)))
      parts.append(np.asarray(serialization.msgpack_restore(packed)))
    shape = self.leaves[path].shape
    return parts[0].reshape(shape) if len(parts) == 1 else np.concatenate(parts).reshape(shape)


def is_map(first: int) -> bool:
  """Whether a file that begins with this byte may be a state."""
  return 0x80 <= first <= 0x8F or first in MAPS


def _value(file: BinaryIO, size: int) -> Any:
  """The next value: a dictionary, a `Place`, or whatever msgpack makes of it."""
  begin, byte = file.tell(), file.read(1)
  if not byte:
    msg = "it ends where a value should begin"
    raise ValueError(msg)
  (first,) = byte
  if is_map(first):
    count = _number(file, MAPS[first]) if first in MAPS else first & 0x0F
    return {str(_value(file, size)): _value(file, size) for _ in range(count)}
  if first in FIXED or first in EXTENSIONS:
    length = FIXED.get(first) or _number(file, EXTENSIONS[first])
    return _extension(file, length, size)
  value, after = _small(file, begin, lambda unpacker: unpacker.unpack())
  file.seek(begin + after)
  return value


def _extension(file: BinaryIO, length: int, size: int) -> Any:
  code, begin = _number(file, 1), file.tell()
  if begin + length > size:
    msg = f"it should end at byte {begin + length} of {size}"
    raise ValueError(msg)
  found = None
  if code in ARRAYS:
    (shape, dtype), _ = _small(file, begin, _shape_and_dtype)
    found = Place(begin, length, struct(shape, dtype))
  file.seek(begin + length)
  return found


def _shape_and_dtype(unpacker: msgpack.Unpacker) -> tuple[Any, Any]:
  if unpacker.read_array_header() != 3:
    msg = "an array is not a shape, a type and bytes"
    raise ValueError(msg)
  shape, dtype = unpacker.unpack(), unpacker.unpack()
  return shape, jnp.bfloat16 if dtype == "bfloat16" else dtype


def _small(file: BinaryIO, begin: int, read: Callable[[msgpack.Unpacker], Any]) -> tuple[Any, int]:
  """What is read from there on, and how many bytes it has."""
  file.seek(begin)
  unpacker = msgpack.Unpacker(file, read_size=HEAD, raw=False, strict_map_key=False)
  return read(unpacker), unpacker.tell()


def _number(file: BinaryIO, n_bytes: int) -> int:
  return int.from_bytes(file.read(n_bytes), "big")


def _arrays(
  path: str, value: Any
) -> Iterator[tuple[str, tuple[jax.ShapeDtypeStruct, list[Place]]]]:
  if isinstance(value, Place):
    yield path, (value.leaf, [value])
  elif isinstance(value, Mapping) and CHUNKED in value:
    parts, shape = value["chunks"], value["shape"]
    places = [parts[str(i)] for i in range(len(parts))]
    sizes = (shape[str(i)] for i in range(len(shape)))
    yield path, (struct(sizes, places[0].leaf.dtype), places)
  elif isinstance(value, Mapping):
    for name, x in value.items():
      yield from _arrays(f"{path}/{name}" if path else name, x)
