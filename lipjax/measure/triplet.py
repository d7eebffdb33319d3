"""The result of a measurement: a singular value with its vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from lipjax.operators.products import compute_dtype


class SingularTriplet(NamedTuple):
  r"""A singular value estimate with its left and right vector.

  Guarantee: an estimate. With unit `u` and `v`, :math:`\langle u, B(w,v)\rangle`
  is never above the true norm but for rounding, and is as close to it as the
  vectors are to the top singular vectors. It is not an upper bound.

  Attributes:
    sigma: shape ``batch_shape``, float32 or wider.
    u: output side, shape ``batch_shape + output dimensions``.
    v: input side, shape ``batch_shape + input dimensions``.
  """

  sigma: Any
  u: Any
  v: Any


def clean(triplet: SingularTriplet, n_batch: int) -> SingularTriplet:
  """The triplet as consumers get it: zero vectors where there is no direction.

  A zero operator has no singular vectors; with u = v = 0 every gradient formula
  gives 0 without a division. A non-finite leaf keeps its NaN sigma.
  """
  keep = triplet.sigma > 0

  def masked(x):
    return jnp.where(keep.reshape(keep.shape + (1,) * (x.ndim - n_batch)), x, 0)

  return SingularTriplet(triplet.sigma, masked(triplet.u), masked(triplet.v))


def triplet_dtype(w: Any) -> jnp.dtype:
  """The dtype of a leaf's triplet."""
  return compute_dtype(w.dtype)
