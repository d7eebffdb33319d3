"""Groups of equal leaves: the only module that decides what runs together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lipjax.measure.block import SingularBlock, block_shapes
from lipjax.measure.triplet import triplet_dtype
from lipjax.operators.base import LinearOperator

#: Below so many elements a leaf is copied into a stack with its equals, which saves more in
#: dispatch than the copy costs. On a GPU, where a product with a small matrix takes longer to
#: start than to run, that holds for far larger ones (24 products with 768×768: 142 µs, with
#: the copy 105 µs on an H100); the limit there is the memory that the copy takes.
STACK_BELOW = {"cpu": 2**14 + 1}
STACK_BELOW_ELSEWHERE = 2**22


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

  @property
  def n_slices(self) -> int:
    """Independent operators in all of its leaves."""
    return len(self.paths) * math.prod(self.operator.batch_shape(self.shape))

  def block_shapes(self, k: int) -> SingularBlock:
    """Shapes of this group's stacked block."""
    shapes = block_shapes(self.operator, self.shape, k)
    return SingularBlock(*((len(self.paths), *shape) for shape in shapes))

  @property
  def compute_dtype(self) -> Any:
    """Dtype of vectors and values."""
    return triplet_dtype(self.struct)

  @property
  def stacks(self) -> bool:
    """Whether the weights are copied into one array."""
    limit = STACK_BELOW.get(jax.default_backend(), STACK_BELOW_ELSEWHERE)
    # Several devices may hold parts of a weight, which a stack would gather.
    return len(self.paths) > 1 and math.prod(self.shape) < limit and jax.device_count() == 1


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


def stack_weights(group: Group, weights: list[jax.Array]) -> list[jax.Array] | jax.Array:
  """The leaves of a group as one array, where that pays."""
  return jnp.stack(weights) if group.stacks else weights


def map_weights(fn: Callable[..., Any], weights: list[jax.Array] | jax.Array, *args: Any) -> Any:
  """``fn(w, *args_slice)`` for every leaf of a group, results stacked on axis 0.

  Args:
    fn: of one leaf.
    weights: from `stack_weights`.
    *args: arrays with a slice for every leaf.
  """
  if not isinstance(weights, list):
    return jax.vmap(fn)(weights, *args)
  results = [fn(w, *(x[i] for x in args)) for i, w in enumerate(weights)]
  return jax.tree.map(lambda *xs: jnp.stack(xs), *results)


def stack_by_path(group: Group, by_path: Mapping[str, Any]) -> Any:
  """The named tuples of a group's leaves as one, with a leading axis."""
  cast = lambda *xs: jnp.stack([jnp.asarray(x, group.compute_dtype) for x in xs])
  return jax.tree.map(cast, *(by_path[path] for path in group.paths))


def unstack_by_path(group: Group, stacked: Any) -> dict[str, Any]:
  """The reverse of `stack_by_path`."""
  take = lambda i: jax.tree.map(lambda x: x[i], stacked)
  return {path: take(i) for i, path in enumerate(group.paths)}


def _sharding_key(leaf: Any) -> Any:
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf.sharding
  if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
    return None if len(leaf.devices()) == 1 else leaf.sharding
  spec = getattr(jax.typeof(leaf).sharding, "spec", None)
  return None if spec is None or all(s is None for s in spec) else spec
