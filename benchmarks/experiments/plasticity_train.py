"""Training networks of ``plasticity`` on sequences of tasks, several at once."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.experiments.claims_measure import accuracy
from benchmarks.experiments.claims_networks import Network
from benchmarks.experiments.claims_train import Choice
from benchmarks.experiments.layers import exact_norms
from benchmarks.experiments.plasticity_methods import Method
from benchmarks.experiments.plasticity_tasks import Images, Setting, batches, task


class Budget(NamedTuple):
  """How much to train.

  Attributes:
    seeds: sequences that are reported for each method.
    tasks: in each sequence.
    steps: of each round of a task.
  """

  seeds: int
  tasks: int
  steps: int


@dataclasses.dataclass(frozen=True)
class Stream:
  """What networks are trained on.

  Attributes:
    network: what is trained.
    setting: what changes from task to task.
    images: to train and to measure on.
    budget: how long.
  """

  network: Network
  setting: Setting
  images: Images
  budget: Budget


class Measured(NamedTuple):
  """Of one sequence a row.

  Attributes:
    accuracy: at the end of each task, (sequences, tasks).
    sum_of_squares: of all weights but biases, after the last task.
    average_sigma: of the layers.
    stable_rank: likewise.
  """

  accuracy: np.ndarray
  sum_of_squares: np.ndarray
  average_sigma: np.ndarray
  stable_rank: np.ndarray


def train(stream: Stream, method: Method, runs: list[tuple[Choice, int]]) -> Measured:
  """All at once, one network each.

  Args:
    stream: on what.
    method: how.
    runs: the choice and the seed of each.
  """
  chosen, seeds = zip(*runs, strict=True)
  choices = Choice(*(jnp.array(x) for x in zip(*chosen, strict=True)))
  # For the network, its batches, and its tasks.
  starts, orders, sequences = _keys(jnp.array(seeds))
  network, setting, budget = stream.network, stream.setting, stream.budget
  state, shares = None, []
  for index in range(budget.tasks):
    if state is None or method.renew:
      params = _params(network, starts, index)
      state = params, _opt_state(method.optimizer, choices, params)
    for n in range(setting.rounds):
      place = index * setting.rounds + n
      some = _batches(setting, sequences, index, orders, place, stream.images, budget.steps)
      state = _advance(network, method.optimizer, choices, state, some)
    params, _ = state
    shares.append(np.asarray(_accuracy(network, setting, sequences, index, params, stream.images)))
  return Measured(np.stack(shares, axis=-1), *_weights(params))


@jax.jit
def _keys(seeds):
  return jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3), out_axes=1)(seeds)


@functools.partial(jax.jit, static_argnums=0)
def _params(network, keys, index):
  return jax.vmap(lambda key: network.init(jax.random.fold_in(key, index)))(keys)


# Apart from `_params`, whose random numbers are slow to compile, and the same for all methods.
@functools.partial(jax.jit, static_argnums=0)
def _opt_state(optimizer, choices, params):
  return jax.vmap(lambda choice, params: optimizer(choice).init(params))(choices, params)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _batches(setting, sequences, index, orders, place, images, n_steps):
  def one(sequence, order):
    split = task(setting, sequence, index, images).train
    return batches(jax.random.fold_in(order, place), split, n_steps)

  return jax.vmap(one)(sequences, orders)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(network, optimizer, choices, states, some):
  def loss(params, batch):
    scores = network.logits(params, batch.images)
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels).mean()

  def one(choice, state, some):
    def step(state, batch):
      params, opt_state = state
      gradients = jax.grad(loss)(params, batch)
      updates, opt_state = optimizer(choice).update(gradients, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, state, some)[0]

  return jax.vmap(one)(choices, states, some)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _accuracy(network, setting, sequences, index, params, images):
  def one(sequence, params):
    return accuracy(network, params, task(setting, sequence, index, images).test)

  return jax.vmap(one)(sequences, params)


def _weights(params: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """What `Measured` has of them: of networks along the first axis, by SVD."""
  sigmas = exact_norms(params)
  squares = {name: np.sum(np.square(params[name]["kernel"]), (-2, -1)) for name in sigmas}
  ranks = [squares[name] / sigma**2 for name, sigma in sigmas.items()]
  return np.sum([*squares.values()], 0), np.mean([*sigmas.values()], 0), np.mean(ranks, 0)
