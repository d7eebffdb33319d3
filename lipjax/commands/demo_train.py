"""Training many small networks as one program.

Every seed and every strength of a method is one network; two nested `jax.vmap`
turn them into one, so that a step is a few large matrix products and the whole
method compiles once. Leading axes are (strength, seed) everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import lipjax
from lipjax.commands.demo_data import Split
from lipjax.commands.demo_methods import Method, Strength
from lipjax.commands.demo_model import init_params, loss

BATCH = 100
CHUNK = 50  # Steps between two advances of the progress bar.


class Networks(NamedTuple):
  """Networks in training: their parameters and optimizer states."""

  params: Any
  opt_state: Any


class Trained(NamedTuple):
  """The outcome of one method.

  Attributes:
    params: of every network, leading axes (strength, seed).
    history: ``{path: sigma}`` as tracked at every step, shape (strength, seed, steps).
    tracked: ``{path: sigma}`` of the final weights, moved on once more.
  """

  params: Any
  history: dict[str, np.ndarray]
  tracked: dict[str, np.ndarray]


def train(
  method: Method,
  strengths: tuple[float, ...],
  n_seeds: int,
  n_steps: int,
  data: Split,
  on_progress: Callable[[int], None] = lambda n: None,
) -> Trained:
  """Trains one network for each strength and seed.

  Args:
    method: how to train.
    strengths: of the method.
    n_seeds: seeds 0, 1, … of initialization and batches, shared by all strengths.
    n_steps: of SGD.
    data: the training images.
    on_progress: called with the number of steps done since the last call.

  Returns:
    The trained networks and their norms.
  """
  keys = jax.vmap(jax.random.key)(np.arange(n_seeds))
  each = (np.array(strengths, np.float32), keys)
  networks = _repeat(jax.vmap(lambda p: start(method, p))(_init_all(keys)), len(strengths))
  advance = jax.jit(_over_networks(lambda *one: _advance(method, *one)))
  chunks = []
  steps = np.arange(0)
  for begin in range(0, n_steps, CHUNK):
    steps = np.arange(begin, min(begin + CHUNK, n_steps))
    networks, norms = jax.block_until_ready(advance(*each, networks, data, steps))
    chunks.append(norms)
    on_progress(len(steps))
  # An update measures the weights before it. The first norms of one more chunk are those of
  # the final weights; the rest of it is thrown away, which is cheaper than to compile anew.
  tracked = jax.tree.map(lambda x: np.asarray(x)[..., 0], advance(*each, networks, data, steps)[1])
  history = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *chunks)
  return Trained(jax.tree.map(np.asarray, networks.params), history, tracked)


def start(method: Method, params: Any) -> Networks:
  """A network before its first step; no state depends on the strength."""
  return Networks(params, method.transformation(0.0).init(params))


def train_step(
  method: Method, strength: Strength, key: jax.Array, network: Networks, data: Split, step: Any
) -> Networks:
  """One step of one network, on a batch drawn with replacement."""
  rows = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, len(data.labels))
  batch = jax.tree.map(lambda x: x[rows], data)
  gradients = jax.grad(loss)(network.params, batch)
  transformation = method.transformation(strength)
  updates, opt_state = transformation.update(gradients, network.opt_state, network.params)
  return Networks(optax.apply_updates(network.params, updates), opt_state)


def _advance(method, strength, key, network, data, steps):
  """A chunk of steps; the norms are read from the optimizer state at each."""

  def body(network, step):
    network = train_step(method, strength, key, network, data, step)
    return network, lipjax.read_spectral_norms(network.opt_state)

  return jax.lax.scan(body, network, steps)


_init_all = jax.jit(jax.vmap(init_params))


def _repeat(networks, n_strengths):
  """Every strength starts from the same weights. In NumPy, which has nothing to compile."""
  return jax.tree.map(lambda x: np.broadcast_to(x, (n_strengths, *x.shape)), networks)


def _over_networks(fn):
  """`fn` of (strength, key, network, data, steps), over strengths and over seeds."""
  over_seeds = jax.vmap(fn, in_axes=(None, 0, 0, None, None))
  return jax.vmap(over_seeds, in_axes=(0, None, 0, None, None))
