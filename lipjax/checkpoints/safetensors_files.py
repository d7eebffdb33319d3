"""Safetensors: one file, or the shards of a large model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from lipjax.checkpoints.checkpoint import Checkpoint, CheckpointError, by_path, struct

INSTALL = 'pip install "lipjax[report]"'
#: As the format's specification names them, where NumPy does not by the number of bits.
DTYPES: dict[str, Any] = {
  "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "BOOL": np.bool_,
}
KINDS = {"F": "float", "I": "int", "U": "uint", "C": "complex"}


class Safetensors(Checkpoint):
  """A header of names, and arrays one after the other; dots in names become slashes."""

  format = "safetensors"

  def __init__(self, files: Sequence[Path]):
    found = by_path(files[0].parent, (pair for file in files for pair in _headers(file)))
    self.leaves = {path: leaf for path, (_, _, leaf) in found.items()}
    self._places = {path: (file, name) for path, (file, name, _) in found.items()}

  def read(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Opened anew each time: pages of a file that stays mapped count as memory of ours."""
    found = {}
    for file in dict.fromkeys(self._places[path][0] for path in paths):
      with _opened(file) as opened:
        of_file = [path for path in paths if self._places[path][0] == file]
        found |= {path: opened.get_tensor(self._places[path][1]) for path in of_file}
    return found


def _headers(file: Path) -> Iterator[tuple[str, tuple[Path, str, jax.ShapeDtypeStruct]]]:
  with _opened(file) as opened:
    for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
      header = opened.get_slice(name)
      leaf = struct(header.get_shape(), _dtype(file, header.get_dtype()))
      yield name.replace(".", "/"), (file, name, leaf)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
  try:
    from safetensors import SafetensorError, safe_open
  except ImportError as error:
    msg = f"{file} is in safetensors, which is not installed. Install it with: {INSTALL}"
    raise CheckpointError(msg) from error
  try:
    with safe_open(file, framework="np") as opened:
      yield opened
  except SafetensorError as error:
    msg = f"{file} is damaged, incomplete or no safetensors file: {error}."
    raise CheckpointError(msg) from error


def _dtype(file: Path, name: str) -> Any:
  """Of ``"F32"`` and its like."""
  if name in DTYPES:
    return DTYPES[name]
  try:
    return np.dtype(KINDS[name[0]] + name[1:])
  except (LookupError, TypeError) as error:
    msg = f"{file}: arrays of type {name} are not read."
    raise CheckpointError(msg) from error
