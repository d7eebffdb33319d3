"""The optax transformation that keeps spectral norms within a ball."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from lipjax.constrain.keep import moved, updates_to
from lipjax.constrain.leaves import LeafProjection, map_leaves, scale_safely
from lipjax.constrain.projections import (
  BY_TRIPLET,
  BY_WEIGHT,
  SpectralMethod,
  check_spectral_method,
)
from lipjax.constrain.radii import Radius, check_radius, initial_radii, radii_now
from lipjax.measure.groups import Group, unstack_by_path
from lipjax.measure.norms import top_triplets
from lipjax.measure.options import check_k, check_steps
from lipjax.measure.refresh import TOL, refresh
from lipjax.measure.sharding import replicated_like
from lipjax.measure.tracking import group_params, init_tracked, top_triplets_of
from lipjax.measure.vectors import check_vectors
from lipjax.operators.base import LinearOperator
from lipjax.operators.layouts import Layout
from lipjax.operators.mask import Mask, masked
from lipjax.operators.resolve import Overrides


class SpectralBallState(NamedTuple):
  """State of `keep_params_in_spectral_ball`, and of `add_clip_decay`.

  Attributes:
    count: int32, updates so far.
    vectors: the `SingularVectors`; read them with `read_spectral_norms`. None for the
      methods that measure nothing.
    radii: by path, what norms were in `init`; None unless they are the radii.
  """

  count: Any
  vectors: Any
  radii: Any = None


def keep_params_in_spectral_ball(
  radius: Radius,
  *,
  method: SpectralMethod = "scale",
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
  tol: float | None = TOL,
  n_steps: int = 1,
  k: int | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps every operator's spectral norm at most `radius`; last in a chain.

  The updates are changed so that ``params + updates`` is `project_spectral_ball`, by
  the same `method`, of what it would have been::

    optax.chain(optax.adam(1e-3), lipjax.keep_params_in_spectral_ball(1.0))

  Guarantee: after `optax.apply_updates`, and where the params were inside before (from far
  outside, the first update is off by up to :math:`\epsilon` times their norm), with
  :math:`r` the smaller dimension and :math:`\epsilon` of the params' dtype:

  - ``scale``, the default: :math:`\sigma_1 \le c\,(1 + \mathrm{tol} + 6\epsilon\sqrt r)`,
    whatever the update was. Matrices of :math:`r \le 64` are checked against an upper bound
    (a Schatten norm). Larger ones and convolutions rest on the norm that block power
    iteration finds, with steps until its estimated error is below `tol`: no certificate,
    but it held after every one of thousands of random updates of any size.
  - ``clip_svd`` and ``clip_sign``: :math:`\sigma_1 \le c\,(1 + 6\epsilon\sqrt r)`.
  - ``clip_top`` only pulls: it moves the largest singular value of each update to
    :math:`c`, and the second largest may exceed it.

  Updates that stay inside pass bit for bit.

  Args:
    radius: :math:`c`, a positive number, a schedule of the update count, a `PerOperator`, or
      ``"initial"``: what each norm was in `init`.
    method: ``"scale"``, ``"clip_svd"``, ``"clip_sign"`` or ``"clip_top"``.
    mask: as in `optax.masked`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.
    tol: relative error of the norm at which the steps of an update end; None for `n_steps`
      and no more, which keeps nothing if the weights move fast. Unused, as what follows, by
      ``clip_svd`` and ``clip_sign``.
    n_steps: steps an update at least.
    k: singular values of each operator that are followed; as in `init_singular_vectors` when None.
    seed: of the random starting vectors.

  Returns:
    An optax transformation with state `SpectralBallState`. Updates keep their dtype.
    On a mesh ``scale`` and ``clip_top`` gather no weight; an SVD and matrix products do.

  Raises:
    ValueError: an unknown method, a radius that is not positive, `n_steps` or `k` below 1;
      in `update`, missing params or a state made for other ones.
    LayoutError: from `init`, a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> params = {"kernel": jnp.diag(jnp.array([4.0, 1.0]))}
    >>> tx = optax.chain(optax.sgd(0.1), lipjax.keep_params_in_spectral_ball(2.0))
    >>> updates, _ = tx.update({"kernel": jnp.zeros((2, 2))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].diagonal().round(4).tolist()
    [2.0, 0.5]

  Reference:
    Gouk et al. (2021), arXiv:1804.04368, Algorithm 2.
  """
  check_spectral_method(method)
  check_radius(radius)
  check_steps(n_steps, tol)
  check_k(k)
  by_weight, by_triplet = BY_WEIGHT.get(method), BY_TRIPLET | {"scale": scale_safely}
  kept = keep_spectral(
    "keep_params_in_spectral_ball",
    by_triplet[method] if by_weight is None else by_weight,
    radius,
    layout,
    layout_overrides,
    Followed(tol, n_steps, k, seed) if by_weight is None else None,
  )
  return masked(kept, mask)


class Followed(NamedTuple):
  """How singular vectors are followed: the options of the transformations that do so."""

  tol: float | None
  n_steps: int
  k: int | None
  seed: int


def keep_spectral(
  name: str,
  project: LeafProjection,
  radius: Radius,
  layout: Layout | None,
  layout_overrides: Overrides | None,
  followed: Followed | None,
) -> optax.GradientTransformationExtraArgs:
  """A transformation that projects every operator's leaf, by its triplet if it is `followed`."""

  def init(params):
    groups, leaves = group_params(params, layout, layout_overrides, name)
    count, vectors = replicated_like(leaves, jnp.zeros((), jnp.int32)), None
    if followed is not None:
      vectors = init_tracked(params, groups, leaves, followed.k, followed.seed)
    return SpectralBallState(
      count, vectors, initial_radii(radius, measured_norms, operators_of(groups), leaves)
    )

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    groups, _ = group_params(params, layout, layout_overrides, name)
    next_count = optax.safe_increment(state.count)
    if not groups:
      return updates, state._replace(count=next_count)
    operators, triplets = operators_of(groups), None
    candidates, vectors = moved(params, updates), state.vectors
    if followed is not None:
      vectors, triplets = _followed(name, groups, candidates, vectors, followed)
    radii = radii_now(radius, state.count, state.radii, operators, candidates)
    projected = map_leaves(project, operators, candidates, radii, triplets)
    updates = updates_to(params, updates, candidates, projected)
    return updates, SpectralBallState(next_count, vectors, state.radii)

  return optax.GradientTransformationExtraArgs(init, update)


def _followed(name, groups, candidates, vectors, followed: Followed):
  """The vectors of the weights as they will be, and each operator's top triplet."""
  check_vectors(vectors, groups, name, followed.k)
  # The error of the norm is an estimate: weights that jump take more of a margin.
  until = None if followed.tol is None else followed.tol / 2
  vectors, _ = refresh(groups, candidates, vectors, n_steps=followed.n_steps, tol=until)
  triplets = {}
  for group, triplet in zip(groups, top_triplets_of(vectors, groups), strict=True):
    triplets |= unstack_by_path(group, triplet)
  return vectors, triplets


def operators_of(groups: list[Group]) -> dict[str, LinearOperator]:
  """By path."""
  return {path: group.operator for group in groups for path in group.paths}


def measured_norms(
  operators: Mapping[str, LinearOperator], leaves: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """Spectral norms from scratch."""
  return {path: triplet.sigma for path, triplet in top_triplets(operators, leaves).items()}
