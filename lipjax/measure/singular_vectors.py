"""Warm-started singular vectors of a whole params tree: made, moved on and read."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.block import SingularBlock, default_k, random_block
from lipjax.measure.derivatives import differentiable_sigma
from lipjax.measure.groups import Group, group_leaves
from lipjax.measure.norms import top_triplets
from lipjax.measure.options import check_k, check_steps
from lipjax.measure.packing import path_index
from lipjax.measure.refresh import TOL, best_vectors, refresh
from lipjax.measure.scaling import norm_and_direction
from lipjax.measure.sharding import replicated_result
from lipjax.measure.triplet import SingularTriplet, clean
from lipjax.measure.vectors import (
  SingularVectors,
  check_vectors,
  pack_by_path,
)
from lipjax.operators.base import LinearOperator
from lipjax.operators.layouts import Layout
from lipjax.operators.resolve import Overrides, resolve_measured

Start = Literal["random", "converged"]


def init_singular_vectors(
  params: Any,
  *,
  k: int | None = None,
  start: Start = "random",
  key: jax.Array | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> SingularVectors:
  """Vectors to start from, for every operator of a params tree.

  But for ``"converged"`` nothing is measured: sigma is 0 until the first
  `update_singular_vectors`, and only shapes and dtypes are read, so that
  `jax.ShapeDtypeStruct` leaves work.

  Args:
    params: a pytree of arrays.
    k: how many singular values of every operator are followed; when None 12 where there are
      convolutions as operators, else 8, or 4 to 8 where no matrix has 32 rows and columns. More
      make a step dearer and fewer of them needed.
    start: ``"random"``, or ``"converged"``: the top vector is measured, as exactly as by
      `spectral_norms`, and the others are random.
    key: of the random start, folded with each leaf's path; a fixed key when None.
    layout: a layout function or ``{path: operator}``, also of a `Product` of two leaves;
      `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    `SingularVectors`, float32 or wider.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: an unknown start, a `k` that is no positive integer.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}
    >>> vectors = lipjax.init_singular_vectors(params, start="converged")
    >>> round(float(lipjax.read_spectral_norms(vectors)["kernel"]), 4)
    3.0
  """
  if not isinstance(start, str) or start not in get_args(Start):
    msg = f"start is {start!r}; expected 'random' or 'converged'."
    raise ValueError(msg)
  check_k(k)
  key = jax.random.key(0) if key is None else key
  operators, leaves, _ = resolve_measured(params, layout, layout_overrides)
  k = default_k(operators, leaves) if k is None else k
  groups = group_leaves(operators, leaves)
  triplets = {}
  if start == "converged":
    _check_arrays(leaves)
    triplets = top_triplets(operators, leaves, key=key)
  return SingularVectors(*_packed_start(tuple(groups), k, key, triplets), paths=path_index(groups))


def converged_blocks(
  operators: Mapping[str, LinearOperator], leaves: Mapping[str, Any], k: int | None, key: Any
) -> dict[str, SingularBlock]:
  """The blocks of ``start="converged"``, by path."""
  check_k(k)
  key = jax.random.key(0) if key is None else key
  k = default_k(operators, leaves) if k is None else k
  groups = group_leaves(operators, leaves)
  return _start_blocks(tuple(groups), k, key, top_triplets(operators, leaves, key=key))


@functools.partial(jax.jit, static_argnames=("groups", "k"))
def _start_blocks(
  groups: tuple[Group, ...], k: int, key: jax.Array, triplets: dict[str, SingularTriplet]
) -> dict[str, SingularBlock]:
  """Random blocks of all leaves, with the top triplets that are known."""
  blocks = {
    path: random_block(group.operator, group.struct, k, key, path)
    for group in groups
    for path in group.paths
  }
  return blocks | {path: _with_top_triplet(blocks[path], t) for path, t in triplets.items()}


@functools.partial(jax.jit, static_argnames=("groups", "k"))
def _packed_start(groups, k, key, triplets) -> list[Any]:
  """`_start_blocks`, as all but the paths of a `SingularVectors`."""
  blocks = _start_blocks(groups, k, key, triplets)
  return list(pack_by_path(groups, blocks, jnp.zeros((), jnp.int32))[:-1])


def update_singular_vectors(
  params: Any,
  vectors: SingularVectors,
  *,
  n_steps: int | jax.Array = 1,
  tol: float | jax.Array | None = TOL,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> SingularVectors:
  r"""Vectors that have followed the weights; call it once a training step.

  Takes `n_steps` steps of block power iteration with Rayleigh–Ritz
  (`lipjax.measure.subspace`), two products with every weight each, and more until the
  estimated relative error of every :math:`\sigma_1` is below `tol`. In training one step is
  enough as a rule.

  Guarantee: estimates from below, never an upper bound. :math:`\sigma_1` was within 1 %
  as a rule at a tolerance of 1 %, and 2 % low in the worst update of matrices (docs:
  guarantees). The length of the stored vectors does not matter, so averaged or rounded ones
  do no harm.

  Args:
    params: a pytree of arrays with the paths that `vectors` was made for.
    vectors: from `init_singular_vectors` or an earlier call.
    n_steps: steps at least, an int of at least 1 or a traced integer.
    tol: where to stop, 0.01 by default; None takes `n_steps` steps and no more. After 50
      steps it ends in any case. The estimate is not finer than about 1e-4 in float32: for
      more exact vectors give `n_steps`.
    layout: as in `init_singular_vectors`.
    layout_overrides: as in `init_singular_vectors`.

  Returns:
    What to pass next time, of the same shapes and dtypes, a constant of the derivative.
    `read_spectral_norms`, `read_singular_values` and `singular_triplets` read it. An
    operator with a NaN or an infinity has sigma NaN, for itself alone, and starts anew.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: vectors of other params or from another version; `n_steps` below 1.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 1.0]])}
    >>> vectors = lipjax.init_singular_vectors(params)
    >>> vectors = lipjax.update_singular_vectors(params, vectors)
    >>> round(float(lipjax.read_spectral_norms(vectors)["kernel"]), 4)
    3.0

  Reference:
    Miyato et al. (2018), arXiv:1802.05957, Algorithm 1, is this with one vector; Knyazev
    (2001), SIAM J. Sci. Comput. 23(2), for the block before the last one.
  """
  check_steps(n_steps, tol)
  groups, leaves = _groups(params, layout, layout_overrides)
  check_vectors(vectors, groups, "update_singular_vectors")
  return refresh(groups, leaves, vectors, n_steps=n_steps, tol=tol)[0]


def singular_triplets(
  params: Any,
  vectors: SingularVectors,
  *,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> dict[str, SingularTriplet]:
  r"""The top singular triplet of every operator, as good as the vectors that are there.

  :math:`\sigma = \|W v\|` and :math:`u = Wv/\sigma` for the unit vector :math:`v` in the span
  of the k right vectors of `vectors` for which that is largest. So it is right for weights
  that have moved a little since, also where another singular value has become the largest.
  Two products of every weight, with k vectors and with the best of them; no iteration.

  Guarantee: an estimate from below, never an upper bound.

  Args:
    params: a pytree of arrays with the paths that `vectors` was made for.
    vectors: from `init_singular_vectors` or `update_singular_vectors`.
    layout: as in `init_singular_vectors`.
    layout_overrides: as in `init_singular_vectors`.

  Returns:
    ``{path: SingularTriplet}``. Each sigma is differentiable in params, :math:`d\sigma = u^T
    dW v`; u and v are constants, and 0 for a zero operator.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: vectors of other params or from another version.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}
    >>> vectors = lipjax.init_singular_vectors(params, start="converged")
    >>> norm = lambda params: lipjax.singular_triplets(params, vectors)["kernel"].sigma
    >>> jax.grad(norm)(params)["kernel"].round(3).tolist()  # u v^T
    [[1.0, 0.0], [0.0, 0.0]]
  """
  groups, leaves = _groups(params, layout, layout_overrides)
  check_vectors(vectors, groups, "singular_triplets")
  operators = {path: group.operator for group in groups for path in group.paths}
  return {
    path: triplet_at(operators[path], jnp.asarray(leaves[path]), v)
    for path, v in best_vectors(groups, leaves, vectors).items()
  }


def triplet_at(operator: LinearOperator, w: jax.Array, v: jax.Array) -> SingularTriplet:
  r"""The triplet at a right vector of any length, :math:`\sigma = \|W v\|/\|v\|` differentiable."""
  n_batch = len(operator.batch_shape(w.shape))

  def measure(w, v):
    if operator.has_closed_form:
      return SingularTriplet(*operator.closed_form(w))
    _, v = norm_and_direction(v, n_batch)
    sigma, u = norm_and_direction(operator.apply(w, v), n_batch)
    return SingularTriplet(sigma, u, v)

  constant = lax.stop_gradient(w)
  found = replicated_result(measure, constant)(constant, lax.stop_gradient(v))
  return differentiable_sigma(operator, w, clean(found, n_batch))


def _groups(params, layout, layout_overrides) -> tuple[list[Group], dict[str, Any]]:
  operators, leaves, _ = resolve_measured(params, layout, layout_overrides)
  return group_leaves(operators, leaves), leaves


def _with_top_triplet(block: SingularBlock, triplet: SingularTriplet) -> SingularBlock:
  """The block with its first values and vectors replaced, where a triplet has any."""
  n = triplet.sigma.ndim

  def put(old, new, n_axes):
    known = (triplet.sigma > 0).reshape(triplet.sigma.shape + (1,) * (old.ndim - n))
    is_first = (jnp.arange(old.shape[n]) == 0).reshape((-1,) + (1,) * n_axes)
    return jnp.where(known & is_first, jnp.expand_dims(new, n), old)

  sigma = put(block.sigma, triplet.sigma, 0)
  return SingularBlock(sigma, triplet.u, put(block.v, triplet.v, triplet.v.ndim - n))


def _check_arrays(leaves: Mapping[str, Any]) -> None:
  abstract = [path for path, leaf in leaves.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
  if abstract:
    msg = (
      f"start='converged' measures the weights, but {abstract} are shapes alone; give arrays,"
      " or start='random'."
    )
    raise ValueError(msg)
