"""Training networks with and without a cap, all caps and seeds as one program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lipjax
from benchmarks.experiments.supervised_network import init_params, loss, weights_of
from lipjax.commands.demo_data import Split

BATCH = 100
LEARNING_RATE = 0.05
MOMENTUM = 0.9
CHUNK = 50  # Steps between two advances of the progress bar.


class Network(NamedTuple):
  """A network in training: raw weights, optimizer state, singular vectors if capped."""

  params: Any
  opt_state: Any
  vectors: Any


def train(
  caps: jax.Array | None,
  n_seeds: int,
  n_steps: int,
  data: Split,
  on_progress: Callable[[int], None] = lambda n: None,
) -> Any:
  """The weights that the trained networks are applied with, vectors frozen.

  Args:
    caps: one for each group of networks, shape (n,); None for one group without.
    n_seeds: seeds 0, 1, … of initialization and batches, shared by all caps.
    n_steps: of SGD.
    data: the training images.
    on_progress: called with the number of steps done since the last call.

  Returns:
    Weights with leading axes (cap, seed), the first of length 1 without caps.
  """
  keys = jax.vmap(jax.random.key)(np.arange(n_seeds))
  capped = caps is not None
  networks = jax.vmap(lambda params: start(params, capped))(_init_all(keys, data.images.shape[1]))
  n_groups = len(caps) if capped else 1
  networks = jax.tree.map(lambda x: jnp.broadcast_to(x, (n_groups, *x.shape)), networks)
  advance = jax.jit(_over_networks(_advance, capped), donate_argnums=2)
  for begin in range(0, n_steps, CHUNK):
    steps = np.arange(begin, min(begin + CHUNK, n_steps))
    networks = jax.block_until_ready(advance(caps, keys, networks, data, steps))
    on_progress(len(steps))
  weigh = lambda cap, _, network: weights_of(network.params, network.vectors, cap)
  return jax.jit(_over_networks(weigh, capped, n_shared=0))(caps, keys, networks)


def start(params: Any, capped: bool) -> Network:
  """A network before its first step."""
  vectors = lipjax.init_singular_vectors(params) if capped else None
  return Network(params, _sgd().init(params), vectors)


def train_step(cap: jax.Array | None, network: Network, batch: Split) -> Network:
  """One step of SGD; the vectors follow."""
  params, opt_state, vectors = network
  if cap is not None:
    vectors = lipjax.update_singular_vectors(params, vectors)
  gradients = jax.grad(lambda params: loss(weights_of(params, vectors, cap), batch))(params)
  updates, opt_state = _sgd().update(gradients, opt_state)
  return Network(optax.apply_updates(params, updates), opt_state, vectors)


def draw_batch(key: jax.Array, data: Split, step: Any) -> Split:
  """A batch drawn with replacement."""
  rows = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, len(data.labels))
  return jax.tree.map(lambda x: x[rows], data)


@functools.partial(jax.jit, static_argnums=1)
def _init_all(keys, n_pixels):
  return jax.vmap(lambda key: init_params(key, n_pixels))(keys)


def _advance(cap, key, network, data, steps):
  body = lambda network, step: (train_step(cap, network, draw_batch(key, data, step)), None)
  return jax.lax.scan(body, network, steps)[0]


def _sgd():
  return optax.sgd(LEARNING_RATE, momentum=MOMENTUM)


def _over_networks(fn, capped, n_shared=2):
  """`fn` of (cap, key, network, *shared), over caps and over seeds."""
  shared = (None,) * n_shared
  over_seeds = jax.vmap(fn, in_axes=(None, 0, 0, *shared))
  return jax.vmap(over_seeds, in_axes=(0 if capped else None, None, 0, *shared))
