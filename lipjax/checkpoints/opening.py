"""From a path to a checkpoint: what the files are is told by their first bytes and names."""

from __future__ import annotations

import json
from pathlib import Path

from lipjax.checkpoints.checkpoint import Checkpoint, CheckpointError

FORMATS = "an orbax checkpoint, .safetensors, Flax msgpack or .npz"
#: Of zip archives, which .npz and PyTorch's files are.
ZIP = b"PK\x03\x04"
#: Of a pickle of protocol 2 or later, as which older PyTorch files and many others begin.
PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
UNPICKLING = (
  "holds a pickle, and reading that runs whatever code its author put there. Save the weights as"
  " safetensors: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)


def open_checkpoint(path: Path, item: str | None = None) -> Checkpoint:
  """The checkpoint at a path. No array is read.

  Args:
    path: a file, or a folder: of orbax, or with safetensors in it.
    item: of an orbax checkpoint with several, or a step and an item, as ``"100/state"``.

  Raises:
    CheckpointError: in one line, what is wrong with it.
  """
  try:
    found = _opened(path, item)
  except OSError as error:
    msg = f"{path}: {error.strerror or error}."
    raise CheckpointError(msg) from error
  if not found.leaves:
    msg = f"{path} holds no arrays."
    raise CheckpointError(msg)
  return found


def _opened(path: Path, item: str | None) -> Checkpoint:
  if not path.exists():
    msg = f"{path} does not exist."
    raise CheckpointError(msg)
  if path.is_dir():
    return _in_folder(path, item)
  if item is not None:
    msg = f"{path} is one file, which has no item {item!r}; leave --item out."
    raise CheckpointError(msg)
  if path.name.endswith(".json"):
    from lipjax.checkpoints.safetensors_files import Safetensors

    return Safetensors(_shards(path))
  return _file(path)


def _in_folder(path: Path, item: str | None) -> Checkpoint:
  tensors = sorted(path.glob("*.safetensors"))
  indices = sorted(path.glob("*.safetensors.index.json"))
  if tensors or indices:
    from lipjax.checkpoints.safetensors_files import Safetensors

    if len(indices) > 1:
      msg = f"{path} holds {len(indices)} indices; name one of {_names(indices)}."
      raise CheckpointError(msg)
    return Safetensors(_shards(indices[0]) if indices else tensors)
  from lipjax.checkpoints.orbax_files import Orbax, find_item

  return Orbax(find_item(path, item))


def _shards(index: Path) -> list[Path]:
  """The files that an index of safetensors names."""
  try:
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    files = [index.parent / name for name in sorted(set(names))]
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    msg = f"{index} is no index of safetensors: it has no weight_map from names to files."
    raise CheckpointError(msg) from error
  if missing := [file for file in files if not file.exists()]:
    msg = (
      f"{index} names {_names(missing)}, which {'is' if len(missing) == 1 else 'are'} not there."
    )
    raise CheckpointError(msg)
  return files


def _file(path: Path) -> Checkpoint:
  with path.open("rb") as file:
    head = file.read(9)
  if not head:
    msg = f"{path} is empty."
    raise CheckpointError(msg)
  if head.startswith(ZIP):
    from lipjax.checkpoints.npz_files import Npz

    return Npz(path)
  if (len(head) == 9 and head[8:] == b"{") or path.suffix == ".safetensors":
    from lipjax.checkpoints.safetensors_files import Safetensors

    return Safetensors([path])
  if head.startswith(PICKLES):
    msg = f"{path} {UNPICKLING}."
    raise CheckpointError(msg)
  from lipjax.checkpoints.msgpack_files import Msgpack, is_map

  if is_map(head[0]):
    return Msgpack(path)
  msg = f"{path} is not {FORMATS}: no such file begins with {head[:4]!r}."
  raise CheckpointError(msg)


def _names(paths: list[Path]) -> str:
  return ", ".join(path.name for path in paths[:4]) + (" and others" if len(paths) > 4 else "")
