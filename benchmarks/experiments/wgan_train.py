"""Training of the generator against a critic; all seeds of a method as one program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lipjax
from benchmarks.experiments.wgan_methods import GENERATOR_RATE, POWER_STEPS, Method, adam
from benchmarks.experiments.wgan_networks import (
  LATENT,
  Params,
  criticize,
  generate,
  init_critic,
  init_generator,
)

BATCH = 64
CRITIC_STEPS = 5


class Critic(NamedTuple):
  """A critic in training; `vectors` are empty but for spectral normalization."""

  params: Params
  opt_state: Any
  vectors: dict[str, lipjax.SingularTriplet]


class Generator(NamedTuple):
  """A generator in training."""

  params: Params
  opt_state: Any


class State(NamedTuple):
  """Both networks, of one seed or with the seeds as leading axis."""

  generator: Generator
  critic: Critic


def start_critic(method: Method, key: jax.Array, n_pixels: int) -> Critic:
  """A critic before its first step, its singular vectors converged."""
  params = init_critic(key, n_pixels)
  start = lambda: lipjax.init_singular_vectors(params, start="converged")
  return Critic(params, method.optimizer.init(params), start() if method.normalizes else {})


def effective(method: Method, critic: Critic) -> Params:
  """The params that the critic is applied with."""
  if method.normalizes:
    return lipjax.spectral_normalize(critic.params, critic.vectors)
  return critic.params


def critic_step(
  method: Method, critic: Critic, real: jax.Array, fake: jax.Array, key: jax.Array
) -> Critic:
  """One update of the critic, then one of its singular vectors."""

  def loss(params):
    judge = lambda x: criticize(effective(method, critic._replace(params=params)), x)
    value = jnp.mean(judge(fake)) - jnp.mean(judge(real))
    if method.penalty:
      value += method.penalty * lipjax.wgan_gradient_penalty(judge, real, fake, key)
    return value

  gradients = jax.grad(loss)(critic.params)
  updates, opt_state = method.optimizer.update(gradients, critic.opt_state, critic.params)
  params, vectors = optax.apply_updates(critic.params, updates), critic.vectors
  if method.normalizes:
    # After the params, not before: the generator's step and the next of the critic then both
    # see vectors of the params as they are, where they would lag by an update of Adam.
    _, vectors = lipjax.update_singular_vectors(params, vectors, n_steps=POWER_STEPS)
  return Critic(params, opt_state, vectors)


def generator_step(method: Method, state: State, key: jax.Array) -> Generator:
  """One update of the generator against the critic as it is."""
  generator, critic = state
  latents = jax.random.normal(key, (BATCH, LATENT))
  judge = effective(method, critic)
  gradients = jax.grad(lambda p: -jnp.mean(criticize(judge, generate(p, latents))))(
    generator.params
  )
  updates, opt_state = adam(GENERATOR_RATE).update(gradients, generator.opt_state)
  return Generator(optax.apply_updates(generator.params, updates), opt_state)


def train_step(method: Method, state: State, images: jax.Array, key: jax.Array) -> State:
  """Several steps of the critic, each on a batch of its own, and one of the generator."""
  *critic_keys, generator_key = jax.random.split(key, CRITIC_STEPS + 1)

  def body(critic, key):
    rows_key, latent_key, mix_key = jax.random.split(key, 3)
    real = images[jax.random.randint(rows_key, (BATCH,), 0, len(images))]
    fake = generate(state.generator.params, jax.random.normal(latent_key, (BATCH, LATENT)))
    return critic_step(method, critic, real, fake, mix_key), None

  critic, _ = jax.lax.scan(body, state.critic, jnp.stack(critic_keys))
  state = state._replace(critic=critic)
  return state._replace(generator=generator_step(method, state, generator_key))


def train(
  method: Method, n_seeds: int, n_steps: int, every: int, images: jax.Array
) -> Iterator[tuple[int, State]]:
  """Yields ``(step, state)`` before the first step and after each `every`.

  Seeds 0, 1, … give the initialization and the batches, the same for every method.
  """
  keys = jax.vmap(jax.random.key)(np.arange(n_seeds))
  state = jax.jit(jax.vmap(lambda key: _start(method, key, images.shape[1])))(keys)
  advance = jax.jit(jax.vmap(_advance(method, every), in_axes=(0, 0, None, None)))
  yield 0, state
  for begin in range(0, n_steps, every):
    state = jax.block_until_ready(advance(keys, state, images, begin))
    yield begin + every, state


def _start(method, key, n_pixels) -> State:
  generator_key, critic_key = jax.random.split(key)
  params = init_generator(generator_key, n_pixels)
  critic = start_critic(method, critic_key, n_pixels)
  return State(Generator(params, adam(GENERATOR_RATE).init(params)), critic)


def _advance(method: Method, n_steps: int) -> Callable[..., State]:
  def advance(key, state, images, begin):
    def body(state, step):
      return train_step(method, state, images, jax.random.fold_in(key, step)), None

    return jax.lax.scan(body, state, begin + jnp.arange(n_steps))[0]

  return advance
