"""The search for inputs at which the Jacobian of a function is large."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.lower.function import Function, Values
from lipjax.measure.scaling import norm_and_direction

#: Starts lie around the argument and around 0, at these multiples of the argument's scale.
SMALLEST_SCALE, LARGEST_SCALE = 1e-2, 1e2
#: Those on a domain lie around its middle, at multiples from this one to 1 of its extent.
SMALLEST_SHARE = 0.05
#: Steps of the walk, first and last, in its two halves, and of the climb; in the start's scale.
LONG_STEPS, SHORT_STEPS = (0.5, 0.02), (0.05, 0.001)
FIRST_CLIMB, SHORTEST_CLIMB = 0.1, 1e-5
#: Power iterations at the points found. (Lanczos' would need fewer and compiles for longer
#: than all the rest.)
N_POLISHING = 100


class _Best(NamedTuple):
  """The best point of a start, its right singular vector, and the way uphill from it."""

  sigma: jax.Array
  x: jax.Array
  v: jax.Array
  uphill: jax.Array


class _Schedule(NamedTuple):
  """What the steps do: jump to a new start, walk, return to the best point and climb from it."""

  length: jax.Array
  jumps: jax.Array
  returns: jax.Array
  climbs: jax.Array


def search(
  function: Function,
  values: Values,
  key: jax.Array,
  n_starts: int,
  n_steps: int,
  n_power_steps: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """For each start the best point, its top right singular vector, and the start's scale."""
  f = function.flat(values.consts)
  has_reverse = _has_reverse(f, values.x)
  # The softened derivative has reverse mode only.
  softened = function.flat(values.consts, soften=has_reverse)
  gradient = jax.grad if has_reverse else jax.jacfwd
  centers, spread, scale = _starts(values.x, values.around, n_starts)
  vector_key, key = jax.random.split(key)
  v = jax.vmap(unit)(jax.random.normal(vector_key, centers.shape, centers.dtype))

  def step(x, v, best, climb, start, scale, at):
    apply, adjoint = _jacobian(f, x, has_reverse)
    for _ in range(n_power_steps):
      v = unit(adjoint(unit(apply(v))))
    sigma, u = norm_and_direction(apply(v), 0)
    # Inputs move about as far as the starts do from each other; of the slope only the direction
    # in which it grows counts.
    slope = lambda x: jnp.vdot(u, jax.jvp(softened, (x,), (scale * v,))[1])
    now = _Best(sigma, x, v, unit(gradient(slope)(x)))
    better = sigma > best.sigma  # False where f is not defined
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)
    # Longer after a success, shorter after a failure, and long again in the end.
    climb = jnp.where(at.climbs, climb * jnp.where(better, 1.5, 0.5), climb)
    climb = jnp.where(climb < SHORTEST_CLIMB, FIRST_CLIMB, climb)
    astray = ~(jnp.isfinite(sigma) & (sigma > 0))
    base = jax.tree.map(lambda a, b: jnp.where(at.returns | astray, a, b), best, now)
    x = base.x + jnp.where(at.climbs, climb, at.length) * scale * base.uphill
    return jnp.where(at.jumps, start, x), jnp.where(jnp.any(base.v != 0), base.v, v), best, climb

  def body(state, inputs):
    x, v, best, climb = state
    index, at = inputs
    noise = jax.random.normal(jax.random.fold_in(key, index), centers.shape, centers.dtype)
    starts = centers + noise * spread
    return jax.vmap(step, (0, 0, 0, 0, 0, 0, None))(x, v, best, climb, starts, scale, at), None

  # The first two begin in their centers.
  noise = jax.random.normal(key, centers.shape, centers.dtype)
  x = centers + jnp.where(jnp.arange(n_starts)[:, None] < 2, 0, noise * spread)
  best = _Best(jnp.zeros(n_starts, x.dtype), x, v, jnp.zeros_like(x))
  state = x, v, best, jnp.full(n_starts, FIRST_CLIMB, x.dtype)
  schedule = jnp.arange(n_steps + 1), _schedule(n_steps, x.dtype)
  best = lax.scan(body, state, schedule)[0][2]

  def polish(x, v):
    apply, adjoint = _jacobian(f, x, has_reverse)
    polished = lax.fori_loop(0, N_POLISHING, lambda _, v: unit(adjoint(unit(apply(v)))), v)
    return jnp.where(jnp.any(polished != 0), polished, v)

  return best.x, jax.vmap(polish)(best.x, best.v), scale


def _schedule(n_steps: int, dtype) -> _Schedule:
  """For the n steps and one more, which only looks at the last point."""
  n_jumps = n_climb = n_steps // 8
  n_long = (n_steps - n_jumps - n_climb) // 2
  n_short = n_steps - n_jumps - n_climb - n_long
  walks = [jnp.geomspace(*ends, n) for ends, n in ((LONG_STEPS, n_long), (SHORT_STEPS, n_short))]
  index = jnp.arange(n_steps + 1)
  lengths = jnp.pad(jnp.concatenate(walks), (n_jumps, n_climb + 1)).astype(dtype)
  returns = (index == n_jumps) | (index == n_jumps + n_long) | (index >= n_steps - n_climb)
  return _Schedule(lengths, index < n_jumps, returns, index >= n_steps - n_climb)


def _starts(
  x: jax.Array, around: tuple[jax.Array, jax.Array] | None, n: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Centers, deviations of the entries of starts from them, and how long these are together.

  The centers are in turn `x` and the middle of the domain, which is 0 where there is none.
  """
  if around is None:
    typical = norm_and_direction(x, 0)[0]
    typical = jnp.where(jnp.isfinite(typical) & (typical > 0), typical, math.sqrt(x.size))
    middle, ends = jnp.zeros_like(x), (SMALLEST_SCALE, LARGEST_SCALE)
    spread = jnp.full_like(x, typical / math.sqrt(x.size))
  else:
    (middle, spread), ends = around, (SMALLEST_SHARE, 1)
    typical = norm_and_direction(spread, 0)[0]
  n_scales = -(-n // 2)
  scales = jnp.geomspace(*ends, n_scales, dtype=x.dtype)
  # The middle scale first: that of the first two, which begin in their centers.
  scales = jnp.roll(scales, -(n_scales // 2)).repeat(2)[:n]
  centers = jnp.where(jnp.arange(n)[:, None] % 2 == 0, x, middle)
  return centers, scales[:, None] * spread, scales * typical


def _has_reverse(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> bool:
  """Whether JAX can transpose the derivative; it cannot for a `while_loop`."""
  try:
    jax.eval_shape(jax.grad(lambda x: jnp.sum(f(x))), x)
  except (NotImplementedError, TypeError, ValueError):
    return False
  return True


def _jacobian(f, x, has_reverse):
  """The Jacobian at `x` and its adjoint, as functions of vectors."""
  if has_reverse:
    _, apply = jax.linearize(f, x)
    transposed = jax.linear_transpose(apply, x)
    return apply, lambda u: transposed(u)[0]
  apply = lambda v: jax.jvp(f, (x,), (v,))[1]
  return apply, lambda u: jax.jacfwd(lambda x: jnp.vdot(u, f(x)))(x)


def unit(x: jax.Array) -> jax.Array:
  """The direction; 0 for a vector that has none."""
  direction = norm_and_direction(x, 0)[1]
  return jnp.where(jnp.isfinite(direction).all(), direction, 0)
