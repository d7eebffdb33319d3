r"""Derivatives of a measured singular value, of any order.

The first derivative, :math:`d\sigma = \langle u, dW\,v\rangle`, holds u and v fixed. The
second needs theirs, which follow from :math:`Wv = \sigma u` and :math:`W^Tu = \sigma v`:

.. math:: (\sigma^2 - W^TW)\,dv = \sigma q + W^Tp, \qquad \sigma\,du = p + W\,dv,

with :math:`p = dW v - d\sigma\,u` and :math:`q = dW^Tu - d\sigma\,v`, all at right angles to
u or v (Magnus 1985, Econometric Theory 1(2)). The system is solved by conjugate gradients,
two products with W each, and only when a second derivative is taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.scaling import nonzero, norm_and_direction
from lipjax.measure.sharding import replicated_result
from lipjax.measure.triplet import SingularTriplet
from lipjax.operators.base import LinearOperator

Product = Callable[[Any, jax.Array], jax.Array]
#: Steps of conjugate gradients at most.
MAX_STEPS = 1000


def differentiable_sigma(
  operator: LinearOperator, w: jax.Array, triplet: SingularTriplet, *, is_top: bool = True
) -> SingularTriplet:
  """`triplet` with a differentiable sigma; its u and v are constants of the derivative."""
  triplet = lax.stop_gradient(triplet)
  sigma = differentiable_norm(operator.apply, operator.adjoint, w, triplet, is_top=is_top)
  return triplet._replace(sigma=sigma)


def differentiable_norm(
  apply: Product,
  adjoint: Product,
  weights: Any,
  triplet: SingularTriplet,
  *,
  is_top: bool = True,
) -> jax.Array:
  """The measured sigma, with its derivatives in `weights`.

  Derivatives are exact where the triplet is and the top singular value is simple. At a tie,
  where there is no second derivative, the first is a subgradient and the second finite: what
  the other singular values make of it. A zero operator, with zero vectors, has derivative 0.

  Args:
    apply: of weights and an array shaped as ``triplet.v``, linear in the latter.
    adjoint: the adjoint, of weights and an array shaped as ``triplet.u``.
    weights: a pytree of arrays.
    triplet: what was measured; the axes of its sigma are batch axes, first in u and v.
    is_top: whether sigma is the largest singular value.
  """
  n_batch = triplet.sigma.ndim

  @jax.custom_jvp
  def sigma_of(weights, triplet):
    del weights
    return triplet.sigma

  @sigma_of.defjvp
  def _(primals, tangents):
    weights, _ = primals

    def along(weights, slope, u, v):
      return _dot(u, _moved(apply, weights, slope, v), n_batch)

    slope = replicated_result(along, weights)(weights, tangents[0], *vectors_of(*primals))
    return sigma_of(*primals), slope

  @jax.custom_jvp
  def vectors_of(weights, triplet):
    del weights
    return triplet.u, triplet.v

  @vectors_of.defjvp
  def _(primals, tangents):
    weights, _ = primals
    found = SingularTriplet(sigma_of(*primals), *vectors_of(*primals))
    solve = functools.partial(_vector_slopes, apply, adjoint, is_top)
    return (found.u, found.v), replicated_result(solve, weights)(weights, found, tangents[0])

  return sigma_of(weights, lax.stop_gradient(triplet))


def _vector_slopes(
  apply: Product,
  adjoint: Product,
  is_top: bool,
  weights: Any,
  triplet: SingularTriplet,
  slope: Any,
) -> tuple[jax.Array, jax.Array]:
  """Du and dv where the weights move by `slope`."""
  sigma, u, v = triplet
  n_batch = sigma.ndim
  # By sigma, so that no square leaves the range.
  inverse = lambda x: x / _spread(nonzero(sigma), x)
  along = lambda x, unit: x - _spread(_dot(x, unit, n_batch), x) * unit
  forward = lambda x: inverse(apply(weights, x))
  backward = lambda y: inverse(adjoint(weights, y))
  p = along(inverse(_moved(apply, weights, slope, v)), u)
  q = along(inverse(_moved(adjoint, weights, slope, u)), v)

  def system(x):
    return x - along(backward(forward(along(x, v))), v)

  def solve(system, b):
    if is_top:
      return _conjugate_gradients(system, b, n_batch)
    # Larger singular values make the system indefinite, but not its square.
    return _conjugate_gradients(lambda x: system(system(x)), system(b), n_batch)

  dv = lax.custom_linear_solve(system, along(q + backward(p), v), solve, symmetric=True)
  return along(p + forward(dv), u), dv


def _moved(product: Product, weights: Any, slope: Any, x: jax.Array) -> jax.Array:
  """The derivative of a product as the weights move by `slope`."""
  return jax.jvp(lambda weights: product(weights, x), (weights,), (slope,))[1]


def _conjugate_gradients(
  matvec: Callable[[jax.Array], jax.Array], b: jax.Array, n_batch: int
) -> jax.Array:
  """The least solution of a positive semidefinite system, one for every batch index.

  A direction in which the matrix is 0 but for rounding, as at a tie, ends it.
  """
  eps = float(jnp.finfo(b.dtype).eps)
  length, b = norm_and_direction(b, n_batch)
  square = (length > 0).astype(b.dtype)

  def is_unfinished(carry):
    i, *_, square = carry
    return (i < MAX_STEPS) & jnp.any(square > (8 * eps) ** 2)

  def advance(carry):
    i, x, r, p, square = carry
    image = matvec(p)
    curvature = _dot(p, image, n_batch)
    good = (square > 0) & (curvature > 32 * eps * _dot(p, p, n_batch))
    step = jnp.where(good, square / nonzero(curvature), 0)
    x = x + _spread(step, p) * p
    r = r - _spread(step, p) * image
    new = jnp.where(good, _dot(r, r, n_batch), 0)
    p = r + _spread(new / nonzero(square), p) * p
    return i + 1, x, r, p, new

  start = (jnp.zeros((), jnp.int32), jnp.zeros_like(b), b, b, square)
  return lax.while_loop(is_unfinished, advance, start)[1] * _spread(length, b)


def _dot(x: jax.Array, y: jax.Array, n_batch: int) -> jax.Array:
  return jnp.sum(x * y, axis=tuple(range(n_batch, x.ndim)))


def _spread(per_slice: jax.Array, like: jax.Array) -> jax.Array:
  return per_slice.reshape(per_slice.shape + (1,) * (like.ndim - per_slice.ndim))
