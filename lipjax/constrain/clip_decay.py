"""Decay towards the weights with clipped singular values."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from lipjax.constrain.clip_followed import followed_excess
from lipjax.constrain.leaves import map_leaves
from lipjax.constrain.projections import BY_WEIGHT, check_choice
from lipjax.constrain.radii import Radius, check_radius, initial_radii, radii_now
from lipjax.constrain.spectral_ball import SpectralBallState, measured_norms, operators_of
from lipjax.measure.options import check_k
from lipjax.measure.refresh import refresh
from lipjax.measure.sharding import replicated_like
from lipjax.measure.tracking import group_params, init_tracked
from lipjax.measure.vectors import check_vectors
from lipjax.operators.layouts import Layout
from lipjax.operators.mask import Mask, masked
from lipjax.operators.paths import float_leaves, map_float_leaves
from lipjax.operators.per_operator import PerOperator, numbers_by_path
from lipjax.operators.products import compute_dtype
from lipjax.operators.resolve import Overrides

ClipMethod = Literal["clip_svd", "clip_sign", "clip_top_k"]


def add_clip_decay(
  strength: optax.ScalarOrSchedule | PerOperator,
  limit: Radius,
  *,
  method: ClipMethod = "clip_svd",
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
  k: int | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds what pulls singular values above a limit down to it, and leaves the others alone.

  With :math:`\mathrm{clip}_\beta(USV^T) = U\min(S, \beta)V^T`, added to the update of ``w`` is
  :math:`\lambda(W - \mathrm{clip}_\beta(W))`, the gradient of
  :math:`\frac\lambda2\sum_i(\sigma_i - \beta)_+^2`: the hinge of `add_spectral_decay` for all
  singular values and not the first alone (of a `Convolution` that gradient in its kernel, each
  weight counted wherever the map uses it). After the optimizer's scaling and before the learning
  rate it is decoupled, :math:`W \leftarrow (1 - \eta\lambda)W + \eta\lambda\,
  \mathrm{clip}_\beta(W)`, as AdamW's decay is with a limit of 0::

    optax.chain(
      optax.contrib.scale_by_muon(),
      lipjax.add_clip_decay(0.1, 1.0),
      optax.scale_by_learning_rate(0.02),
    )

  Guarantee: none on the norm; where the updates before it have at most the spectral norm
  :math:`m`, and :math:`\eta\lambda \le 1`, norms settle at or below :math:`\beta + m/\lambda`;
  not with ``"clip_top_k"``, which sees only k singular values.

  Args:
    strength: :math:`\lambda`, a number, a schedule of the update count, or a `PerOperator`.
    limit: :math:`\beta`, a positive number, a schedule, a `PerOperator`, or ``"initial"``: what
      each spectral norm was in `init`.
    method: ``"clip_svd"``; ``"clip_sign"`` by matrix products alone, for accelerators, which
      holds in every dtype and however far outside weights are; or ``"clip_top_k"``, of the k
      largest singular values alone, which warm-started block power iteration follows from update
      to update: some products with a few vectors for large weights, and for convolutions too.
    mask: as in `optax.masked`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.
    k: of ``"clip_top_k"``, the only method that looks at it; as in `init_singular_vectors` when
      None.
    seed: of its random starting vectors.

  Returns:
    An optax transformation with state `SpectralBallState`. Updates keep their dtype. An SVD, or
    products of matrices, gather the weights of a mesh; ``"clip_top_k"`` does not.

  Raises:
    ValueError: an unknown method, a limit that is not positive, `k` below 1; in `init`, zeros
      that an initial limit would keep; in `update`, missing params, a state made for other ones
      or, but for ``"clip_top_k"``, an operator that is no matrix.
    LayoutError: from `init`, a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.diag(jnp.array([4.0, 2.0, 0.5]))}
    >>> tx = lipjax.add_clip_decay(0.5, limit=1.0)
    >>> updates, _ = tx.update({"kernel": jnp.zeros((3, 3))}, tx.init(params), params)
    >>> [f"{x:.3f}" for x in updates["kernel"].diagonal()]
    ['1.500', '0.500', '0.000']

  Reference:
    Newhouse et al. (2025), arXiv:2507.13338, for caps of singular values beside Muon.
  """
  name = "add_clip_decay"
  check_choice("method", method, get_args(ClipMethod))
  check_radius(limit, "limit")
  check_k(k)
  follows = method == "clip_top_k"

  def init(params):
    groups, leaves = group_params(params, layout, layout_overrides, name)
    count = replicated_like(leaves, jnp.zeros((), jnp.int32))
    vectors = init_tracked(params, groups, leaves, k, seed) if follows else None
    radii = initial_radii(limit, measured_norms, operators_of(groups), leaves)
    return SpectralBallState(count, vectors, radii)

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    groups, _ = group_params(params, layout, layout_overrides, name)
    operators, vectors = operators_of(groups), state.vectors
    leaves = {path: jnp.asarray(w) for path, w in float_leaves(params).items()}
    limits = radii_now(limit, state.count, state.radii, operators, leaves)
    strengths = numbers_by_path(strength, operators, leaves, state.count)
    wide = {path: leaves[path].astype(compute_dtype(leaves[path].dtype)) for path in operators}
    excess = {}
    if follows and groups:
      check_vectors(vectors, groups, name, k)
      vectors, _ = refresh(groups, leaves, vectors)
      excess = followed_excess(groups, leaves, vectors, limits)
    others = {path: op for path, op in operators.items() if path not in excess}
    clipped = map_leaves(BY_WEIGHT["clip_svd" if follows else method], others, wide, limits)
    excess |= {path: wide[path] - x for path, x in clipped.items()}

    def visit(path: str, g: Any) -> Any:
      if path not in operators:
        return g
      away = excess[path]
      # A leaf with a NaN has no singular values; where nothing is above, updates pass bit for bit.
      moves = jnp.isfinite(away) & (away != 0) & (strengths[path] != 0)
      return jnp.where(moves, (g + strengths[path] * away).astype(g.dtype), g)

    state = state._replace(count=optax.safe_increment(state.count), vectors=vectors)
    return map_float_leaves(visit, updates), state

  return masked(optax.GradientTransformationExtraArgs(init, update), mask)
