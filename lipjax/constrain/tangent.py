"""The part of updates that stays on a manifold to first order."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax._src.base import NO_PARAMS_MSG

from lipjax.constrain.leaves import no_matrix
from lipjax.constrain.projections import check_choice
from lipjax.measure.frobenius import frobenius_norm
from lipjax.measure.scaling import nonzero
from lipjax.measure.sharding import result_sharded
from lipjax.operators.base import LinearOperator
from lipjax.operators.dense import Dense
from lipjax.operators.diagonal import Diagonal
from lipjax.operators.layouts import Layout
from lipjax.operators.mask import Mask, masked
from lipjax.operators.paths import float_leaves, map_float_leaves
from lipjax.operators.products import compute_dtype, spread
from lipjax.operators.resolve import Overrides, require_operators

Manifold = Literal["orthogonal", "frobenius"]


def keep_updates_tangent(
  *,
  manifold: Manifold = "orthogonal",
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Takes away what of each update leads off a manifold that the weight is on.

  ==============  =====================================  =======================================
  `manifold`      weights with                           an update :math:`G` becomes
  ==============  =====================================  =======================================
  ``orthogonal``  orthonormal columns (Stiefel's), or    :math:`G - W\,\mathrm{sym}(W^TG)`
                  rows where these are fewer             (:math:`G - \mathrm{sym}(GW^T)\,W`)
  ``frobenius``   one Frobenius norm                     :math:`G - W\langle W, G\rangle/\|W\|_F^2`
  ==============  =====================================  =======================================

  with :math:`\mathrm{sym}(A) = (A + A^T)/2`. A transformation goes last that leads back onto the
  manifold: `keep_params_orthogonal`, a polar retraction, or `keep_params_on_sphere`. Before the
  optimizer it makes gradients Riemannian, and after momentum it makes a step of what momentum has
  gathered at other points::

    optax.chain(
      lipjax.keep_updates_tangent(),
      optax.trace(0.9),
      lipjax.keep_updates_tangent(),
      optax.scale_by_learning_rate(0.1),
      lipjax.keep_params_orthogonal(),
    )

  Guarantee: where the weight is on the manifold, :math:`W^TG + G^TW = 0` (or
  :math:`\langle W, G\rangle = 0`) up to a few roundings times :math:`\|G\|`.

  Args:
    manifold: ``"orthogonal"`` or ``"frobenius"``.
    mask: as in `optax.masked`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    An optax transformation without state. Updates keep their dtype; those of other leaves, and of
    a weight with a NaN or an infinity, pass as they are.

  Raises:
    ValueError: an unknown manifold; in `update`, missing params, or for ``"orthogonal"`` an
      operator that is no matrix.
    LayoutError: from `init`, a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.eye(2)}
    >>> tx = lipjax.keep_updates_tangent()
    >>> updates = {"kernel": jnp.array([[5.0, 3.0], [1.0, 0.0]])}
    >>> tx.update(updates, tx.init(params), params)[0]["kernel"].tolist()  # antisymmetric
    [[0.0, 1.0], [-1.0, 0.0]]

  Reference:
    Absil, Mahony & Sepulchre (2008), Optimization Algorithms on Matrix Manifolds, sections 3.6
    and 4.1.
  """
  check_choice("manifold", manifold, get_args(Manifold))
  name = "keep_updates_tangent"
  tangent = {"orthogonal": _orthogonal, "frobenius": _frobenius}[manifold]

  def init(params):
    require_operators(params, layout, layout_overrides, name)
    return optax.EmptyState()

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    operators = require_operators(params, layout, layout_overrides, name)
    leaves = float_leaves(params)

    def visit(path: str, g: Any) -> Any:
      if path not in operators or not g.size:
        return g
      dtype = compute_dtype(g.dtype)

      def of(g: jax.Array, w: jax.Array) -> jax.Array:
        found = tangent(operators[path], w.astype(dtype), g.astype(dtype))
        return jnp.where(jnp.isfinite(found), found, g).astype(g.dtype)

      return result_sharded(of, g, jax.typeof(g).sharding.spec)(g, jnp.asarray(leaves[path]))

    return map_float_leaves(visit, updates), state

  return masked(optax.GradientTransformationExtraArgs(init, update), mask)


def _orthogonal(operator: LinearOperator, w: jax.Array, g: jax.Array) -> jax.Array:
  if isinstance(operator, Diagonal):
    return g - w * w * g
  if not isinstance(operator, Dense):
    raise ValueError(no_matrix(operator))
  matrix, change = operator.matrix(w), operator.matrix(g)
  is_wide = matrix.shape[-1] > matrix.shape[-2]
  if is_wide:
    matrix, change = (jnp.swapaxes(x, -1, -2) for x in (matrix, change))
  inner = _dot(jnp.swapaxes(matrix, -1, -2), change)
  change = change - _dot(matrix, (inner + jnp.swapaxes(inner, -1, -2)) / 2)
  return operator.leaf(jnp.swapaxes(change, -1, -2) if is_wide else change, g.shape)


def _frobenius(operator: LinearOperator, w: jax.Array, g: jax.Array) -> jax.Array:
  axes = tuple(axis for axis in range(w.ndim) if axis not in operator.stack_axes)
  unit = w / spread(nonzero(frobenius_norm(operator, w)), operator.stack_axes, w.ndim)
  return g - unit * jnp.sum(unit * g, axis=axes, keepdims=True)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
