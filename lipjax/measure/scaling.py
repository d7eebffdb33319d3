"""Norms and directions that neither overflow nor divide by zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def norm_and_direction(x: jax.Array, n_batch: int) -> tuple[jax.Array, jax.Array]:
  """The l2 norm over all but the first `n_batch` axes, and ``x / norm``.

  The vector is divided by its largest magnitude before it is squared, so no
  square over- or underflows. A zero or empty vector has norm
  0 and direction 0; a vector with a NaN or an infinity has norm NaN.
  """
  axes = tuple(range(n_batch, x.ndim))
  largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
  scaled = x / nonzero(largest)
  length = jnp.sqrt(jnp.sum(jnp.square(scaled), axis=axes, keepdims=True))
  return jnp.squeeze(largest * length, axes), scaled / nonzero(length)


def nonzero(x: jax.Array) -> jax.Array:
  """`x`, with 1 in place of 0: the library's one guard of a division."""
  return jnp.where(x == 0, jnp.ones_like(x), x)


def usable_scale(sigma: jax.Array) -> jax.Array:
  """`sigma` where dividing a unit vector by it is safe, and 1 where it is not."""
  low = 128 * jnp.finfo(sigma.dtype).tiny
  usable = jnp.isfinite(sigma) & (sigma > 0)
  return jnp.where(usable, jnp.clip(sigma, low, 1 / low), jnp.ones_like(sigma))


@jax.custom_jvp
def reciprocal(x: jax.Array) -> jax.Array:
  """``1 / x``, whose derivative does not square `x`: 1e-30 has a square of 0 in float32."""
  return 1 / x


@reciprocal.defjvp
def _(primals, tangents):
  inverse = reciprocal(primals[0])
  return inverse, -(tangents[0] * inverse) * inverse
