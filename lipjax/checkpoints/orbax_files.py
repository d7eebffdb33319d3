"""Orbax: a checkpoint, or the root of a manager with steps and items."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lipjax.checkpoints.checkpoint import Checkpoint, CheckpointError, by_path, struct
from lipjax.operators.paths import path_string

#: A folder with this file holds one tree of arrays.
METADATA = "_METADATA"


class Orbax(Checkpoint):
  """One tree, each array on one device, wherever it was saved from."""

  format = "orbax"

  def __init__(self, path: Path):
    import orbax.checkpoint as ocp

    self._path, self._checkpointer = path, ocp.PyTreeCheckpointer()
    metadata: Any = self._call(lambda: self._checkpointer.metadata(path))
    tree = self._call(lambda: metadata.item_metadata.tree)
    is_leaf = lambda x: hasattr(x, "shape") or x is None
    with_paths, self._structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    found = by_path(path, ((path_string(key), leaf) for key, leaf in with_paths))
    self._paths = list(found)
    self.leaves = {
      name: struct(leaf.shape, leaf.dtype)
      for name, leaf in found.items()
      if getattr(leaf, "dtype", None) is not None
    }

  def read(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """All others are placeholders."""
    import orbax.checkpoint as ocp

    some = set(paths)
    wanted = [self.leaves[x] if x in some else ocp.PLACEHOLDER for x in self._paths]
    as_array = ocp.RestoreArgs(restore_type=np.ndarray)
    unflatten = self._structure.unflatten
    args = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
      item=unflatten(wanted), restore_args=unflatten([as_array] * len(wanted))
    )
    found = self._call(lambda: self._checkpointer.restore(self._path.absolute(), args=args))
    arrays = jax.tree.leaves(found, is_leaf=lambda x: x is ocp.PLACEHOLDER)
    pairs = zip(self._paths, arrays, strict=True)
    return {name: np.asarray(x) for name, x in pairs if name in some}

  def _call(self, fn: Any) -> Any:
    log = logging.getLogger("absl")
    level = log.level
    # What is not asked for is not there, which it warns of.
    log.setLevel(logging.ERROR)
    try:
      return fn()
    except Exception as error:  # whatever its storage raises
      reason = str(error).split("\n", 1)[0] or type(error).__name__
      msg = f"{self._path} cannot be read as an orbax checkpoint: {reason[:300]}"
      raise CheckpointError(msg) from error
    finally:
      log.setLevel(level)


def find_item(path: Path, item: str | None) -> Path:
  """The folder of one tree: below a manager's root that of the latest step.

  Raises:
    CheckpointError: there is none, or there are several and none was named.
  """
  folders = [path, _latest_step(path)]
  if item is not None:
    folders = [folder / item for folder in folders]
  for folder in folders:
    if (folder / METADATA).exists():
      return folder
    items = sorted(x.parent.name for x in folder.glob(f"*/{METADATA}") if _step(x.parent) is None)
    if len(items) == 1 or "default" in items:
      return folder / (items[0] if len(items) == 1 else "default")
    if items:
      msg = f"{folder} has several items; name one: --item {' or --item '.join(items)}."
      raise CheckpointError(msg)
  what = f"has no item {item!r}" if item else "is no checkpoint that is known"
  msg = f"{path} {what}: there is no file {METADATA} of orbax, and no .safetensors."
  raise CheckpointError(msg)


def _latest_step(path: Path) -> Path:
  """Of a manager's root; the path itself if it has no steps."""
  steps = {_step(x): x for x in path.iterdir() if x.is_dir()}
  return steps[max(found)] if (found := [x for x in steps if x is not None]) else path


def _step(folder: Path) -> int | None:
  """A manager's folders are called ``100`` or, with a prefix, ``step_100``."""
  number = folder.name.rsplit("_", 1)[-1]
  return int(number) if number.isdigit() else None
