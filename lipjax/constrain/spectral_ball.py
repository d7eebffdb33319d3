"""The optax transformation that keeps spectral norms within a ball."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from lipjax.constrain.keep_params import moved, updates_to
from lipjax.constrain.leaves import map_leaves
from lipjax.constrain.projections import (
  BY_TRIPLET,
  BY_WEIGHT,
  SpectralMethod,
  check_radius,
  check_spectral_method,
)
from lipjax.measure.groups import unstack_triplets
from lipjax.measure.sharding import replicated_like
from lipjax.measure.tracking import advance, check_count, group_params, init_tracked
from lipjax.operators.layouts import Layout
from lipjax.operators.mask import Mask, masked
from lipjax.operators.resolve import Overrides


class SpectralBallState(NamedTuple):
  """State of `keep_params_in_spectral_ball`.

  Attributes:
    count: int32, updates so far.
    norms: the `TrackedNorms`; read them with `read_spectral_norms`. None for the methods
      that measure nothing.
  """

  count: Any
  norms: Any


def keep_params_in_spectral_ball(
  radius: optax.ScalarOrSchedule,
  *,
  method: SpectralMethod = "scale",
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
  n_steps: int = 1,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps every operator's spectral norm at most `radius`; last in a chain.

  The updates are changed so that ``params + updates`` is `project_spectral_ball`, by
  the same `method`, of what it would have been::

    optax.chain(optax.adam(1e-3), lipjax.keep_params_in_spectral_ball(1.0))

  Guarantee: ``clip_svd`` and ``clip_sign`` hold :math:`\sigma_1 \le
  c\,(1 + 6\epsilon\sqrt r)` after `optax.apply_updates`, with :math:`r` the smaller
  dimension and :math:`\epsilon` of the params' dtype, where the params were inside before
  (from far outside, the first update is off by up to :math:`\epsilon` times their norm).
  ``scale`` and ``clip_top`` know the norm from `n_steps` of warm-started power iteration an
  update: an estimate from below, so that the norm can exceed the radius by as much as it
  lags (most in the first updates).
  ``clip_top`` moves one singular value an update. Updates that stay inside pass bit for bit.

  Args:
    radius: :math:`c`, a positive number or a schedule of the update count.
    method: ``"scale"``, ``"clip_svd"``, ``"clip_sign"`` or ``"clip_top"``.
    mask: as in `optax.masked`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.
    n_steps: steps of power iteration an update; unused by ``clip_svd`` and ``clip_sign``.
    seed: of the random starting vectors.

  Returns:
    An optax transformation with state `SpectralBallState`. Updates keep their dtype.
    On a mesh ``scale`` and ``clip_top`` gather no weight; an SVD and matrix products do.

  Raises:
    ValueError: an unknown method, a radius that is not positive; in `update`, missing
      params or a state made for other ones.
    LayoutError: from `init`, a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> params = {"kernel": jnp.diag(jnp.array([4.0, 1.0]))}
    >>> tx = optax.chain(optax.sgd(0.1), lipjax.keep_params_in_spectral_ball(2.0, n_steps=20))
    >>> updates, _ = tx.update({"kernel": jnp.zeros((2, 2))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].diagonal().round(4).tolist()
    [2.0, 0.5]

  Reference:
    Gouk et al. (2021), arXiv:1804.04368, Algorithm 2.
  """
  check_spectral_method(method)
  check_radius(radius)
  check_count("n_steps", n_steps)
  name = "keep_params_in_spectral_ball"

  def init(params):
    groups, leaves = group_params(params, layout, layout_overrides, name)
    count = replicated_like(leaves, jnp.zeros((), jnp.int32))
    tracked = init_tracked(params, groups, leaves, seed) if method in BY_TRIPLET else None
    return SpectralBallState(count, tracked)

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    groups, _ = group_params(params, layout, layout_overrides, name)
    next_count = optax.safe_increment(state.count)
    if not groups:
      return updates, state._replace(count=next_count)
    operators = {path: group.operator for group in groups for path in group.paths}
    value = radius(state.count) if callable(radius) else radius
    candidates, norms = moved(params, updates), state.norms
    if method in BY_WEIGHT:
      projected = map_leaves(BY_WEIGHT[method], operators, candidates, value)
    else:
      stacked, norms = advance(norms, groups, candidates, n_steps, name)
      triplets = {}
      for group, triplet in zip(groups, stacked, strict=True):
        triplets |= unstack_triplets(group, triplet)
      projected = map_leaves(BY_TRIPLET[method], operators, candidates, value, triplets)
    updates = updates_to(params, updates, candidates, projected)
    return updates, SpectralBallState(next_count, norms)

  return masked(optax.GradientTransformationExtraArgs(init, update), mask)
