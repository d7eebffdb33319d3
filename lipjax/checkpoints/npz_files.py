"""NumPy's archives of arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from lipjax.checkpoints.checkpoint import Checkpoint, CheckpointError, struct
from lipjax.checkpoints.opening import UNPICKLING


class Npz(Checkpoint):
  """An ``.npz`` archive; of each array the header is read first."""

  format = ".npz"

  def __init__(self, path: Path):
    self._path = path
    self.leaves = self._read_headers()

  def read(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of objects are refused."""
    try:
      # NumPy leaves a file open that it has opened and cannot read.
      with self._path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {path: archive[path] for path in paths}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
      msg = f"{self._path}: an array cannot be read: {error}"
      raise CheckpointError(msg) from error

  def _read_headers(self) -> dict[str, jax.ShapeDtypeStruct]:
    leaves = {}
    try:
      with zipfile.ZipFile(self._path) as archive:
        members = archive.namelist()
        if any(name.endswith(".pkl") for name in members):
          msg = f"{self._path} {UNPICKLING}."
          raise CheckpointError(msg)
        for member in members:
          if not member.endswith(".npy"):
            continue
          with archive.open(member) as file:
            shape, dtype = _header(file)
          name = member.removesuffix(".npy")
          if dtype.hasobject:
            msg = f"{self._path}: {name!r} is an array of objects, and {UNPICKLING}."
            raise CheckpointError(msg)
          leaves[name] = struct(shape, dtype)
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
      if isinstance(error, CheckpointError):
        raise
      msg = f"{self._path} is a damaged archive: {error}."
      raise CheckpointError(msg) from error
    return leaves


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
  version = np.lib.format.read_magic(file)
  of_version = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if version not in of_version:
    msg = f"version {version} of NumPy's format is not known"
    raise ValueError(msg)
  shape, _, dtype = of_version[version](file)
  return shape, dtype
