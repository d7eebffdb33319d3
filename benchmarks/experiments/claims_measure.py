"""From a trained network of ``claims`` to numbers."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lipjax
from benchmarks.experiments.claims_networks import Network
from benchmarks.experiments.supervised_data import Data
from benchmarks.experiments.supervised_network import survives
from lipjax.commands.demo_data import Split
from lipjax.commands.demo_statistics import Estimate, estimate

#: Standard deviation of Gaussian noise on every pixel.
NOISE = {"digits": 0.3, "CIFAR-10": 0.1}
NOISE_DRAWS = 10
SHARES = "train", "test", "attacked", "noisy"


class Measured(NamedTuple):
  """Of one network; or of one for each seed, as arrays.

  Attributes:
    train: share of training images with the label that was trained on.
    test: accuracy on test images.
    attacked: under an l2 attack.
    noisy: with Gaussian noise.
    product: of the norms of the maps that the network's kernels are.
  """

  train: Any
  test: Any
  attacked: Any
  noisy: Any
  product: Any

  def estimates(self) -> dict[str, Estimate]:
    """By name: shares, and the gap between training and test, in percent."""
    percent = {name: estimate(getattr(self, name), 100) for name in SHARES}
    gap = estimate(self.train - self.test, 100)
    return percent | {"gap": gap, "product": estimate(self.product)}


def on_test(network: Network, weights: Any, data: Data) -> Measured:
  """All that is measured, but for the validation images."""
  norms = lipjax.spectral_norms(weights, layout=network.layout)
  shares = (
    _accuracy(network, weights, data.train),
    _accuracy(network, weights, data.test),
    _attacked(network, weights, data.test, data.radius),
    _noisy(network, weights, data.test, NOISE[data.name]),
  )
  return Measured(*map(float, shares), math.prod(map(float, norms.values())))


def on_validation(network: Network, weights: Any, data: Data) -> tuple[float, float]:
  """Clean and attacked accuracy."""
  clean = _accuracy(network, weights, data.validation)
  return float(clean), float(_attacked(network, weights, data.validation, data.radius))


def noisy_accuracy(network: Network, weights: Any, data: Split, deviation: float) -> jax.Array:
  """Accuracy with Gaussian noise on every pixel, the same draws for every network."""

  def one(key):
    noise = deviation * jax.random.normal(key, data.images.shape)
    return accuracy(network, weights, data._replace(images=data.images + noise))

  return jnp.mean(jax.lax.map(one, jax.random.split(jax.random.key(0), NOISE_DRAWS)))


def accuracy(network: Network, weights: Any, data: Split) -> jax.Array:
  """Share of images that are classified as their label."""
  return jnp.mean(jnp.argmax(network.logits(weights, data.images), axis=-1) == data.labels)


_accuracy = jax.jit(accuracy, static_argnums=0)
_noisy = jax.jit(noisy_accuracy, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _attacked(network, weights, data, radius):
  return jnp.mean(survives(functools.partial(network.logits, weights), data, radius))
