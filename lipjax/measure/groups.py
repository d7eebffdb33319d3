"""Groups of equal leaves: the only module that decides what runs together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lipjax.measure.triplet import SingularTriplet, triplet_dtype
from lipjax.operators.base import LinearOperator

#: Below this many elements a leaf is copied into a stack with its equals, which
#: saves more in dispatch than the copy costs; above, the copy would cost more
#: memory traffic than the measurement itself.
STACK_BELOW = 2**14 + 1


class Group(NamedTuple):
  """Leaves that are the same operator of the same shape, dtype and sharding."""

  operator: LinearOperator
  shape: tuple[int, ...]
  dtype: Any
  paths: tuple[str, ...]

  @property
  def struct(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of each leaf."""
    return jax.ShapeDtypeStruct(self.shape, self.dtype)

  @property
  def n_batch(self) -> int:
    """Leading axes of a stacked triplet: the stack of leaves, then batch axes."""
    return 1 + len(self.operator.batch_shape(self.shape))

  def triplet_shapes(self) -> SingularTriplet:
    """Shapes of this group's stacked triplet."""
    g, op = (len(self.paths),), self.operator
    return SingularTriplet(
      g + op.batch_shape(self.shape),
      g + op.output_shape(self.shape),
      g + op.input_shape(self.shape),
    )

  @property
  def compute_dtype(self) -> Any:
    """Dtype of the triplet."""
    return triplet_dtype(self.struct)

  @property
  def stacks(self) -> bool:
    """Whether the weights are copied into one array."""
    size = 1
    for n in self.shape:
      size *= n
    return len(self.paths) > 1 and size < STACK_BELOW


def group_leaves(operators: Mapping[str, LinearOperator], leaves: Mapping[str, Any]) -> list[Group]:
  """Groups the leaves that `operators` names, in an order that paths alone fix."""
  members: dict[Any, list[str]] = {}
  for path, operator in sorted(operators.items()):
    leaf = leaves[path]
    key = (operator, tuple(leaf.shape), jnp.dtype(leaf.dtype))
    # Leaves sharded differently are measured one by one: stacking them would
    # reshard a weight. Auto shardings are invisible while tracing.
    members.setdefault((*key, _sharding_key(leaf)), []).append(path)
  return [Group(op, shape, dt, tuple(ps)) for (op, shape, dt, _), ps in members.items()]


def map_weights(
  fn: Callable[..., Any], group: Group, weights: list[jax.Array], *args: jax.Array
) -> Any:
  """``fn(w, *args_slice)`` for every leaf of a group, results stacked on axis 0."""
  if group.stacks and jax.device_count() == 1:
    return jax.vmap(fn)(jnp.stack(weights), *args)
  results = [fn(w, *(x[i] for x in args)) for i, w in enumerate(weights)]
  return jax.tree.map(lambda *xs: jnp.stack(xs), *results)


def stack_triplets(group: Group, by_path: Mapping[str, SingularTriplet]) -> SingularTriplet:
  """One triplet with a leading axis for the group's leaves."""
  members = [SingularTriplet(*by_path[path]) for path in group.paths]
  return jax.tree.map(
    lambda *xs: jnp.stack([jnp.asarray(x, group.compute_dtype) for x in xs]), *members
  )


def unstack_triplets(group: Group, stacked: SingularTriplet) -> dict[str, SingularTriplet]:
  """The reverse of `stack_triplets`."""
  return {
    path: jax.tree.map(lambda x: x[i], stacked)  # noqa: B023
    for i, path in enumerate(group.paths)
  }


def _sharding_key(leaf: Any) -> Any:
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf.sharding
  if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
    return None if len(leaf.devices()) == 1 else leaf.sharding
  spec = getattr(jax.typeof(leaf).sharding, "spec", None)
  return None if spec is None or all(s is None for s in spec) else spec
