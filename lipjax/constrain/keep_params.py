"""Optax transformations that keep params in a set; each goes last in a chain."""

from __future__ import annotations

import functools
from typing import Any

import optax

from lipjax.constrain.keep import keep_leaves, last_in_chain
from lipjax.constrain.leaves import (
  ORTHOGONAL_BY_METHOD,
  SCALE_BY_ORDER,
  Order,
  operator_norm_of_order,
  scale_frobenius,
)
from lipjax.constrain.polar import PolarMethod
from lipjax.constrain.projections import check_order, check_polar_method, clip_weights
from lipjax.constrain.radii import Radius, check_positive, check_radius
from lipjax.measure.frobenius import frobenius_norm
from lipjax.operators.layouts import Layout
from lipjax.operators.mask import Mask, masked
from lipjax.operators.resolve import Overrides


def keep_params_in_frobenius_ball(
  radius: Radius,
  *,
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps every operator's Frobenius norm at most `radius`; last in a chain.

  The updates are changed so that ``params + updates`` is
  `project_frobenius_ball` of what it would have been::

    optax.chain(optax.adam(1e-3), lipjax.keep_params_in_frobenius_ball(3.0))

  Guarantee: :math:`\|W\|_F \le c\,(1 + 6\epsilon)` after `optax.apply_updates`,
  :math:`\epsilon` of the params' dtype, where the params were inside before. From far
  outside, the first update leaves a rounding error of up to :math:`\epsilon` times their
  norm. Updates that stay inside pass bit for bit.

  Args:
    radius: :math:`c`, a positive number, a schedule of the update count, a `PerOperator`, or
      ``"initial"``: what each norm was in `init`.
    mask: as in `optax.masked`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    An optax transformation with state `KeepParamsState`. Updates keep their dtype.

  Raises:
    ValueError: a radius that is not positive; no operator among the params; in `update`,
      missing params.
    LayoutError: from `init`, a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> params = {"kernel": jnp.full((2, 2), 3.0)}
    >>> tx = optax.chain(optax.sgd(0.0), lipjax.keep_params_in_frobenius_ball(1.0))
    >>> updates, _ = tx.update({"kernel": jnp.ones((2, 2))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [[0.5, 0.5], [0.5, 0.5]]
  """
  check_radius(radius)
  name = "keep_params_in_frobenius_ball"
  kept = keep_leaves(name, scale_frobenius, frobenius_norm, radius, layout, layout_overrides)
  return masked(kept, mask)


def keep_params_in_operator_norm_ball(
  radius: Radius,
  *,
  order: Order,
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps every :math:`\ell_1` or :math:`\ell_\infty` operator norm at most `radius`.

  As `keep_params_in_frobenius_ball`, with `project_operator_norm_ball`; last in a chain.

  Guarantee: :math:`\|A\|_p \le c\,(1 + 6\epsilon\sqrt n)` after `optax.apply_updates`, with
  :math:`n` terms in a sum, where the params were inside before.

  Args:
    radius: :math:`c`, a positive number, a schedule of the update count, a `PerOperator`, or
      ``"initial"``: what each norm was in `init`.
    order: ``"one"`` or ``"infinity"``.
    mask: as in `optax.masked`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    An optax transformation with state `KeepParamsState`. Updates keep their dtype.

  Raises:
    ValueError: an unknown order, a radius that is not positive; in `update`, missing params.
    LayoutError: from `init`, a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> params = {"kernel": jnp.full((2, 2), 1.0)}
    >>> tx = lipjax.keep_params_in_operator_norm_ball(1.0, order="infinity")
    >>> updates, _ = tx.update({"kernel": jnp.zeros((2, 2))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [[0.5, 0.5], [0.5, 0.5]]
  """
  check_order(order)
  check_radius(radius)
  name, project = "keep_params_in_operator_norm_ball", SCALE_BY_ORDER[order]
  norm = functools.partial(operator_norm_of_order, order)
  return masked(keep_leaves(name, project, norm, radius, layout, layout_overrides), mask)


def keep_params_orthogonal(
  *,
  method: PolarMethod = "newton_schulz",
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps every operator's rows or columns orthonormal; last in a chain.

  ``params + updates`` is `orthogonalize` of what it would have been. Mask scales of
  normalization layers: they would become signs.

  Guarantee: singular values within :math:`6\epsilon\sqrt r` of 1 after
  `optax.apply_updates`, where the params' norms were near 1 before (see `orthogonalize`
  for tiny ones).

  Args:
    method: ``"newton_schulz"`` or ``"bjorck"``.
    mask: as in `optax.masked`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    An optax transformation with state `KeepParamsState`. Updates keep their dtype.

  Raises:
    ValueError: an unknown method; in `update`, missing params.
    LayoutError: from `init`, a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> params = {"kernel": 3.0 * jnp.eye(2)}
    >>> tx = lipjax.keep_params_orthogonal()
    >>> updates, _ = tx.update({"kernel": jnp.zeros((2, 2))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].round(4).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  check_polar_method(method)
  name, project = "keep_params_orthogonal", ORTHOGONAL_BY_METHOD[method]
  kept = keep_leaves(name, project, frobenius_norm, 1.0, layout, layout_overrides)
  return masked(kept, mask)


def keep_params_in_box(
  limit: optax.ScalarOrSchedule, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps every weight in :math:`[-c, c]`, biases included; last in a chain.

  The weight clipping of the first WGAN: ``optax.chain(optax.rmsprop(5e-5),
  lipjax.keep_params_in_box(0.01))``.

  Guarantee: exact after `optax.apply_updates`, with :math:`c` rounded to each leaf's
  dtype. Updates that stay inside pass bit for bit.

  Args:
    limit: :math:`c`, a positive number or a schedule of the update count.
    mask: as in `optax.masked`.

  Returns:
    An optax transformation with state `KeepParamsState`. Updates keep their dtype.

  Raises:
    ValueError: a limit that is not positive; in `update`, missing params.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> params = {"bias": jnp.array([-0.5, 0.5])}
    >>> tx = lipjax.keep_params_in_box(1.0)
    >>> updates, _ = tx.update({"bias": jnp.array([0.25, 0.75])}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["bias"].tolist()
    [-0.25, 1.0]

  Reference:
    Arjovsky, Chintala & Bottou (2017), arXiv:1701.07875, Algorithm 1.
  """
  check_positive(limit, "limit")

  def project(params, leaves, state):
    del params
    now: Any = limit(state.count) if callable(limit) else limit
    return clip_weights(leaves, now)

  return masked(last_in_chain(project), mask)
