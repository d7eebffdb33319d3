"""Certified lower bounds of a norm: what an operator does to one vector."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.derivatives import differentiable_sigma
from lipjax.measure.norms import lanczos_slice
from lipjax.measure.scaling import nonzero
from lipjax.measure.triplet import clean
from lipjax.operators.base import LinearOperator
from lipjax.rounding.errors import down, gamma, pairwise_sum, pairwise_terms, up


def norm_lower_bound(operator: LinearOperator, w: jax.Array, key: jax.Array) -> jax.Array:
  """The norm at the vector that Lanczos finds, with the derivative of a singular value."""
  fixed = lax.stop_gradient(w)
  tol = 100 * float(jnp.finfo(w.dtype).eps)
  found = lanczos_slice(operator, fixed, tol=tol, key=key)
  found = found._replace(sigma=norm_at(operator, fixed, found.v))
  return differentiable_sigma(operator, w, clean(found, 0)).sigma


def norm_at(operator: LinearOperator, w: jax.Array, v: jax.Array) -> jax.Array:
  r"""A lower bound of :math:`\|B(w, v)\|/\|v\|`, and so of the norm, rounding included.

  The computed :math:`\hat y` is off by at most :math:`\gamma_n B(|w|, |v|)`, entry by
  entry. To keep n small the input is cut into parts, each of few terms an output, whose
  results are added one by one: with T products a feature and m features, about
  :math:`2\sqrt{Tm}` roundings instead of Tm.

  Args:
    operator: of one slice, without batch axes.
    w: its leaf, finite.
    v: any vector; 0 gives 0.

  Returns:
    A scalar.
  """
  # With entries near 1 no square over- or underflows.
  largest = nonzero(jnp.max(jnp.abs(w)))
  w, v = w / largest, v / nonzero(jnp.max(jnp.abs(v)))
  features, products = operator.terms(w.shape)
  n_parts = min(max(round(math.sqrt(features * products)), 1), features)
  part_of = (jnp.arange(v.size) % features % n_parts).reshape(v.shape)

  def add(carry, part):
    y, magnitude = carry
    x = jnp.where(part_of == part, v, 0)
    product = operator.apply_by_products
    more = product(w, x), product(jnp.abs(w), jnp.abs(x))
    return (y + more[0], magnitude + more[1]), None

  zero = jnp.zeros(operator.output_shape(w.shape), v.dtype)
  (y, magnitude), _ = lax.scan(add, (zero, zero), jnp.arange(n_parts))
  # Two more for the division of the leaf's entries and the last rounding.
  error = gamma(-(-features // n_parts) * products + n_parts + 2, v.dtype)
  norm = down(_norm(y), pairwise_terms(y.size) + 4)
  lost = error * up(_norm(magnitude), 2 * pairwise_terms(y.size) + features * products)
  length = up(_norm(v), pairwise_terms(v.size) + 4)
  relative = down(jnp.maximum(norm - lost, 0) / nonzero(length))
  return jnp.where(length > 0, relative * largest, 0)


def _norm(x: jax.Array) -> jax.Array:
  return jnp.sqrt(pairwise_sum(jnp.square(x).ravel(), 0))
