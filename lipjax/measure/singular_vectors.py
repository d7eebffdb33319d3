"""Warm-started singular vectors of a whole params tree."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
from jax import lax

from lipjax.measure.groups import (
  Group,
  group_leaves,
  map_weights,
  stack_triplets,
  unstack_triplets,
)
from lipjax.measure.norms import top_triplets
from lipjax.measure.power_iteration import (
  finish_one_sided,
  initial_triplet,
  keep_direction,
  scaled_start,
)
from lipjax.measure.sharding import replicated_result
from lipjax.measure.triplet import SingularTriplet, clean, differentiable_sigma
from lipjax.operators.base import LinearOperator
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves
from lipjax.operators.resolve import Overrides, resolve_operators

Vectors = Mapping[str, SingularTriplet]


def init_singular_vectors(
  params: Any,
  *,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
  start: Literal["random", "ones", "converged"] | Mapping[str, jax.Array] = "random",
  key: jax.Array | None = None,
) -> dict[str, SingularTriplet]:
  """Vectors to start power iteration from, for every operator of a params tree.

  But for ``"converged"`` nothing is measured: sigma is 0 until the first
  `update_singular_vectors`, and only shapes and dtypes are read, so that
  `jax.ShapeDtypeStruct` leaves work.

  Args:
    params: a pytree of arrays.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.
    start: ``"random"``, ``"ones"``, ``"converged"`` (the top singular vectors, measured
      as by `spectral_norms`), or ``{path: u}`` with one vector of the operator's output
      shape for every operator.
    key: for the random start, folded with each leaf's path; a fixed key when None.

  Returns:
    ``{path: SingularTriplet}``, float32 or wider, O(rows + columns) a leaf.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: a start of the wrong shape or for a missing path.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> vectors = lipjax.init_singular_vectors({"kernel": jnp.ones((4, 2))})
    >>> vectors["kernel"].u.shape, vectors["kernel"].v.shape
    ((2,), (4,))
  """
  operators = resolve_operators(params, layout, layout_overrides)
  leaves = float_leaves(params)
  if not isinstance(start, str) and set(start) != set(operators):
    msg = (
      f"start has the paths {sorted(start)}; expected one vector for each operator:"
      f" {sorted(operators)}."
    )
    raise ValueError(msg)
  if isinstance(start, str) and start == "converged":
    _check_arrays(leaves)
    found = top_triplets(operators, leaves, key=key)
    return {path: keep_direction(triplet) for path, triplet in found.items()}
  return {
    path: initial_triplet(
      op, leaves[path], start if isinstance(start, str) else start[path], key, path
    )
    for path, op in operators.items()
  }


def update_singular_vectors(
  params: Any,
  vectors: Vectors,
  *,
  n_steps: int | jax.Array = 1,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> tuple[dict[str, SingularTriplet], dict[str, SingularTriplet]]:
  r"""`n_steps` of power iteration on every operator, from where `vectors` left off.

  Each step is :math:`u \leftarrow W W^T u`, normalized, with
  :math:`\sigma = \|W v\|` for the unit :math:`v \propto W^T u`; one step a
  training step is enough to follow slowly moving weights.

  Guarantee: an estimate from below, never an upper bound. The length of the
  stored vectors does not matter, so averaged or rounded ones do no harm. In float32
  norms from 1e-34 to 1e35 converge; one that grows (falls) 1e38-fold between two
  calls reads NaN (0) once. Under a penalty strong enough to make the top singular values nearly
  equal, one step a call lags: the estimate can be 5 to 30 % low (docs: guarantees).

  Args:
    params: a pytree of arrays with the paths that `vectors` was made for.
    vectors: from `init_singular_vectors` or an earlier call.
    n_steps: number of steps, at least 1; an int or a traced integer.
    layout: as in `init_singular_vectors`.
    layout_overrides: as in `init_singular_vectors`.

  Returns:
    ``(triplets, vectors)``. `triplets` is the measurement: its sigma carries the
    derivative :math:`u^T dW v`, and u = v = 0 for a zero operator. `vectors` is
    what to pass next time: constants, always unit vectors, same shapes and dtypes.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: `vectors` has other paths than the params' operators, or
      `n_steps` is an int below 1.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 1.0]])}
    >>> vectors = lipjax.init_singular_vectors(params)
    >>> triplets, vectors = lipjax.update_singular_vectors(params, vectors, n_steps=20)
    >>> round(float(triplets["kernel"].sigma), 4)
    3.0

  Reference:
    Miyato et al. (2018), arXiv:1802.05957, Algorithm 1.
  """
  if isinstance(n_steps, int) and n_steps < 1:
    msg = f"n_steps is {n_steps}; expected at least 1."
    raise ValueError(msg)
  operators = resolve_operators(params, layout, layout_overrides)
  leaves = float_leaves(params)
  check_vectors(operators, leaves, vectors)
  groups = group_leaves(operators, leaves)
  stacked = [stack_triplets(group, vectors) for group in groups]
  stacked = iterate_groups(groups, leaves, stacked, n_steps)
  new = {}
  for group, triplet in zip(groups, stacked, strict=True):
    new |= unstack_triplets(group, triplet)
  new = dict(sorted(new.items()))
  triplets = {
    path: differentiable_sigma(op, leaves[path], clean(new[path], new[path].sigma.ndim))
    for path, op in operators.items()
  }
  return triplets, new


def _check_arrays(leaves) -> None:
  abstract = [path for path, leaf in leaves.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
  if abstract:
    msg = (
      f"start='converged' measures the weights, but {abstract} are shapes alone; give arrays,"
      " or start='random'."
    )
    raise ValueError(msg)


def check_vectors(
  operators: Mapping[str, LinearOperator], leaves: Mapping[str, Any], vectors: Vectors
) -> None:
  """Raises a `ValueError` where `vectors` was made for other params or another layout."""
  if set(vectors) != set(operators):
    msg = (
      f"vectors has the paths {sorted(vectors)}, but the operators of params are"
      f" {sorted(operators)}; make vectors with init_singular_vectors(params, …) and the"
      " same layout."
    )
    raise ValueError(msg)
  for path, operator in operators.items():
    shape = leaves[path].shape
    expected = (operator.output_shape(shape), operator.input_shape(shape))
    got = (vectors[path].u.shape, vectors[path].v.shape)
    if got != expected:
      msg = (
        f"vectors[{path!r}] has u and v of shapes {got}, but the leaf of shape {shape} needs"
        f" {expected}; make vectors with init_singular_vectors for these params."
      )
      raise ValueError(msg)


def iterate_groups(
  groups: list[Group],
  leaves: Mapping[str, Any],
  stacked: list[SingularTriplet],
  n_steps: int | jax.Array,
) -> list[SingularTriplet]:
  """`n_steps` steps on every group, as one loop with a traced trip count.

  With a traced `n_steps` XLA keeps the loop, and its results are arrays in memory;
  a loop of known length is inlined, and the normalization is then recomputed inside
  whatever reads the vectors, element by element (measured on a tree of 64 small
  leaves: 1.4 instead of 1.1 times AdamW's update). 0 steps skip the work.
  """
  weights = [[lax.stop_gradient(leaves[path]) for path in group.paths] for group in groups]
  return _iterate(tuple(groups), weights, lax.stop_gradient(stacked), n_steps)


@functools.partial(jax.jit, static_argnames="groups")
def _iterate(groups, weights, stacked, n_steps):
  """The loop of `iterate_groups`, compiled once for a tree when called outside jit."""

  def run(weights, stacked, n_steps):
    def step(_, stacked):
      members = zip(groups, weights, stacked, strict=True)
      return [_step_group(group, ws, triplet) for group, ws, triplet in members]

    return lax.fori_loop(0, n_steps, step, stacked)

  return replicated_result(run, weights)(weights, stacked, n_steps)


def _step_group(group: Group, weights: list[jax.Array], triplet: SingularTriplet):
  """One one-sided step on a group's stacked triplet."""
  if group.operator.has_closed_form:
    found = map_weights(group.operator.closed_form, group, weights)
    return keep_direction(SingularTriplet(*found))
  u = scaled_start(triplet)

  def products(w, u):
    v = group.operator.adjoint(w, u)
    return v, group.operator.apply(w, v)

  v, y = map_weights(products, group, weights, u)
  return finish_one_sided(triplet, v, y)
