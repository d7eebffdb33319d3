"""The result of a measurement: a singular value with its vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.sharding import replicated_result
from lipjax.operators.base import LinearOperator
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


def differentiable_sigma(
  operator: LinearOperator, w: jax.Array, triplet: SingularTriplet
) -> SingularTriplet:
  r"""Attaches :math:`d\sigma = \langle u, B(dw, v)\rangle` to a measured triplet.

  `u` and `v` are constants of the derivative. This is the exact first
  derivative where the top singular value is simple, a subgradient at a tie, and
  0 for a zero operator, whose `u` and `v` are zero. Forward and reverse mode.
  Second derivatives would need those of `u` and `v` and are not provided.
  """
  constants = lax.stop_gradient(SingularTriplet(*triplet))

  @jax.custom_jvp
  def sigma_of(w, sigma, u, v):
    del w, u, v
    return sigma

  @sigma_of.defjvp
  def _(primals, tangents):
    w, sigma, u, v = primals
    dw = tangents[0]
    axes = tuple(range(len(operator.batch_shape(w.shape)), u.ndim))

    def along(dw, u, v):
      return jnp.sum(u * operator.apply(dw, v), axis=axes)

    return sigma, replicated_result(along, dw)(dw, u, v)

  return constants._replace(sigma=sigma_of(w, *constants))


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
