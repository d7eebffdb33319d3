"""Projections of one leaf: what the functions on trees and the transformations share.

Each takes ``(operator, w, radius)`` and returns a leaf of the same shape and dtype, `w`
itself where it lies in the set. Slices of a stacked leaf are projected one by one. A
slice with a NaN or an infinity has no norm and is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from lipjax.constrain.polar import (
  PolarMethod,
  clip_by_sign,
  clip_by_svd,
  polar_factor,
  unless_rounding,
)
from lipjax.measure.frobenius import frobenius_norm
from lipjax.measure.gram import schatten_norm
from lipjax.measure.scaling import nonzero
from lipjax.measure.sharding import result_sharded
from lipjax.measure.triplet import SingularTriplet, clean
from lipjax.operators.base import LinearOperator
from lipjax.operators.dense import Dense
from lipjax.operators.diagonal import Diagonal
from lipjax.operators.products import compute_dtype, spread

#: Matrices with a smaller dimension up to this have their measured norm checked against the
#: Schatten norm of order 2¹⁰, which is less than 0.45 % above it, give or take rounding.
CHECKED_UP_TO, CHECK_SQUARINGS, CHECK_WIDTH = 64, 9, 0.005

LeafProjection = Callable[..., jax.Array]
Order = Literal["one", "infinity"]


def map_leaves(
  project: LeafProjection,
  operators: Mapping[str, LinearOperator],
  leaves: Mapping[str, Any],
  radii: Mapping[str, Any],
  by_path: Mapping[str, Any] | None = None,
) -> dict[str, jax.Array]:
  """``{path: project(operator, w, radii[path], by_path[path])}``, each sharded as its leaf."""
  projected = {}
  for path, operator in operators.items():
    w = jnp.asarray(leaves[path])
    if w.size == 0:
      projected[path] = w
      continue
    args = (w, jnp.asarray(radii[path]), *(() if by_path is None else (by_path[path],)))
    projected[path] = _projected(project, operator, *args)
  return projected


@functools.partial(jax.jit, static_argnames=("project", "operator"))
def _projected(project, operator, w, *rest):
  """One leaf, compiled once for leaves of one shape when called outside jit."""
  run = lambda w, *rest: project(operator, w, *rest).astype(w.dtype)
  return result_sharded(run, w, jax.typeof(w).sharding.spec)(w, *rest)


def scale_to(operator: LinearOperator, w: jax.Array, radius, norm: jax.Array) -> jax.Array:
  """`w` times ``radius / norm`` where the slice's `norm` exceeds the radius."""
  outside = norm > radius
  factor = radius / jnp.where(outside, norm, 1)
  axes = operator.stack_axes
  scaled = w.astype(compute_dtype(w.dtype)) * spread(factor, axes, w.ndim)
  return jnp.where(spread(outside, axes, w.ndim), scaled.astype(w.dtype), w)


def scale_onto(operator: LinearOperator, w: jax.Array, radius, norm: jax.Array) -> jax.Array:
  """`w` times ``radius / norm``; a slice without a norm or a finite radius is left as it is."""
  radius, axes = jnp.broadcast_to(radius, norm.shape), operator.stack_axes
  has_norm = (norm > 0) & jnp.isfinite(norm) & jnp.isfinite(radius)
  # The inverse of a small norm can overflow, and the product with it be normal.
  unit = w.astype(compute_dtype(w.dtype)) / spread(jnp.where(has_norm, norm, 1), axes, w.ndim)
  scaled = unit * spread(radius, axes, w.ndim)
  return jnp.where(spread(has_norm, axes, w.ndim), scaled.astype(w.dtype), w)


def scale_spectral(operator: LinearOperator, w: jax.Array, radius, triplet: SingularTriplet):
  """Scaled by the measured spectral norm."""
  return scale_to(operator, w, radius, triplet.sigma)


def scale_safely(operator: LinearOperator, w: jax.Array, radius, triplet: SingularTriplet):
  """Scaled by the measured norm, or by an upper bound where that shows it to be too low."""
  return scale_to(operator, w, radius, safe_norm(operator, w, triplet))


def onto_spectral_sphere(operator: LinearOperator, w: jax.Array, radius, triplet: SingularTriplet):
  """Scaled to the radius by the same norm."""
  return scale_onto(operator, w, radius, safe_norm(operator, w, triplet))


def safe_norm(operator: LinearOperator, w: jax.Array, triplet: SingularTriplet) -> jax.Array:
  """The measured norm, or an upper bound where that shows it to be too low."""
  sigma, dtype = triplet.sigma, compute_dtype(w.dtype)
  if isinstance(operator, Dense):
    matrix = operator.matrix(w.astype(dtype))
    if 1 < min(matrix.shape[-2:]) <= CHECKED_UP_TO:
      largest = nonzero(jnp.max(jnp.abs(matrix), axis=(-2, -1)))
      bound = largest * schatten_norm(CHECK_SQUARINGS, (matrix / largest[..., None, None],))
      sigma = jnp.where(bound > (1 + CHECK_WIDTH) * sigma, bound, sigma)
  return sigma


def scale_frobenius(operator: LinearOperator, w: jax.Array, radius) -> jax.Array:
  """Scaled by the Frobenius norm: the nearest point of the Frobenius ball."""
  return scale_to(operator, w, radius, frobenius_norm(operator, w))


def _scale_operator_norm(order: Order, operator: LinearOperator, w: jax.Array, radius) -> jax.Array:
  return scale_to(operator, w, radius, operator_norm_of_order(order, operator, w))


#: Scaled by the operator norm from and to :math:`\ell_1` or :math:`\ell_\infty`.
SCALE_BY_ORDER: dict[str, LeafProjection] = {
  order: functools.partial(_scale_operator_norm, order) for order in get_args(Order)
}


def operator_norm_of_order(order: Order, operator: LinearOperator, w: jax.Array) -> jax.Array:
  r"""Largest absolute column sum (``"one"``) or row sum (``"infinity"``) of each slice.

  :math:`|A|\mathbf 1` are the row sums, for any operator whose matrix has the weights for
  entries.
  """
  magnitude, n_batch = jnp.abs(w), len(operator.batch_shape(w.shape))
  if order == "infinity":
    x = jnp.ones(operator.input_shape(w.shape), compute_dtype(w.dtype))
    sums = operator.apply(magnitude, x)
  else:
    y = jnp.ones(operator.output_shape(w.shape), compute_dtype(w.dtype))
    sums = operator.adjoint(magnitude, y)
  return jnp.max(sums, axis=tuple(range(n_batch, sums.ndim)))


def clip_top(operator: LinearOperator, w: jax.Array, radius, triplet: SingularTriplet):
  r""":math:`w - (\sigma_1 - c)_+\,uv^T`: the top singular value alone is clipped."""
  if not isinstance(operator, Dense | Diagonal):
    raise ValueError(no_matrix(operator))
  n_batch = triplet.sigma.ndim
  sigma, u, v = clean(triplet, n_batch)
  excess = jnp.where(sigma > radius, sigma - radius, 0)
  v = spread(excess, tuple(range(n_batch)), v.ndim) * v
  moved = w.astype(v.dtype) - operator.weight_gradient(w.shape, v, u)
  outside = spread(sigma > radius, operator.stack_axes, w.ndim)
  return jnp.where(outside, moved.astype(w.dtype), w)


def clip_svd(operator: LinearOperator, w: jax.Array, radius) -> jax.Array:
  """Every singular value clipped, by SVD."""
  return on_matrices(clip_by_svd, _clip_entries, operator, w, radius)


def clip_sign(operator: LinearOperator, w: jax.Array, radius) -> jax.Array:
  """Every singular value clipped, by matrix products."""
  return on_matrices(clip_by_sign, _clip_entries, operator, w, radius)


def _orthogonal(method: PolarMethod, operator: LinearOperator, w: jax.Array, _) -> jax.Array:
  nearest = lambda x, _: unless_rounding(polar_factor(x, method), x, 2)
  return on_matrices(nearest, lambda w, _: jnp.sign(w), operator, w, 1)


#: Every nonzero singular value set to 1.
ORTHOGONAL_BY_METHOD: dict[str, LeafProjection] = {
  method: functools.partial(_orthogonal, method) for method in get_args(PolarMethod)
}


def _clip_entries(w, radius):
  return jnp.clip(w, -radius, radius)


def on_matrices(on_matrix, on_diagonal, operator, w, radius):
  """`on_matrix` on every slice of a matrix, `on_diagonal` on a diagonal's entries.

  The radius is one number, or one for each slice, and is broadcast against matrices and entries.
  """
  dtype = compute_dtype(w.dtype)
  wide, radius = w.astype(dtype), jnp.asarray(radius, dtype)
  if isinstance(operator, Diagonal):
    new = on_diagonal(wide, spread(radius, operator.stack_axes, w.ndim) if radius.ndim else radius)
  elif isinstance(operator, Dense):
    of_each = radius[..., None, None] if radius.ndim else radius
    new = operator.leaf(on_matrix(operator.matrix(wide), of_each), w.shape)
  else:
    raise ValueError(no_matrix(operator))
  return jnp.where(jnp.isnan(new), w, new.astype(w.dtype))


def no_matrix(operator: LinearOperator) -> str:
  """The message where singular values are to be changed one by one."""
  return (
    f"{operator!r} is no matrix: changing single singular values of it gives no weights of its"
    " kind. Use method='scale', or leave it out with mask=…."
  )
