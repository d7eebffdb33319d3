"""Training one network of ``claims``: a program for each network, method and batch size."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import optax

import lipjax
from benchmarks.experiments.claims_methods import Method
from benchmarks.experiments.claims_networks import Network
from benchmarks.experiments.claims_tasks import rows_of_epoch
from lipjax.commands.demo_data import Split

MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Program:
  """What is compiled.

  Attributes:
    network: what is trained.
    method: how.
    batch: images of a step.
    n_steps: of a training, for the schedule.
  """

  network: Network
  method: Method
  batch: int
  n_steps: int


class Choice(NamedTuple):
  """What may differ between runs of one program: learning rate and strength."""

  rate: Any
  strength: Any


class State(NamedTuple):
  """A network in training: raw weights, optimizer state, singular vectors if capped."""

  params: Any
  opt_state: Any
  vectors: Any


def train(program: Program, choice: Choice, seed: int, data: Split) -> Any:
  """The weights that the trained network is applied with, vectors frozen."""
  key = jax.random.key(seed)
  state = start(program, choice, key)
  n_epochs = program.n_steps // (len(data.labels) // program.batch)
  for epoch in range(n_epochs):
    state = _epoch(program, choice, jax.random.fold_in(key, epoch), data, state)
  return _weights(program, state.params, state.vectors, choice.strength)


def start(program: Program, choice: Choice, key: jax.Array) -> State:
  """A network before its first step."""
  network = program.network
  params = network.init(key)
  capped = program.method.cap
  vectors = lipjax.init_singular_vectors(params, layout=network.layout) if capped else None
  return State(params, _optimizer(program, choice).init(params), vectors)


def train_step(program: Program, choice: Choice, state: State, batch: Split) -> State:
  """One step of SGD; the vectors follow."""
  method, (params, opt_state, vectors) = program.method, state
  if method.cap:
    vectors = lipjax.update_singular_vectors(params, vectors, layout=program.network.layout)

  def loss(params):
    weights = _weights(program, params, vectors, choice.strength)
    return method.loss(weights, batch, choice.strength)

  gradients = jax.grad(loss)(params)
  updates, opt_state = _optimizer(program, choice).update(gradients, opt_state, params)
  return State(optax.apply_updates(params, updates), opt_state, vectors)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _epoch(program, choice, key, data, state):
  def step(state, rows):
    return train_step(program, choice, state, Split(*(x[rows] for x in data))), None

  rows = rows_of_epoch(key, len(data.labels), program.batch)
  return jax.lax.scan(step, state, rows)[0]


def _optimizer(program, choice):
  decline = optax.cosine_decay_schedule(1.0, program.n_steps)
  sgd = optax.sgd(lambda step: choice.rate * decline(step), momentum=MOMENTUM)
  return optax.chain(program.method.decay(choice.strength), sgd)


def _weights(program, params, vectors, strength):
  """Those that the network is applied with; the raw ones without a cap."""
  if not program.method.cap:
    return params
  layout = program.network.layout
  return lipjax.spectral_normalize(params, vectors, mode="cap", target=strength, layout=layout)
