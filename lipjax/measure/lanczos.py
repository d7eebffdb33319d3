"""Golub–Kahan–Lanczos bidiagonalization: the engine for a cold measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.scaling import nonzero, norm_and_direction
from lipjax.measure.triplet import SingularTriplet

LinearMap = Callable[[jax.Array], jax.Array]

#: Largest Krylov basis kept; a longer iteration restarts from its best vector. Larger
#: ones save few steps and cost more in the small eigenproblem than they save.
MAX_BASIS = 32
#: Steps between two looks at the small problem.
BLOCK = 8


class _State(NamedTuple):
  """Bases V (input side) and U (output side), rows, and A Vᵀ = Uᵀ B."""

  v_rows: jax.Array
  u_rows: jax.Array
  bidiagonal: jax.Array
  next_v: jax.Array
  beta: jax.Array
  step: jax.Array
  n_steps: jax.Array
  done: jax.Array
  ritz: jax.Array


def golub_kahan_lanczos(
  apply: LinearMap,
  adjoint: LinearMap,
  start: jax.Array,
  output_size: int,
  *,
  tol: float,
  max_steps: int = 2_000,
) -> SingularTriplet:
  r"""The top singular triplet of a linear map on vectors.

  Builds orthonormal bases with :math:`A V = U B`, :math:`B` bidiagonal, with full
  reorthogonalization, and takes the top singular vector of :math:`B`. With
  residual :math:`r = \|A^T \hat u - \theta \hat v\|` the error of the Ritz value
  :math:`\theta` is at most about :math:`\min(r, r^2/(\theta_1-\theta_2))`; the
  iteration stops when that is below :math:`tol\cdot\theta`, restarting from its
  best vector whenever the basis is full.

  Guarantee: an estimate from below; :math:`\theta` is the norm of the map at a
  unit vector. The stopping rule is a residual estimate, not a certificate.

  Args:
    apply: the map, from vectors of ``start.shape`` to vectors of `output_size`.
    adjoint: its adjoint.
    start: a nonzero vector; random ones fail with probability zero.
    output_size: length of the map's output.
    tol: relative tolerance on sigma.
    max_steps: products with the map at which the iteration stops in any case.

  Returns:
    `SingularTriplet` of flat vectors.

  Reference:
    Golub & Kahan (1965), SIAM J. Numer. Anal. 2(2); Baglama & Reichel (2005),
    SIAM J. Sci. Comput. 27(1), for the restart and the residual.
  """
  k = min(MAX_BASIS, min(start.size, output_size) + 1)
  block = min(BLOCK, k)
  k = -(-k // block) * block
  # One power step puts the start into the row space, where a basis of
  # min(rows, columns) vectors is complete.
  start = norm_and_direction(adjoint(norm_and_direction(apply(start), 0)[1]), 0)[1]
  state = _empty(start, output_size, k)

  def block_of_steps(state):
    state = lax.cond(state.step >= k, _restart, lambda s: s, state)
    state = lax.fori_loop(0, block, lambda _, s: _extend(apply, adjoint, s), state)
    return _look(state, tol, max_steps)

  state = lax.while_loop(lambda s: ~s.done, block_of_steps, state)
  return _triplet_at(apply, state.ritz)


def largest_triplets(
  apply: LinearMap, adjoint: LinearMap, starts: jax.Array, output_size: int, *, tol: float
) -> SingularTriplet:
  """As many triplets as there are starts, largest first, with rows of vectors.

  One after the other, each at right angles to those before it, so that equal singular values
  are found as often as they are there.
  """

  def find(carry, start_and_index):
    right, largest = carry
    start, i = start_and_index
    off = lambda x: x - (right @ x) @ right
    found = golub_kahan_lanczos(
      lambda x: apply(off(x)), lambda y: off(adjoint(y)), off(start), output_size, tol=tol
    )
    largest = jnp.maximum(largest, found.sigma)
    # Where nothing but rounding is left, the vector is none to project by.
    is_found = found.sigma > 64 * jnp.finfo(start.dtype).eps * largest
    return (right.at[i].set(jnp.where(is_found, found.v, 0)), largest), found

  start = (jnp.zeros_like(starts), jnp.zeros((), starts.dtype))
  return lax.scan(find, start, (starts, jnp.arange(len(starts))))[1]


def krylov_triplet(
  apply: LinearMap, adjoint: LinearMap, start: jax.Array, output_size: int, n_steps: int
) -> SingularTriplet:
  r"""The top singular triplet seen from one Krylov space, without tolerance or restart.

  The space is that of :math:`A^TA` and :math:`A^TA\,b` for the start :math:`b`, of
  dimension `n_steps`; applying :math:`A^TA` once never lowers a Rayleigh quotient.

  Args:
    apply: the map, from vectors of ``start.shape`` to vectors of `output_size`.
    adjoint: its adjoint.
    start: :math:`b`, nonzero.
    output_size: length of the map's output.
    n_steps: dimension of the space.
  """
  start = norm_and_direction(adjoint(norm_and_direction(apply(start), 0)[1]), 0)[1]
  state = _empty(start, output_size, n_steps)
  state = lax.fori_loop(0, n_steps, lambda _, s: _extend(apply, adjoint, s), state)
  return _triplet_at(apply, _look(state, 0.0, n_steps).ritz)


def _triplet_at(apply: LinearMap, ritz: jax.Array) -> SingularTriplet:
  v = norm_and_direction(ritz, 0)[1]
  sigma, u = norm_and_direction(apply(v), 0)
  # A non-finite map has no norm; the iteration has stopped at once on it.
  return SingularTriplet(jnp.where(jnp.isfinite(ritz).all(), sigma, jnp.nan), u, v)


def _empty(start, output_size, k):
  dtype = start.dtype
  return _State(
    v_rows=jnp.zeros((k, start.size), dtype),
    u_rows=jnp.zeros((k, output_size), dtype),
    bidiagonal=jnp.zeros((k, k), dtype),
    next_v=start,
    beta=jnp.zeros((), dtype),
    step=jnp.zeros((), jnp.int32),
    n_steps=jnp.zeros((), jnp.int32),
    done=jnp.zeros((), bool),
    ritz=start,
  )


def _restart(state):
  fresh = _empty(state.ritz, state.u_rows.shape[1], state.v_rows.shape[0])
  return fresh._replace(n_steps=state.n_steps)


def _extend(apply, adjoint, s):
  """One step of bidiagonalization with both vectors reorthogonalized twice."""
  j = s.step
  product = apply(s.next_v)
  alpha, u = _orthogonal_direction(product, s.u_rows, s.bidiagonal)
  v_rows = s.v_rows.at[j].set(s.next_v)
  u_rows = s.u_rows.at[j].set(u)
  bidiagonal = s.bidiagonal.at[j, j].set(alpha)
  bidiagonal = jnp.where(j > 0, bidiagonal.at[j - 1, j].set(s.beta), bidiagonal)
  beta, next_v = _orthogonal_direction(adjoint(u), v_rows, bidiagonal)
  return s._replace(
    v_rows=v_rows,
    u_rows=u_rows,
    bidiagonal=bidiagonal,
    next_v=next_v,
    beta=beta,
    step=j + 1,
    n_steps=s.n_steps + 1,
  )


def _orthogonal_direction(x, basis, bidiagonal):
  """Length and direction of `x` off the basis, or zero where only rounding is left."""
  largest = jnp.max(jnp.abs(x), initial=0)
  x = x / nonzero(largest)
  for _ in range(2):  # twice is enough (Kahan; Parlett 1980, section 6-9)
    x = x - (basis @ x) @ basis
  # Nothing is above 1, and what squares to less than the dtype's range is rounding.
  length = jnp.sqrt(jnp.sum(jnp.square(x)))
  direction, length = x / nonzero(length), length * largest
  noise = 8 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(bidiagonal))
  exhausted = length <= noise
  return jnp.where(exhausted, 0, length), jnp.where(exhausted, 0, direction)


def _look(s, tol, max_steps):
  """Solves the small problem; decides whether its top triplet has converged."""
  scale = nonzero(jnp.max(jnp.abs(s.bidiagonal)))
  small = s.bidiagonal / scale
  values, vectors = jnp.linalg.eigh(small.T @ small)
  theta = jnp.sqrt(jnp.maximum(values[-1], 0))
  second = jnp.sqrt(jnp.maximum(values[-2], 0)) if values.size > 1 else 0 * theta
  right = vectors[:, -1]
  left = small @ right / nonzero(theta)
  residual = s.beta / scale * jnp.abs(left[s.step - 1])
  error = jnp.minimum(residual, residual**2 / nonzero(theta - second))
  finite = jnp.isfinite(scale) & jnp.isfinite(error)
  done = (error <= tol * theta) | ~finite | (s.n_steps >= max_steps)
  ritz = jnp.where(finite, right @ s.v_rows, jnp.nan)
  return s._replace(done=done, ritz=ritz)
