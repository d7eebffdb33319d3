"""Frobenius norms of a params tree by path."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.sharding import replicated_result
from lipjax.measure.triplet import triplet_dtype
from lipjax.operators.base import LinearOperator
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves
from lipjax.operators.resolve import Overrides, resolve_operators


def frobenius_norms(
  params: Any,
  *,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> dict[str, jax.Array]:
  r"""The Frobenius norm :math:`\|w\|_F = \sqrt{\sum w_i^2}` of every operator's leaf.

  Guarantee: exact but for rounding. For a matrix it is an upper bound of the
  spectral norm, at most :math:`\sqrt{\mathrm{rank}}` times it; for a
  `ReshapedKernel` it bounds the reshaped kernel's norm, not the convolution's.

  Args:
    params: a pytree of arrays.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    ``{path: norm}``, each of the operator's batch shape, float32 or wider, safe at
    any scale, with gradient 0 at zero.

  Raises:
    LayoutError: a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> float(lipjax.frobenius_norms({"kernel": jnp.full((2, 2), 3.0)})["kernel"])
    6.0
  """
  operators = resolve_operators(params, layout, layout_overrides)
  leaves = float_leaves(params)
  return {path: frobenius_norm(op, jnp.asarray(leaves[path])) for path, op in operators.items()}


@functools.partial(jax.jit, static_argnums=0)
def frobenius_norm(operator: LinearOperator, w: jax.Array) -> jax.Array:
  """The l2 norm over the axes of one slice, differentiable at zero."""
  w = w.astype(triplet_dtype(w))
  axes = tuple(a for a in range(w.ndim) if a not in operator.stack_axes)

  def norm(w):
    largest = lax.stop_gradient(jnp.max(jnp.abs(w), axis=axes, keepdims=True, initial=0))
    zero = largest == 0
    # Both branches of `where` are differentiated, so the argument of the root is
    # made 1 where the slice is zero, and the gradient there is exactly 0.
    scaled = jnp.where(zero, 0, w) / jnp.where(zero, 1, largest)
    total = jnp.sum(jnp.square(scaled), axis=axes, keepdims=True)
    root = jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, total))) * largest
    return jnp.squeeze(root, axes)

  return replicated_result(norm, w)(w)
