"""From trained networks to numbers: choosing the cap, accuracies, norms, time."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.experiments.layers import exact_norms
from benchmarks.experiments.supervised_data import Data
from benchmarks.experiments.supervised_network import accuracy, init_params
from benchmarks.experiments.supervised_train import draw_batch, start, train_step
from benchmarks.speed.timing import compare, compile_case


class Result(NamedTuple):
  """What is known of the networks of one cap.

  Attributes:
    cap: on every layer; None without.
    validation: accuracy of each seed, clean and under the attack, shape (2, seeds).
    accuracies: test accuracy at each of the data's radii, shape (radii, seeds).
    norms: ``{layer: σ}`` of the weights that the network is applied with, a seed each.
  """

  cap: float | None
  validation: np.ndarray
  accuracies: np.ndarray
  norms: dict[str, np.ndarray]

  @property
  def score(self) -> float:
    """What the cap is chosen by: the mean of clean and attacked accuracy."""
    return float(self.validation.mean())

  @property
  def product(self) -> np.ndarray:
    """Product of the layers' norms, of each seed."""
    return np.prod(list(self.norms.values()), axis=0)


def evaluate(caps: tuple[float, ...] | None, weights: Any, data: Data) -> list[Result]:
  """One result for each cap, from weights with leading axes (cap, seed)."""
  results = []
  for i, cap in enumerate(caps or (None,)):
    ours = jax.tree.map(lambda x, i=i: x[i], weights)
    validation = np.stack([_accuracy(ours, data.validation, r) for r in (0.0, data.radius)])
    test = np.stack([_accuracy(ours, data.test, radius) for radius in data.radii])
    results.append(Result(cap, validation, test, exact_norms(ours)))
  return results


def milliseconds(data: Data, cap: float, blocks: int) -> dict[str, dict[str, float]]:
  """Rows of `benchmarks.speed.timing.compare`: one network, one jitted step at a time."""
  key = jax.random.key(0)
  params = init_params(key, data.train.images.shape[1])
  batch = draw_batch(key, data.train, 0)
  cases = {}
  for name, one in (("none", None), ("capped", jnp.float32(cap))):
    # Donated, so that every case needs arrays of its own.
    carry = jax.tree.map(jnp.copy, start(params, one is not None))
    cases[name] = compile_case(functools.partial(train_step, one), carry, batch, donate=True)
  return compare(cases, baseline="none", blocks=blocks, steps=10, keep_carry=True)


@jax.jit
def _accuracy(weights, split, radius):
  return jax.vmap(lambda w: accuracy(w, split, radius))(weights)
