"""Optax transformations that keep params in a set; each goes last in a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from lipjax.constrain.leaves import (
  ORTHOGONAL_BY_METHOD,
  SCALE_BY_ORDER,
  LeafProjection,
  Order,
  map_leaves,
  scale_frobenius,
)
from lipjax.constrain.polar import PolarMethod
from lipjax.constrain.projections import (
  check_order,
  check_polar_method,
  check_radius,
  clip_weights,
)
from lipjax.measure.sharding import replicated_like
from lipjax.operators.layouts import Layout
from lipjax.operators.mask import Mask, masked
from lipjax.operators.paths import float_leaves, map_float_leaves
from lipjax.operators.resolve import Overrides, require_operators

Leaves = Mapping[str, jax.Array]


class KeepParamsState(NamedTuple):
  """State of the ``keep_params_…`` transformations that track nothing.

  Attributes:
    count: int32, updates so far; for a schedule of the radius.
  """

  count: Any


def keep_params_in_frobenius_ball(
  radius: optax.ScalarOrSchedule,
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
    radius: :math:`c`, a positive number or a schedule of the update count.
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
  return masked(_keep(name, scale_frobenius, radius, layout, layout_overrides), mask)


def keep_params_in_operator_norm_ball(
  radius: optax.ScalarOrSchedule,
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
    radius: :math:`c`, a positive number or a schedule of the update count.
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
  return masked(_keep(name, project, radius, layout, layout_overrides), mask)


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
  return masked(_keep(name, project, 1.0, layout, layout_overrides), mask)


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
  check_radius(limit, "limit")

  def project(params, leaves, limit):
    del params
    return clip_weights(leaves, limit)

  return masked(_last_in_chain(project, limit), mask)


def moved(params: Any, updates: Any) -> dict[str, jax.Array]:
  """Every floating-point leaf by path, as `optax.apply_updates` will leave it."""
  leaves = {path: jnp.asarray(w) for path, w in float_leaves(params).items()}
  changes = float_leaves(updates)
  return {
    path: (w + changes[path]).astype(w.dtype) if path in changes else w
    for path, w in leaves.items()
  }


def updates_to(params: Any, updates: Any, candidates: Leaves, projected: Leaves) -> Any:
  """Updates that lead from `params` to `projected`; the same ones where nothing moved.

  ``p + (q - p)`` can round past `q`. The difference is then shortened by one unit in
  its last place, which is enough: where it is inexact, it is of `q`'s size.
  """
  leaves = float_leaves(params)

  def visit(path, g):
    if path not in projected:
      return g
    p, q = jnp.asarray(leaves[path]), projected[path]
    wide = jnp.promote_types(p.dtype, g.dtype)
    step = (q.astype(wide) - p.astype(wide)).astype(g.dtype)
    beyond = jnp.abs((p + step).astype(p.dtype)) > jnp.abs(q)
    inward = jnp.where(q > 0, -jnp.inf, jnp.inf).astype(g.dtype)
    step = jnp.where(beyond, jnp.nextafter(step, inward), step)
    unmoved = (q == candidates[path]) | jnp.isnan(candidates[path])
    return jnp.where(unmoved, g, step)

  return map_float_leaves(visit, updates)


def _keep(
  name: str,
  leaf_projection: LeafProjection,
  radius: optax.ScalarOrSchedule,
  layout: Layout | None,
  layout_overrides: Overrides | None,
) -> optax.GradientTransformationExtraArgs:
  """A transformation that projects every operator's leaf."""

  def project(params, leaves, radius):
    operators = require_operators(params, layout, layout_overrides, name)
    return map_leaves(leaf_projection, operators, leaves, radius)

  check = lambda params: require_operators(params, layout, layout_overrides, name)
  return _last_in_chain(project, radius, check)


def _last_in_chain(
  project: Callable[[Any, Leaves, Any], dict[str, jax.Array]],
  radius: optax.ScalarOrSchedule,
  check: Callable[[Any], Any] = lambda params: None,
) -> optax.GradientTransformationExtraArgs:
  """A transformation whose ``params + updates`` is ``project(params, leaves, radius)``."""

  def init(params):
    check(params)
    return KeepParamsState(replicated_like(float_leaves(params), jnp.zeros((), jnp.int32)))

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    value = radius(state.count) if callable(radius) else radius
    candidates = moved(params, updates)
    projected = project(params, candidates, value)
    updates = updates_to(params, updates, candidates, projected)
    return updates, KeepParamsState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init, update)
