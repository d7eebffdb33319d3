"""From a pytree to ``{path: leaf}`` and back: the only module that walks paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def path_string(key_path: tuple[Any, ...]) -> str:
  """A key path in lipjax's spelling, ``"block_0/attn/query/kernel"``.

  Flax wraps an array in a box or a variable whose only child is called
  ``value``, and not at every call (nnx's optimizer does so in `init` and not in
  `update`), so one trailing ``/value`` is taken away.
  """
  path = jax.tree_util.keystr(key_path, simple=True, separator="/")
  return path.removesuffix("/value")


def float_leaves(tree: Any) -> dict[str, Any]:
  """The floating-point array leaves of a pytree by path, sorted by path.

  Leaves that are not arrays (an activation function in an Equinox module) and
  arrays that hold no weights (integers, booleans, random keys) are left out.

  Raises:
    ValueError: a complex leaf, or two leaves with one path.
  """
  found: dict[str, Any] = {}
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if not is_float_array(leaf, path_string(key_path)):
      continue
    path = path_string(key_path)
    if path in found:
      msg = (
        f"Two leaves of the tree have the path {path!r}, so their norms could not be"
        " told apart; rename one of them."
      )
      raise ValueError(msg)
    found[path] = leaf
  return dict(sorted(found.items()))


def map_float_leaves(fn: Callable[[str, Any], Any], tree: Any) -> Any:
  """`tree` with every floating-point array leaf replaced by ``fn(path, leaf)``."""

  def visit(key_path, leaf):
    path = path_string(key_path)
    return fn(path, leaf) if is_float_array(leaf, path) else leaf

  return jax.tree_util.tree_map_with_path(visit, tree)


def is_float_array(leaf: Any, path: str) -> bool:
  """Whether a leaf can be a weight; a complex one raises."""
  if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
    return False
  if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
    msg = (
      f"The leaf {path!r} is {leaf.dtype}; lipjax takes real weights. Leave it out"
      " with mask=…, or keep real and imaginary parts as two leaves."
    )
    raise ValueError(msg)
  return jnp.issubdtype(leaf.dtype, jnp.floating)
