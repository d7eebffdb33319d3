"""A certified upper bound of a convolution's norm from its symbols, in the Fourier domain."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.gram import gram_upper_bound, n_gram_steps, schatten_norm
from lipjax.measure.scaling import nonzero
from lipjax.measure.starts import noise
from lipjax.measure.turns import in_turns
from lipjax.operators.symbol import Symbols, block_kernel, evaluate, symbols
from lipjax.operators.window import Window
from lipjax.rounding.errors import SMALL, gamma, pairwise_sum, pairwise_terms, up

#: Relative tolerance of the Schatten norm of a symbol.
TOLERANCE = 5e-4
#: Most steps of Lanczos bidiagonalization that tell the twists apart.
TWIST_STEPS = 12
#: Steps of Gram iteration that tell them apart, of small symbols or bidiagonal matrices.
TWIST_GRAM_STEPS = 5
#: Steps of Gram iteration for every symbol.
FIRST_STEPS = 6
#: The share of the angles that get all steps at once, and the least number.
TOP_SHARE, TOP_LEAST = 16, 2
#: Entries of the symbols that are held at once: as many as fit a cache.
AT_ONCE = 2**18


def symbol_upper_bound(windows: tuple[Window, ...], groups: int, kernel: jax.Array) -> jax.Array:
  r"""The largest norm of the symbols times the factor of `symbols`, rounding included.

  Estimates tell which twist of the ends has the smallest maximum: any is sound. A few steps
  of Gram iteration then bound every symbol, and more steps those that may be the largest,
  best first.

  Args:
    windows: the spatial axes.
    groups: of features.
    kernel: ``spatial + (inputs of a group, outputs)``, float32 or wider.
  """
  return _bound((windows, groups), kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _bound(shape: tuple[tuple[Window, ...], int], kernel: jax.Array) -> jax.Array:
  return _largest(shape, kernel)[0]


@_bound.defjvp
def _(shape, primals, tangents):
  """The derivative is that of the one symbol that the bound comes from."""
  bound, phases, group = _largest(shape, *lax.stop_gradient(primals))
  plan = symbols(shape[0])

  def of_one(kernel):
    block = block_kernel(plan, kernel, shape[1])
    real, imaginary = evaluate(block[group][None], phases)
    return plan.factor * gram_upper_bound(real[0], imaginary[0], n_steps=_n_steps(block))

  value, slope = jax.jvp(of_one, primals, tangents)
  # Once more differentiated, the bound is that symbol's as well.
  same = value - lax.stop_gradient(value)
  return bound + jnp.where(jnp.isfinite(bound), same, 0), slope


def _largest(shape, kernel):
  """The bound, and the phases and the group of the symbol it comes from."""
  windows, groups = shape
  plan = symbols(windows)
  block = block_kernel(plan, kernel, groups)
  phases = jnp.asarray(plan.phases, block.dtype)
  phases = phases[_smallest_twist(block, phases) if len(phases) > 1 else 0]
  norms = functools.partial(_norms, block)
  n_angles, n_steps = len(phases), _n_steps(block)
  n_top = min(max(n_angles // TOP_SHARE, TOP_LEAST), n_angles)
  if n_top == n_angles or n_steps <= FIRST_STEPS:
    found = norms(phases, n_steps)
  else:
    found = _best_first(norms, phases, n_steps, n_top)
  angle, group = jnp.divmod(jnp.argmax(found.ravel()), groups)
  sigma = up(jnp.max(found) + _rounding(plan, block))
  return up(sigma * plan.factor), phases[angle], group


def _best_first(norms, phases: jax.Array, n_steps: int, n_top: int) -> jax.Array:
  """Upper bounds of all symbols' norms, with all steps for those that can be the largest."""

  def undecided(state):
    found, known = state
    return jnp.max(jnp.where(known, -1, found)) > jnp.max(jnp.where(known, found, -1))

  def look_closer(state):
    found, known = state
    _, top = lax.top_k(jnp.max(jnp.where(known, -1, found), axis=1), n_top)
    return found.at[top].set(norms(phases[top], n_steps)), known.at[top].set(True)

  first = norms(phases, FIRST_STEPS)
  return lax.while_loop(undecided, look_closer, (first, jnp.zeros_like(first, bool)))[0]


def _smallest_twist(block: jax.Array, phases: jax.Array) -> jax.Array:
  """The alternative whose largest symbol seems to be the smallest."""
  estimates = _over_angles(_norm_estimates, block, phases.reshape((-1, phases.shape[-1])))
  return jnp.argmin(jnp.max(estimates.reshape((len(phases), -1)), axis=1))


def _norms(block: jax.Array, phases: jax.Array, n_steps: int) -> jax.Array:
  """Upper bounds of the symbols' norms, shape (angles, groups)."""
  return _over_angles(functools.partial(gram_upper_bound, n_steps=n_steps), block, phases)


def _n_steps(block: jax.Array) -> int:
  return n_gram_steps(min(block.shape[-2:]), TOLERANCE)


def _over_angles(norm: Callable[..., jax.Array], block: jax.Array, phases: jax.Array) -> jax.Array:
  """A function of real and imaginary part of the symbols at all angles, (angles, groups)."""
  at_once = max(AT_ONCE // math.prod((len(block), *block.shape[2:])), 1)
  of = lambda phases: norm(*evaluate(block, phases))
  n_loops = -(-len(phases) // at_once)
  return of(phases) if n_loops <= 1 else in_turns(of, [phases], n_loops)


def _norm_estimates(real: jax.Array, imaginary: jax.Array) -> jax.Array:
  """Estimates of the norms of complex matrices ``(…, m, n)``, each off by about the same."""
  largest = nonzero(jnp.maximum(jnp.max(jnp.abs(real)), jnp.max(jnp.abs(imaginary))))
  parts = real / largest, imaginary / largest
  if min(real.shape[-2:]) > SMALL:
    return largest * _lanczos_estimates(*parts)
  if real.shape[-2] < real.shape[-1]:
    parts = tuple(jnp.swapaxes(part, -2, -1) for part in parts)
  return largest * schatten_norm(TWIST_GRAM_STEPS, parts)


def _lanczos_estimates(real: jax.Array, imaginary: jax.Array) -> jax.Array:
  """By Lanczos bidiagonalization."""
  # A vector is two rows, real part above imaginary part: to multiply rows from the right
  # is fast on CPUs.
  dot = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
  turned = lambda x: jnp.concatenate([-x[..., 1:, :], x[..., :1, :]], axis=-2)
  norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))

  def apply(x):
    x, turned_x = dot("...sn,...mn->...sm", x, real), dot("...sn,...mn->...sm", x, imaginary)
    return x + turned(turned_x)

  def adjoint(y):
    y, turned_y = dot("...sm,...mn->...sn", y, real), dot("...sm,...mn->...sn", y, imaginary)
    return y - turned(turned_y)

  def step(carry, _):
    v, u, beta = carry
    u = apply(v) - beta * u
    alpha = norm(u)
    u = u / nonzero(alpha)
    v = adjoint(u) - alpha * v
    beta = norm(v)
    return (v / nonzero(beta), u, beta), (alpha, beta)

  *stack, m, n = real.shape
  k = min(m, n, TWIST_STEPS)
  v = noise((2, n), real.dtype)
  v = jnp.broadcast_to(v / norm(v), (*stack, 2, n))
  start = (v, jnp.zeros((*stack, 2, m), v.dtype), jnp.zeros((*stack, 1, 1), v.dtype))
  _, (alphas, betas) = lax.scan(step, start, length=k)
  alphas, betas = (jnp.moveaxis(x[..., 0, 0], 0, -1)[..., None] for x in (alphas, betas))
  bidiagonal = alphas * jnp.eye(k) + betas * jnp.eye(k, k=1)
  return schatten_norm(TWIST_GRAM_STEPS, (bidiagonal,))


def _rounding(plan: Symbols, block: jax.Array) -> jax.Array:
  r"""What rounding can add to a symbol's norm.

  Each entry is a sum of T products with cosines that were rounded once, so it is off by
  at most :math:`\gamma_{T+2}\sum_\tau|K_\tau|`, real and imaginary part each; and
  :math:`\|\sum_\tau|K_\tau|\|_F \le \sqrt T\|K\|_F`.
  """
  n = block.shape[1]
  largest = jnp.max(jnp.abs(block))
  scaled = jnp.square(block / jnp.where(largest > 0, largest, 1)).reshape((len(block), -1))
  norm = jnp.max(jnp.sqrt(pairwise_sum(scaled, -1))) * largest
  relative = math.sqrt(2 * n) * gamma(n + 2, block.dtype)
  return up(relative * norm, pairwise_terms(scaled.shape[-1]) + 4)
