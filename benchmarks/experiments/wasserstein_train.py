"""Training the critics of one method, all seeds as one program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import lipjax
from benchmarks.experiments.wasserstein_critic import critic, draw, gap, init_params
from benchmarks.experiments.wasserstein_methods import PENALTY, Method

BATCH = 256
LEARNING_RATE = 1e-3
CHUNK = 100  # Steps between two advances of the progress bar.


class Critic(NamedTuple):
  """A critic in training: raw weights, optimizer state, singular vectors if normalized."""

  params: Any
  opt_state: Any
  vectors: Any


class Batch(NamedTuple):
  """What a step of training sees: points of both spheres, and a key for the penalty."""

  inner: jax.Array
  outer: jax.Array
  key: jax.Array


def train(
  method: Method, n_seeds: int, n_steps: int, on_progress: Callable[[int], None] = lambda n: None
) -> Critic:
  """The trained critics of seeds 0, 1, …, on a leading axis."""
  keys = jax.vmap(jax.random.key)(np.arange(n_seeds))
  critics = jax.vmap(functools.partial(start, method))(_init_all(keys))
  advance = jax.jit(jax.vmap(functools.partial(_advance, method)))
  for begin in range(0, n_steps, CHUNK):
    steps = np.arange(begin, min(begin + CHUNK, n_steps))
    critics = jax.block_until_ready(advance(critics, batches(keys, steps)))
    on_progress(len(steps))
  return critics


def start(method: Method, params: Any) -> Critic:
  """A critic before its first step."""
  vectors = lipjax.init_singular_vectors(params) if method.normalized else None
  return Critic(params, _optimizer(method).init(params), vectors)


@jax.jit
def batches(keys: jax.Array, steps: jax.Array) -> Batch:
  """Fresh samples, leading axes (seed, step), the same for every method."""

  def one(key, step):
    sample_key, penalty_key = jax.random.split(jax.random.fold_in(key, step))
    return Batch(*draw(sample_key, BATCH), penalty_key)

  return jax.vmap(lambda key: jax.vmap(functools.partial(one, key))(steps))(keys)


def train_step(method: Method, state: Critic, batch: Batch) -> Critic:
  """One step of Adam."""
  params, opt_state, vectors = state
  if method.normalized:
    vectors = lipjax.update_singular_vectors(params, vectors)

  def loss(params):
    weights = weights_of(method, params, vectors)
    f = functools.partial(critic, method.activation, weights)
    value = -gap(method.activation, weights, batch.inner, batch.outer)
    if method.sides:
      value += PENALTY * lipjax.wgan_gradient_penalty(f, *batch, sides=method.sides)
    return value

  updates, opt_state = _optimizer(method).update(jax.grad(loss)(params), opt_state, params)
  return Critic(optax.apply_updates(params, updates), opt_state, vectors)


def weights_of(method: Method, params: Any, vectors: Any) -> Any:
  """The weights that the critic is applied with."""
  return lipjax.spectral_normalize(params, vectors) if method.normalized else params


def _optimizer(method):
  return optax.chain(optax.adam(LEARNING_RATE), method.constraint)


def _advance(method, state, batch):
  body = lambda state, batch: (train_step(method, state, batch), None)
  return jax.lax.scan(body, state, batch)[0]


_init_all = jax.jit(jax.vmap(init_params))
