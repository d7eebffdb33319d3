"""Training of the generator against a critic; all seeds of a method as one program."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lipjax
from benchmarks.experiments.wgan_methods import Method, generator_optimizer
from benchmarks.experiments.wgan_networks import (
  LATENT,
  Params,
  criticize,
  generate,
  init_critic,
  init_generator,
)

BATCH = 256
CRITIC_STEPS = 5


class Critic(NamedTuple):
  """A critic in training; `vectors` are None but for spectral normalization."""

  params: Params
  opt_state: Any
  vectors: lipjax.SingularVectors | None


class Generator(NamedTuple):
  """A generator in training."""

  params: Params
  opt_state: Any


class State(NamedTuple):
  """Both networks, of one seed or with the seeds as leading axis."""

  generator: Generator
  critic: Critic


def start_critic(method: Method, params: Params) -> Critic:
  """A critic before its first step, its singular vectors converged."""
  start = lambda: lipjax.init_singular_vectors(params, start="converged")
  return Critic(params, method.optimizer.init(params), start() if method.normalizes else None)


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
    vectors = lipjax.update_singular_vectors(params, vectors, n_steps=method.power_steps)
  return Critic(params, opt_state, vectors)


def generator_step(method: Method, state: State, key: jax.Array) -> Generator:
  """One update of the generator against the critic as it is."""
  generator, critic = state
  latents = jax.random.normal(key, (BATCH, LATENT))
  judge = effective(method, critic)
  gradients = jax.grad(lambda p: -jnp.mean(criticize(judge, generate(p, latents))))(
    generator.params
  )
  updates, opt_state = generator_optimizer().update(gradients, generator.opt_state)
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
  method: Method, n_seeds: int, moments: Sequence[int], images: jax.Array
) -> Iterator[tuple[int, State]]:
  """Yields ``(step, state)`` at every one of `moments`, the first of which is 0.

  Seeds 0, 1, … give the initialization and the batches, the same for every method.
  """
  keys = jax.vmap(jax.random.key)(np.arange(n_seeds))
  state = _start(method, *init_networks(keys, images.shape[1]))
  over_seeds = jax.vmap(functools.partial(_advance, method), in_axes=(0, 0, None, None, None))
  advance = jax.jit(over_seeds)
  yield 0, state
  for begin, end in itertools.pairwise(moments):
    state = jax.block_until_ready(advance(keys, state, images, begin, end))
    yield end, state


@functools.partial(jax.jit, static_argnums=1)
def init_networks(keys: jax.Array, n_pixels: int) -> tuple[Params, Params]:
  """A generator and a critic for every seed."""
  split = jax.vmap(jax.random.split)(keys)
  initialize = lambda init, i: jax.vmap(lambda key: init(key, n_pixels))(split[:, i])
  return initialize(init_generator, 0), initialize(init_critic, 1)


@functools.partial(jax.jit, static_argnums=0)
def _start(method, generator, critic) -> State:
  start = lambda params: start_critic(method, params)
  return State(
    Generator(generator, jax.vmap(generator_optimizer().init)(generator)), jax.vmap(start)(critic)
  )


def _advance(method, key, state, images, begin, end) -> State:
  def body(step, state):
    return train_step(method, state, images, jax.random.fold_in(key, step))

  return jax.lax.fori_loop(begin, end, body, state)
