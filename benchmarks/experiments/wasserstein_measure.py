"""What is measured of trained critics, and how long a step of training takes."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.experiments.layers import exact_norms
from benchmarks.experiments.wasserstein_critic import (
  DIMENSION,
  critic,
  draw,
  gap,
  init_params,
)
from benchmarks.experiments.wasserstein_methods import Method
from benchmarks.experiments.wasserstein_train import (
  Critic,
  batches,
  start,
  train_step,
  weights_of,
)
from benchmarks.speed.timing import compare, compile_case

N_POINTS = 20_000
FAR = 10.0  # The far box is [-FAR, FAR] in every coordinate.


class Result(NamedTuple):
  """One value a seed.

  Attributes:
    dual: mean f(Y) − mean f(X) on fresh samples.
    segment: largest gradient norm at points between an x and a y.
    far: largest gradient norm at points of the far box.
    norms: ``{layer: σ}`` of the weights that the critic is applied with.
  """

  dual: np.ndarray
  segment: np.ndarray
  far: np.ndarray
  norms: dict[str, np.ndarray]

  @property
  def product(self) -> np.ndarray:
    """Product of the layers' norms, of each seed."""
    return np.prod(list(self.norms.values()), axis=0)


def measure(method: Method, critics: Critic, n_points: int = N_POINTS) -> Result:
  """Measures trained critics, the norms of normalized ones measured anew after training."""
  weigh = lambda params: weights_of(method, params, vectors=None)
  weights = jax.jit(jax.vmap(weigh))(critics.params)
  values = map(np.asarray, _sampled(method.activation, n_points, weights))
  return Result(*values, exact_norms(weights))


def milliseconds(methods: tuple[Method, ...], blocks: int) -> dict[str, dict[str, float]]:
  """Rows of `benchmarks.speed.timing.compare`: one network, one jitted step at a time."""
  key = jax.random.key(0)
  params = jax.jit(init_params)(key)
  batch = jax.tree.map(lambda x: x[0, 0], batches(key[None], np.arange(1)))
  cases = {}
  for method in methods:
    # Donated, so that every case needs arrays of its own.
    carry = jax.tree.map(jnp.copy, start(method, params))
    step = functools.partial(train_step, method)
    cases[method.name] = compile_case(step, carry, batch, donate=True)
  return compare(cases, baseline=methods[0].name, blocks=blocks, steps=20, keep_carry=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sampled(activation, n_points, weights):
  """Dual estimate and largest gradients; every network sees the same points."""
  keys = jax.random.split(jax.random.key(1), 3)
  inner, outer = draw(keys[0], n_points)
  share = jax.random.uniform(keys[1], (n_points, 1))
  segment = share * inner + (1 - share) * outer
  far = jax.random.uniform(keys[2], (n_points, DIMENSION), minval=-FAR, maxval=FAR)

  def one(weights):
    gradients = jax.vmap(jax.grad(functools.partial(critic, activation, weights)))
    largest = lambda x: jnp.max(jnp.linalg.norm(gradients(x), axis=-1))
    return gap(activation, weights, inner, outer), largest(segment), largest(far)

  return jax.vmap(one)(weights)
