"""The ellipsoid engine for pairs of outputs: how far their differences move."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lipjax.certify.bounds.ellipsoid import MOMENTS, certified, ellipsoid, improved, root_above
from lipjax.certify.bounds.layers import Layers, prepared
from lipjax.certify.fast import fast_jit
from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import unit_roundoff, up

#: Of the smooth maximum of pairs.
SHARPNESS = 8
#: Of multipliers that are carried on while weights change: steps before that, and Adam then.
CARRIED_FROM, _CARRIED = 50, optax.adam(0.03, *MOMENTS)


class Carried(NamedTuple):
  """Multipliers from one call to the next.

  Attributes:
    multipliers: of each layer that functions follow.
    adam: the state of Adam.
  """

  multipliers: Any
  adam: optax.OptState


@fast_jit(static_argnums=(1, 2, 3))
def ellipsoid_pairs(found: Layers, n: int, n_steps: int, is_each_alone: bool) -> jax.Array:
  """Upper bounds of the differences of two of n outputs, which are one node's, for all pairs.

  Args:
    found: their layers.
    n: how many outputs there are, at least 2.
    n_steps: of gradient descent for all pairs together.
    is_each_alone: whether then so many for each.
  """
  layers, pairs = prepared(found.layers), _Pairs(n)
  together = improved(layers, pairs.size, n_steps)
  bounds = pairs.above(certified(layers, together, pairs.size, n_steps))
  if is_each_alone:

    def alone(k: jax.Array) -> jax.Array:
      size = lambda a: pairs.logs(a)[k]
      own = improved(layers, size, n_steps, together)
      return jnp.fmin(pairs.above(certified(layers, own, size, n_steps))[k], bounds[k])

    bounds = lax.map(alone, jnp.arange(len(bounds)))
  return pairs.matrix(root_above(up(bounds), found.exponents[0]))


@fast_jit(static_argnums=(1, 2))
def ellipsoid_pairs_for(found: Layers, n: int, n_steps: int, margins: jax.Array) -> jax.Array:
  """As `ellipsoid_pairs`, with multipliers for the pair that moves most beside its margin.

  Args:
    found: their layers.
    n: how many outputs there are, at least 2.
    n_steps: of gradient descent.
    margins: (n, n), above 0, of pairs; large where a pair does not matter.
  """
  layers, pairs = prepared(found.layers), _Pairs(n)
  far = 2 * jnp.log(jnp.clip(margins[pairs.i, pairs.j], 1e-30, 1e30))
  size = lambda a: jax.nn.logsumexp(SHARPNESS * (pairs.logs(a) - far)) / SHARPNESS
  multipliers = improved(layers, size, n_steps)
  bounds = pairs.above(certified(layers, multipliers, size, n_steps))
  return pairs.matrix(root_above(up(bounds), found.exponents[0]))


@fast_jit(static_argnums=(1,))
def start_carrying(found: Layers, n: int) -> Carried:
  """Multipliers of `ellipsoid_pairs`, to be carried on."""
  layers = prepared(found.layers)
  multipliers = improved(layers, _Pairs(n).size, CARRIED_FROM)
  return Carried(multipliers, _CARRIED.init(jax.tree.map(jnp.zeros_like, multipliers)))


@fast_jit(static_argnums=(1, 2))
def ellipsoid_pairs_carried(
  found: Layers, n: int, n_steps: int, state: Carried
) -> tuple[jax.Array, Carried]:
  """As `ellipsoid_pairs`, with multipliers that gradient descent goes on from."""
  layers, pairs = prepared(found.layers), _Pairs(n)
  fixed = lax.stop_gradient(layers)
  for _ in range(n_steps):
    size = lambda x: pairs.size(ellipsoid(fixed, x, is_certified=False))
    slopes = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), jax.grad(size)(state[0]))
    updates, adam = _CARRIED.update(slopes, state.adam)
    state = Carried(optax.apply_updates(state.multipliers, updates), adam)
  bounds = pairs.above(certified(layers, state.multipliers, pairs.size, CARRIED_FROM))
  return pairs.matrix(root_above(up(bounds), found.exponents[0])), state


class _Pairs:
  """Of two of n outputs, from A of the outputs."""

  def __init__(self, n: int):
    self.n, (self.i, self.j) = n, np.triu_indices(n, 1)

  def squares(self, a: jax.Array) -> jax.Array:
    """Of how far differences of two move."""
    own = jnp.diag(a)
    return own[self.i] + own[self.j] - 2 * a[self.i, self.j]

  def above(self, a: jax.Array) -> jax.Array:
    """With rounding."""
    own = jnp.diag(a)
    rounding = 8 * unit_roundoff(a.dtype) * (own[self.i] + own[self.j])
    return jnp.maximum(self.squares(a) + rounding, jnp.finfo(a.dtype).tiny)

  def logs(self, a: jax.Array) -> jax.Array:
    """What is to be small."""
    return jnp.log(nonzero(self.squares(a)))

  def size(self, a: jax.Array) -> jax.Array:
    """For all pairs together."""
    return jnp.mean(self.logs(a))

  def matrix(self, of_pairs: jax.Array) -> jax.Array:
    """Symmetric, with zeros on the diagonal."""
    half = jnp.zeros((self.n, self.n), of_pairs.dtype).at[self.i, self.j].set(of_pairs)
    return half + half.T
