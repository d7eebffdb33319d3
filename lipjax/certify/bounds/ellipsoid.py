"""The ellipsoid engine: multipliers, improved by gradient descent, and the bound they give."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from lipjax.certify.bounds import covariance, steps
from lipjax.certify.bounds.layers import Layer, Layers, over_layers, prepared
from lipjax.certify.fast import fast_jit
from lipjax.measure.gram import gram_upper_bound
from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import up
from lipjax.rounding.powers import times_power_of_two
from lipjax.rounding.products import underflow

#: Of Adam, with a cosine schedule: what took the fewest steps on a dozen networks.
RATE, MOMENTS = 0.2, (0.8, 0.95)
#: The share of their limit that multipliers start at, before the logistic function.
SHARE = 0.4
#: As near it as layers that are 1-Lipschitz by construction want theirs.
LIMIT = 9.0
#: Of certified ones, which may have no factor at all of it; of first ones, for less work.
CAPS, FIRST_CAPS = (float("inf"), LIMIT), (LIMIT,)
#: Times that a matrix is squared for its largest eigenvalue: with many steps there is time for an
#: estimate that sees less of the others, with few it is too sharp to descend on.
SQUARINGS, MANY_SQUARINGS, MANY_STEPS = 5, 7, 50
#: Of the objective, a logarithm: for less no later multipliers are taken, whose rounding is more.
GAIN = 1e-4
#: As shares of the largest: of an entry's movement, and of it times the multiplier.
LEAST, LEAST_PRODUCT = 1e-4, 0.1


class Multipliers(NamedTuple):
  r"""What chooses the ellipsoid after a layer.

  Attributes:
    shape: for each group the logarithm of √λ, up to a factor; there are as many as entries.
    share: the factor as a share of its limit, before the logistic function.
  """

  shape: jax.Array
  share: jax.Array


@fast_jit(static_argnums=(1,))
def ellipsoid_bound(found: Layers, n_steps: int) -> jax.Array:
  """An upper bound of all outputs together, after steps of gradient descent, any number of them."""
  layers, exponents = prepared(found.layers), found.exponents
  largest = jnp.max(exponents)
  units = times_power_of_two(jnp.ones(len(exponents), layers[-1].matrix.dtype), exponents - largest)
  squarings = MANY_SQUARINGS if n_steps >= MANY_STEPS else SQUARINGS
  size = lambda a: jnp.log(largest_of_all(covariance.scaled(a, units), squarings))
  a = certified(layers, improved(layers, size, n_steps), size, n_steps)
  # Where outputs are images, of any frequency: of one another they are independent.
  square = jnp.max(gram_upper_bound(covariance.scaled(a, units)))
  return root_above(up(square + underflow(1, a.shape[-2:], a.dtype)), largest)


def root_above(square: jax.Array, exponent: jax.Array) -> jax.Array:
  """The root, in units of a power of two."""
  bound = times_power_of_two(up(jnp.sqrt(square)), exponent)
  # A result too small to be normal may have become 0.
  bound = jnp.maximum(bound, jnp.finfo(bound.dtype).tiny)
  return jnp.where(jnp.isnan(bound), jnp.inf, bound)


def ellipsoid(
  layers: Sequence[Layer], multipliers: Sequence[Multipliers], *, is_certified: bool
) -> jax.Array:
  """A of the last layer's values."""

  def step(a: jax.Array, layers: Any) -> tuple[jax.Array, None]:
    of, layer, following = layers
    root = roots(a, layer, of)
    return steps.through(a, layer, root, following, is_certified=is_certified), None

  if layers[0].flips is not None:
    # Of all frequencies of images not everything is kept for derivatives.
    policy = jax.checkpoint_policies.save_only_these_names(covariance.SEEN)
    step = jax.checkpoint(step, policy=policy)  # pyright: ignore[reportPrivateImportUsage]
  start = steps.start(layers[0], is_certified=is_certified)
  inputs = list(zip(multipliers, _functions(layers[:-1]), layers[1:], strict=True))
  return over_layers(step, start, inputs)[0]


def certified(
  layers: Sequence[Layer],
  multipliers: Sequence[Multipliers],
  objective: Callable[[jax.Array], jax.Array],
  n_steps: int,
) -> jax.Array:
  """The last A, rounding included, for multipliers up to the best share of their limit."""

  capped = lambda cap: [x._replace(share=jnp.minimum(x.share, cap)) for x in multipliers]
  fixed = lax.stop_gradient(list(layers))
  caps = jnp.asarray(CAPS if n_steps > 1 else FIRST_CAPS, fixed[0].matrix.dtype)
  of = lambda cap: ellipsoid(fixed, lax.stop_gradient(capped(cap)), is_certified=True)
  found = lax.map(of, caps)
  sizes = jax.vmap(objective)(found)
  best = jnp.argmin(jnp.where(jnp.isnan(sizes), jnp.inf, sizes))
  return _derived(found[best], list(layers), capped(caps[best]))


@jax.custom_jvp
def _derived(found: jax.Array, layers: list[Layer], multipliers: list[Multipliers]) -> jax.Array:
  """The first of them, whose derivative is that without margins, which have none."""
  del layers, multipliers
  return found


@_derived.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  # A rule, so that nothing is compiled where nobody asks for derivatives.
  of = functools.partial(ellipsoid, is_certified=False)
  return primals[0], jax.jvp(of, primals[1:], tangents[1:])[1]


def improved(
  layers: Sequence[Layer],
  objective: Callable[[jax.Array], jax.Array],
  n_steps: int,
  first: list[Multipliers] | None = None,
) -> list[Multipliers]:
  """Multipliers that make the objective of the last A small, from the first on. No derivative.

  They, or the same ones near their limit, whichever are better: two more steps see which.
  """
  layers = lax.stop_gradient(list(layers))
  first = first_multipliers(layers) if first is None else first
  # One array, for which less is compiled.
  start, unravel = ravel_pytree(first)
  near = [x._replace(share=jnp.maximum(x.share, LIMIT)) for x in first]
  starts = jnp.stack([start, ravel_pytree(near)[0]])

  def value(flat: jax.Array) -> jax.Array:
    return objective(ellipsoid(layers, unravel(flat), is_certified=False))

  if n_steps <= 1:  # One would only see what they are worth.
    sizes = lax.map(value, starts)
    return unravel(starts[jnp.argmin(jnp.where(jnp.isnan(sizes), jnp.inf, sizes))])
  adam = optax.adam(optax.cosine_decay_schedule(RATE, n_steps), *MOMENTS)
  unmoved = adam.init(start)

  def step(carry: Any, i: jax.Array) -> tuple[Any, None]:
    now, state, best, least = carry
    now = jnp.where(i < len(starts), starts[jnp.minimum(i, len(starts) - 1)], now)
    found, slopes = jax.value_and_grad(value)(now)
    is_better = found < least - GAIN
    best, least = jnp.where(is_better, now, best), jnp.where(is_better, found, least)
    updates, moved = adam.update(jnp.where(jnp.isfinite(slopes), slopes, 0), state)
    state = jax.tree.map(lambda x, y: jnp.where(i < len(starts), x, y), unmoved, moved)
    further: Any = optax.apply_updates(now, updates)
    now = jnp.where(i < len(starts), best, further)
    return (now, state, best, least), None

  infinite = jnp.full((), jnp.inf, start.dtype)
  steps = jnp.arange(len(starts) + n_steps)
  carry, _ = lax.scan(step, (start, unmoved, start, infinite), steps)
  return unravel(carry[2])


def first_multipliers(layers: Sequence[Layer]) -> list[Multipliers]:
  r"""Near those of an ellipsoid that touches the worst direction, :math:`h_i |m_i|/|u_i|`.

  For how far an entry moves, u, stands how far it would if entries moved independently, and for how
  much it counts, m, the norms of the next matrix's columns: rescaling a neuron changes nothing.
  """

  def step(squares: jax.Array, following: Any) -> tuple[jax.Array, Multipliers]:
    layer, squared = following
    of_group = lambda x: jax.ops.segment_sum(x, layer.group, len(x))
    counts = of_group(jnp.square(layer.half) * jnp.sum(squared, axis=0))
    moves = of_group(jnp.square(layer.weights) * squares)
    at_least = lambda x, share: jnp.maximum(x, share * nonzero(jnp.max(x)))
    # What hardly moves or counts must not grow out of all proportion.
    moves = at_least(moves, LEAST)
    ratio = jnp.sqrt(at_least(counts * moves, LEAST_PRODUCT**2)) / moves
    squares = squares * jnp.square(layer.linear) + jnp.square(layer.half) * moves[layer.group]
    # The best share where all slopes are alike is h/(|c| + h).
    rest = jnp.sum(jnp.abs(layer.linear) * (layer.half > 0))
    rest = rest / nonzero(jnp.sum(layer.half * layer.weights))
    share = SHARE - jnp.log(jnp.clip(rest, 1e-2, 1e6))
    return covariance.dot(squared, squares), Multipliers(jnp.log(ratio) / 2, share)

  squared = lambda layer: _on_average(jnp.square(layer.matrix))
  start, matrices = jnp.sum(squared(layers[0]), axis=1), list(map(squared, layers[1:]))
  return over_layers(step, start, list(zip(_functions(layers[:-1]), matrices, strict=True)))[1]


def roots(a: jax.Array, layer: Layer, multipliers: Multipliers) -> jax.Array:
  r""":math:`\sqrt\lambda` for each entry, with B below the identity; 0 where a group has no h."""
  is_free = jax.ops.segment_max(layer.half, layer.group, a.shape[-1]) > 0
  root = jnp.where(is_free, jnp.exp(multipliers.shape), 0)[layer.group]
  found = largest_of_all(covariance.scaled(a, root * layer.weights))
  share = covariance.most(len(root), a.dtype) * jax.nn.sigmoid(multipliers.share)
  return jnp.sqrt(share / jnp.maximum(found, 1e-12)) * root


def largest_of_all(b: jax.Array, squarings: int = SQUARINGS) -> jax.Array:
  """Of a matrix, or of one for each frequency."""
  of = functools.partial(largest_eigenvalue, squarings=squarings)
  return of(b) if b.ndim == 2 else jnp.max(jax.vmap(of)(b))


def largest_eigenvalue(b: jax.Array, squarings: int = SQUARINGS) -> jax.Array:
  """Close to that of a symmetric positive matrix, and above it; differentiable.

  With k squarings and n = 2ᵏ the n-th root of the norm of the n-th power, of Frobenius' norm, which
  many eigenvalues that are alike make large, and the largest row sum; with the derivative of the
  trace of the power n + 1.
  """

  def square(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    power, above = carry
    power = covariance.dot(power, power)
    norm = nonzero(jnp.sqrt(jnp.sum(jnp.square(power))))
    return power / norm, above + jnp.log(norm) / 2.0 ** (k + 1)

  fixed = lax.stop_gradient(b)
  norm = nonzero(jnp.sqrt(jnp.sum(jnp.square(fixed))))
  power, above = lax.fori_loop(0, squarings, square, (fixed / norm, jnp.log(norm)))
  # Of a matrix of norm 1 it is at least the root of 1 / rows.
  row = jnp.clip(jnp.max(jnp.sum(jnp.abs(power), axis=1)), len(b) ** -0.5, 1)
  above = above + jnp.log(row) / 2**squarings
  quotient = jnp.sum(power * b)
  return quotient * lax.stop_gradient(jnp.exp(above) / nonzero(quotient))


def _functions(layers: Sequence[Layer]) -> list[Layer]:
  """Layers without matrices: the same shapes also for the first one."""
  nothing = dict.fromkeys(("matrix", "lost", "flips"))
  # Of the blocks it counts how many there are: after a pool there are fewer.
  blocks = [None if layer.blocks is None else layer.blocks[:1] for layer in layers]
  return [x._replace(**nothing, blocks=y) for x, y in zip(layers, blocks, strict=True)]


def _on_average(squares: jax.Array) -> jax.Array:
  """Of the matrices of frequencies, those that are alike together."""
  return squares if squares.ndim == 2 else jnp.mean(jnp.sum(squares, axis=0), axis=0)
