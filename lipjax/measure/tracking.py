"""Norms that an optimizer state follows from update to update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lipjax.measure.groups import Group, group_leaves, stack_triplets
from lipjax.measure.packing import pack, path_index, sigma_by_path, unpack
from lipjax.measure.sharding import replicated_like
from lipjax.measure.singular_vectors import init_singular_vectors, iterate_groups
from lipjax.measure.triplet import SingularTriplet
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves
from lipjax.operators.resolve import Overrides, require_operators


class TrackedNorms(NamedTuple):
  """Singular triplets of a params tree, as part of an optimizer state.

  O(rows + columns) numbers a leaf. `read_spectral_norms` gives sigma by path.

  Attributes:
    sigma: every norm as last measured, flat, in path order. 0 before the first update.
    u: left singular vectors of all leaves, flat, float32 or wider.
    v: right singular vectors.
    paths: whose norm is where, ``{path: {shape: None}}``; it holds no arrays.
  """

  sigma: Any
  u: Any
  v: Any
  paths: Any


def group_params(
  params: Any, layout: Layout | None, layout_overrides: Overrides | None, caller: str
) -> tuple[list[Group], dict[str, Any]]:
  """The groups of a params tree and its leaves by path; no operator at all raises."""
  operators = require_operators(params, layout, layout_overrides, caller)
  leaves = float_leaves(params)
  return group_leaves(operators, leaves), leaves


def init_tracked(
  params: Any, groups: list[Group], leaves: Mapping[str, Any], seed: int
) -> TrackedNorms:
  """Random vectors, nothing measured."""
  if not groups:
    # Three arrays, not one three times: a state's buffers may be donated.
    empty = lambda: jnp.zeros((0,), jnp.float32)
    # optax.tree.map_params matches its mapping against the state of a placeholder; a
    # leaf in place of the paths makes it pass them over whole.
    paths = 0 if type(params).__name__ == "_ParamsPlaceholder" else {}
    return TrackedNorms(empty(), empty(), empty(), paths)
  operators = {path: group.operator for group in groups for path in group.paths}
  vectors = init_singular_vectors(
    {path: leaves[path] for path in operators}, layout=operators, key=jax.random.key(seed)
  )
  packed = pack(groups, [stack_triplets(group, vectors) for group in groups])
  sigma, u, v = replicated_like(leaves, packed)
  return TrackedNorms(sigma, u, v, path_index(groups))


def advance(
  tracked: TrackedNorms,
  groups: list[Group],
  leaves: Mapping[str, Any],
  n_steps: int | jax.Array,
  caller: str,
) -> tuple[list[SingularTriplet], TrackedNorms]:
  """`n_steps` of power iteration: each group's stacked triplet, and what to store."""
  _check_paths(tracked, groups, caller)
  stacked = unpack(groups, SingularTriplet(*tracked[:3]))
  stacked = iterate_groups(groups, leaves, stacked, n_steps)
  sigma, u, v = pack(groups, stacked)
  return stacked, TrackedNorms(sigma, u, v, tracked.paths)


def check_count(name: str, value: Any) -> None:
  """Raises unless a number of steps or updates that is known is an integer of at least 1."""
  if isinstance(value, (int, float)) and (value < 1 or value != int(value)):
    msg = f"{name} is {value}; expected an integer of at least 1."
    raise ValueError(msg)


def read_spectral_norms(opt_state: Any) -> dict[str, jax.Array]:
  """The norms that lipjax's transformations measured last, by path, for logging.

  Guarantee: an estimate from below. `add_spectral_decay` measures the weights before
  the update (at its latest refresh, with ``every`` above 1);
  `keep_params_in_spectral_ball` the weights that the update would have given without
  it. 0 before the first update.

  Args:
    opt_state: any optax state with one of theirs somewhere in it (in a chain, masked,
      injected, in `optax.MultiSteps`, in an `nnx.Optimizer`).

  Returns:
    ``{path: sigma}``; several states are merged, the last one wins.

  Raises:
    ValueError: no transformation in it tracks norms.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> tx = optax.chain(lipjax.add_spectral_decay(0.1), optax.adam(1e-3))
    >>> lipjax.read_spectral_norms(tx.init({"kernel": jnp.ones((2, 2))}))
    {'kernel': Array(0., dtype=float32)}
  """
  is_tracked = lambda node: isinstance(node, TrackedNorms)
  states = [s for s in jax.tree.leaves(opt_state, is_leaf=is_tracked) if is_tracked(s)]
  if not states:
    msg = (
      "This optimizer state tracks no norms; pass the state of a chain with"
      " lipjax.add_spectral_decay or lipjax.keep_params_in_spectral_ball in it."
    )
    raise ValueError(msg)
  norms = {}
  for state in states:
    norms |= sigma_by_path(jnp.asarray(state.sigma), state.paths)
  return dict(sorted(norms.items()))


def _check_paths(tracked, groups, caller):
  have, need = tracked.paths, path_index(groups)
  if have != need:
    differing = {path for path in {*have, *need} if have.get(path) != need.get(path)}
    shapes = lambda index: {path: next(iter(index[path])) for path in differing & set(index)}
    msg = (
      f"The state of {caller} was made for other params: it is for leaves of shape"
      f" {shapes(have)}, and these params have {shapes(need)}. Call init again with these"
      " params."
    )
    raise ValueError(msg)
