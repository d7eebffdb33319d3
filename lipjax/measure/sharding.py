"""Running a measurement where weights are sharded on explicit mesh axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def explicit_mesh(leaves: Any) -> jax.sharding.AbstractMesh | None:
  """The mesh of leaves sharded on explicit axes, or None."""
  for leaf in jax.tree.leaves(leaves):
    if isinstance(leaf, jax.ShapeDtypeStruct):
      mesh = getattr(leaf.sharding, "mesh", None)
    else:
      mesh = getattr(jax.typeof(leaf).sharding, "mesh", None)
    if mesh is not None and mesh.explicit_axes:
      return getattr(mesh, "abstract_mesh", mesh)
  return None


def replicated_result(fn: Callable[..., Any], weights: Any) -> Callable[..., Any]:
  """`fn`, made to run where weights are sharded on explicit mesh axes.

  Inside, the compiler propagates shardings as on an automatic mesh; what comes
  out (norms and vectors, never weights) is replicated.
  """
  mesh = explicit_mesh(weights)
  if mesh is None:
    return fn
  return jax.sharding.auto_axes(fn, out_sharding=PartitionSpec())
