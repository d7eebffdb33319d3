"""Training many small networks as one program.

The seeds of one strength are trained side by side, by `jax.vmap`, so that a step is a few
large matrix products. Strengths follow each other through the same compiled program, as do
methods that differ in their strengths only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import lipjax
from lipjax.commands.demo_data import Split
from lipjax.commands.demo_methods import Method, Strength, Transformation
from lipjax.commands.demo_model import init_params, loss

BATCH = 100
CHUNK = 10  # Steps between two advances of the progress bar.


class Networks(NamedTuple):
  """Networks in training: their parameters and optimizer states."""

  params: Any
  opt_state: Any


class Trained(NamedTuple):
  """The outcome of one method at one strength; the leading axes are the seeds.

  Attributes:
    params: of every network.
    history: ``{path: sigma}`` as tracked at every step, shape (seeds, steps).
    tracked: ``{path: sigma}`` of the final weights, moved on once more.
  """

  params: Any
  history: dict[str, np.ndarray]
  tracked: dict[str, np.ndarray]


def train(
  method: Method,
  strength: float,
  n_seeds: int,
  n_steps: int,
  data: Split,
  on_progress: Callable[[int], None] = lambda n: None,
) -> Trained:
  """Trains one network for each seed.

  Args:
    method: how to train.
    strength: of the method.
    n_seeds: seeds 0, 1, … of initialization and batches, shared by all strengths.
    n_steps: of SGD.
    data: the training images.
    on_progress: called with the number of steps done since the last call.

  Returns:
    The trained networks and their norms.
  """
  keys = jax.vmap(jax.random.key)(np.arange(n_seeds))
  networks = jax.vmap(lambda params: start(method.transformation, params))(_init_all(keys))
  advance = functools.partial(_advance_all, method.transformation, np.float32(strength), keys)
  chunks = []
  steps = np.arange(0)
  for begin in range(0, n_steps, CHUNK):
    steps = np.arange(begin, min(begin + CHUNK, n_steps))
    networks, norms = advance(networks, data, steps)
    chunks.append(jax.tree.map(np.asarray, norms))
    on_progress(len(steps))
  # An update measures the weights before it. The first norms of one more chunk are those of
  # the final weights; the rest of it is thrown away, which is cheaper than to compile anew.
  tracked = jax.tree.map(lambda x: np.asarray(x)[..., 0], advance(networks, data, steps)[1])
  history = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *chunks)
  return Trained(jax.tree.map(np.asarray, networks.params), history, tracked)


def start(transformation: Transformation, params: Any) -> Networks:
  """A network before its first step; no state depends on the strength."""
  return Networks(params, transformation(0.0).init(params))


def train_step(
  transformation: Transformation,
  strength: Strength,
  key: jax.Array,
  network: Networks,
  data: Split,
  step: Any,
) -> Networks:
  """One step of one network, on a batch drawn with replacement."""
  rows = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, len(data.labels))
  batch = jax.tree.map(lambda x: x[rows], data)
  gradients = jax.grad(loss)(network.params, batch)
  optimizer = transformation(strength)
  updates, opt_state = optimizer.update(gradients, network.opt_state, network.params)
  return Networks(optax.apply_updates(network.params, updates), opt_state)


_init_all = jax.jit(jax.vmap(init_params))


@functools.partial(jax.jit, static_argnums=0)
def _advance_all(transformation, strength, keys, networks, data, steps):
  """A chunk of steps; the norms are read from the optimizer state at each."""

  def advance(key, network):
    def body(network, step):
      network = train_step(transformation, strength, key, network, data, step)
      return network, lipjax.read_spectral_norms(network.opt_state)

    return jax.lax.scan(body, network, steps)

  return jax.vmap(advance)(keys, networks)
