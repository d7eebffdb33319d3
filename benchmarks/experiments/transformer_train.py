"""Training one transformer: a program for each method, with any rate, strength and seed."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.experiments.transformer_methods import transformation
from benchmarks.experiments.transformer_network import Transformer, loss

#: Of a training, in which the learning rate rises; then it falls along a cosine to zero.
WARMUP = 0.1


@dataclasses.dataclass(frozen=True)
class Program:
  """What is compiled.

  Attributes:
    network: what is trained.
    optimizer: its name.
    constraint: its name.
    batch: windows of a step.
    n_steps: of a training.
  """

  network: Transformer
  optimizer: str
  constraint: str
  batch: int
  n_steps: int


class Choice(NamedTuple):
  """What may differ between runs of one program."""

  rate: Any
  strength: Any
  seed: Any


class Trained(NamedTuple):
  """A network, the mean training loss of the last tenth of its steps, and seconds a step."""

  params: Any
  loss: float
  seconds: float


def train(program: Program, choice: Choice, text: np.ndarray) -> Trained:
  """From initialization to the end."""
  rate, strength, seed = choice
  args = Choice(np.float32(rate), np.float32(strength), np.int32(seed)), text
  compiled = _compiled(program, len(text))
  begin = time.perf_counter()
  params, losses = jax.block_until_ready(compiled(*args))
  seconds = (time.perf_counter() - begin) / program.n_steps
  return Trained(params, float(losses[-max(1, program.n_steps // 10) :].mean()), seconds)


@functools.cache
def _compiled(program: Program, n_characters: int) -> Any:
  """Apart from running it, which is timed."""
  number = lambda dtype: jax.ShapeDtypeStruct((), dtype)
  choice = Choice(number(np.float32), number(np.float32), number(np.int32))
  text = jax.ShapeDtypeStruct((n_characters,), np.int32)
  return jax.jit(functools.partial(_trained, program)).lower(choice, text).compile()


def _trained(program: Program, choice: Choice, text: jax.Array) -> tuple[Any, jax.Array]:
  key, network = jax.random.key(choice.seed), program.network
  params = network.init(key, jnp.zeros((1, network.length), int))["params"]
  tx = transformation(
    program.optimizer, program.constraint, params, choice.strength, _schedule(program, choice.rate)
  )

  def step(carry, key):
    params, state = carry
    windows = _drawn(program, key, text)
    value, slopes = jax.value_and_grad(functools.partial(loss, network))(params, windows)
    updates, state = tx.update(slopes, state, params)
    return (optax.apply_updates(params, updates), state), value

  keys = jax.random.split(jax.random.fold_in(key, 1), program.n_steps)
  (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
  return params, losses


def _drawn(program: Program, key: jax.Array, text: jax.Array) -> jax.Array:
  """Windows of the text, one character longer than the network reads."""
  length = program.network.length + 1
  begins = jax.random.randint(key, (program.batch, 1), 0, len(text) - length + 1)
  return text[begins + jnp.arange(length)]


def _schedule(program: Program, rate: Any) -> optax.Schedule:
  n_warmup = max(1, int(WARMUP * program.n_steps))

  def schedule(count):
    rising = (count + 1) / n_warmup
    along = (count - n_warmup) / max(program.n_steps - n_warmup, 1)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(along, 0, 1)))
    return rate * jnp.minimum(rising, falling)

  return schedule
