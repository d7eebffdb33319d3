"""What is measured of a WGAN: exact layer norms, the dual estimate, sliced distances."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.experiments.layers import exact_norms
from benchmarks.experiments.wgan_methods import Method
from benchmarks.experiments.wgan_networks import LATENT, criticize, generate
from benchmarks.experiments.wgan_train import State, effective

N_PROJECTIONS = 500


class Measured(NamedTuple):
  """One moment of training; arrays have the seeds as first axis.

  Attributes:
    norms: ``{layer: σ}`` of the critic as the generator sees it, by SVD in float64.
    dual: mean of the critic on held-out images minus that on generated ones.
    sliced: sliced Wasserstein distance of generated from held-out images.
  """

  norms: dict[str, np.ndarray]
  dual: np.ndarray
  sliced: np.ndarray

  @property
  def product(self) -> np.ndarray:
    """Product of the layers' norms, of each seed: a Lipschitz bound of the critic."""
    return np.prod(list(self.norms.values()), axis=0)

  @property
  def largest_deviation(self) -> float:
    """How far a norm of any layer and seed is from 1, the target of normalization."""
    return float(max(np.abs(sigma - 1).max() for sigma in self.norms.values()))


def measure(method: Method, state: State, held_out: jax.Array) -> Measured:
  """Measures all seeds; the same latents and projections at every call."""
  params = _effective(method, state.critic) if method.normalizes else state.critic.params
  dual, sliced = _measure(params, state.generator.params, held_out)
  return Measured(exact_norms(params), np.asarray(dual), np.asarray(sliced))


def sliced_distance(a: jax.Array, b: jax.Array) -> jax.Array:
  r"""The mean over directions :math:`\theta` of :math:`W_1(\theta^Ta, \theta^Tb)`.

  For two samples of one size :math:`W_1` on a line is the mean distance of the sorted values.

  Guarantee: exact for these samples and the 500 directions drawn, but for rounding; the
  distance of two finite samples of one distribution is not 0, so compare with such a pair.
  """
  theta = jax.random.normal(jax.random.key(0), (a.shape[-1], N_PROJECTIONS))
  theta /= jnp.linalg.norm(theta, axis=0)
  return jnp.mean(jnp.abs(jnp.sort(a @ theta, axis=0) - jnp.sort(b @ theta, axis=0)))


def floor(train: jax.Array, held_out: jax.Array, n_seeds: int) -> np.ndarray:
  """The distance of as many training images, drawn anew for each seed, from the held-out ones."""

  def one(key):
    rows = jax.random.choice(key, len(train), (len(held_out),), replace=False)
    return sliced_distance(train[rows], held_out)

  return np.asarray(jax.lax.map(jax.jit(one), jax.vmap(jax.random.key)(np.arange(n_seeds))))


def samples(state: State, n: int) -> np.ndarray:
  """`n` generated images of the first seed."""
  params = jax.tree.map(lambda x: x[0], state.generator.params)
  return np.asarray(generate(params, jax.random.normal(jax.random.key(1), (n, LATENT))))


@functools.partial(jax.jit, static_argnums=0)
def _effective(method, critics):
  return jax.vmap(lambda critic: effective(method, critic))(critics)


@jax.jit
def _measure(critics, generators, held_out):
  latents = jax.random.normal(jax.random.key(2), (len(held_out), LATENT))

  def one(networks):
    critic, generator = networks
    fake = generate(generator, latents)
    dual = jnp.mean(criticize(critic, held_out)) - jnp.mean(criticize(critic, fake))
    return dual, sliced_distance(fake, held_out)

  return jax.lax.map(one, (critics, generators))
