"""Running a measurement where weights are sharded on explicit mesh axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec


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
  return result_sharded(fn, weights, PartitionSpec())


def result_sharded(fn: Callable[..., Any], weights: Any, spec: PartitionSpec) -> Callable[..., Any]:
  """As `replicated_result`, with results of sharding `spec`."""
  mesh = explicit_mesh(weights)
  if mesh is None:
    return fn
  # Explicitly sharded arrays carry their mesh, but `auto_axes` only looks at the one
  # of `jax.set_mesh`, and does nothing without one.
  alone = jax.sharding.get_abstract_mesh().empty
  return jax.sharding.auto_axes(fn, out_sharding=NamedSharding(mesh, spec) if alone else spec)


def replicated_like(leaves: Any, tree: Any) -> Any:
  """`tree` on every device of the mesh of `leaves`, so that updates keep its sharding.

  Concrete leaves only: a jitted `init` whose result does not depend on its argument
  runs where `jax.set_mesh` or ``out_shardings`` say.
  """
  for leaf in jax.tree.leaves(leaves):
    sharding = getattr(leaf, "sharding", None)
    abstract = isinstance(leaf, Tracer | jax.ShapeDtypeStruct)
    if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 and not abstract:
      return jax.tree.map(lambda x: jax.device_put(x, _replicated(x, sharding.mesh)), tree)  # noqa: B023
  return tree


def _replicated(x, mesh):
  # Types of explicit axes spell replication out, one None a dimension.
  spec = PartitionSpec(*(None,) * x.ndim) if mesh.explicit_axes else PartitionSpec()
  return NamedSharding(mesh, spec)
