"""Singular vectors that an optimizer state follows from update to update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.groups import Group, group_leaves
from lipjax.measure.refresh import Progress
from lipjax.measure.sharding import replicated_like
from lipjax.measure.singular_vectors import init_singular_vectors
from lipjax.measure.triplet import SingularTriplet
from lipjax.measure.vectors import SingularVectors, unpack_vectors
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves
from lipjax.operators.resolve import Overrides, require_operators

#: Updates between two refreshes at most.
LONGEST = 16
#: The share of the tolerance that norms are let use up until then.
MARGIN = 0.7


class Pace(NamedTuple):
  """When vectors are refreshed next.

  Attributes:
    interval: from the last refresh to the next, int32.
    wait: updates to let pass until then, int32.
  """

  interval: Any
  wait: Any


def next_pace(pace: Pace, due: jax.Array, progress: Progress, tol: Any) -> Pace:
  """The pace after an update.

  Until the next refresh a norm is off by the error that this one left and by as much as the
  last one found it had moved, if that goes on. The next interval is the one after which both
  come to `tol`, less a margin; at most twice as long as the last and never above `LONGEST`.
  """
  left = MARGIN * (tol - progress.error) / jnp.maximum(progress.drift, 1e-9)
  factor = jnp.clip(left, 0, 2)
  interval = jnp.clip(jnp.floor(pace.interval * factor), 1, LONGEST).astype(jnp.int32)
  interval = jnp.where(due, interval, pace.interval)
  return Pace(interval, jnp.where(due, interval, pace.wait) - 1)


def group_params(
  params: Any, layout: Layout | None, layout_overrides: Overrides | None, caller: str
) -> tuple[list[Group], dict[str, Any]]:
  """The groups of a params tree and its leaves by path; no operator at all raises."""
  operators = require_operators(params, layout, layout_overrides, caller)
  leaves = float_leaves(params)
  return group_leaves(operators, leaves), leaves


def init_tracked(
  params: Any, groups: list[Group], leaves: Mapping[str, Any], k: int | None, seed: Any
) -> SingularVectors:
  """Random vectors, nothing measured."""
  operators = {path: group.operator for group in groups for path in group.paths}
  vectors = init_singular_vectors(
    {path: leaves[path] for path in operators}, k=k, layout=operators, key=jax.random.key(seed)
  )
  if not groups:
    # optax.tree.map_params matches its mapping against the state of a placeholder; a
    # leaf in place of the paths makes it pass them over whole.
    return vectors._replace(paths=0 if type(params).__name__ == "_ParamsPlaceholder" else {})
  return SingularVectors(*replicated_like(leaves, vectors[:-1]), paths=vectors.paths)


def top_triplets_of(vectors: SingularVectors, groups: list[Group]) -> list[SingularTriplet]:
  """Each group's stacked top triplet, as it is in the state."""
  found = []
  for block in unpack_vectors(vectors, groups):
    v = lax.index_in_dim(block.v, 0, axis=block.sigma.ndim - 1, keepdims=False)
    found.append(SingularTriplet(block.sigma[..., 0], block.u, v))
  return found
