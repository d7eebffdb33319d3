"""The one place where a weight is multiplied with a vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def compute_dtype(dtype) -> jnp.dtype:
  """The dtype that norms of a leaf are computed in: float32, or float64 for float64."""
  return jnp.promote_types(dtype, jnp.float32)


def contract(
  w: jax.Array,
  x: jax.Array,
  *,
  over: tuple[int, ...],
  keep: tuple[int, ...],
  batch: tuple[int, ...],
) -> jax.Array:
  """Contracts `w` with `x` over the axes `over` of `w`, batched over `batch`.

  `x` has shape ``batch dims + over dims``; the result ``batch dims + keep dims``.
  Computed in `compute_dtype` at full precision: matrix units would round a
  float32 product to bfloat16 or TF32, an error of 1e-3 in a norm.

  On a process with one device this is a dot product. With several devices the
  weight may be sharded in a way that tracing cannot see, and XLA's partitioner
  gathers the whole weight for some dots (a column-sharded weight on a mesh with
  an unused axis is one); a multiplication and a sum keep the weight's sharding
  and reduce only vectors, so that form is used there.
  """
  dtype = compute_dtype(w.dtype)
  w, x = w.astype(dtype), x.astype(dtype)
  if jax.device_count() == 1:
    return jnp.einsum(
      w,
      list(range(w.ndim)),
      x,
      [*batch, *over],
      [*batch, *keep],
      precision=lax.Precision.HIGHEST,
    )
  product = w * spread(x, (*batch, *over), w.ndim)
  left = [axis for axis in range(w.ndim) if axis not in over]
  order = [left.index(axis) for axis in (*batch, *keep)]
  return jnp.sum(product, axis=over).transpose(order)


def outer(
  x: jax.Array, y: jax.Array, *, x_axes: tuple[int, ...], y_axes: tuple[int, ...], ndim: int
) -> jax.Array:
  """The outer product of `x` and `y`, each spread over its axes of the result.

  Axes in both lists (batch axes) are multiplied elementwise. Written as a
  product of broadcasts so that XLA fuses it into whatever reads the result.
  """
  return spread(x, x_axes, ndim) * spread(y, y_axes, ndim)


def spread(x: jax.Array, axes: tuple[int, ...], ndim: int) -> jax.Array:
  """Puts dimension i of `x` at `axes[i]` of an array of `ndim` dimensions."""
  order = sorted(range(len(axes)), key=lambda i: axes[i])
  missing = [axis for axis in range(ndim) if axis not in axes]
  return jnp.expand_dims(x.transpose(order), missing)
