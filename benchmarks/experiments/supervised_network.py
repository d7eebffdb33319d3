"""A perceptron of two hidden layers of 512 ELU units, capped or not."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lipjax
from lipjax.commands.demo_data import Split

WIDTH = 512
CLASSES = 10
ATTACK_STEPS = 20


def init_params(key: jax.Array, n_pixels: int) -> dict[str, dict[str, jax.Array]]:
  """Kernels of variance 1/fan-in, as Flax's default, and biases of zero."""
  sizes = list(itertools.pairwise((n_pixels, WIDTH, WIDTH, CLASSES)))
  return {
    name: {"kernel": jax.random.normal(k, size) / size[0] ** 0.5, "bias": jnp.zeros(size[1])}
    for name, k, size in zip(
      ("hidden_1", "hidden_2", "output"), jax.random.split(key, 3), sizes, strict=True
    )
  }


def weights_of(params: Any, vectors: Any, cap: jax.Array | None) -> Any:
  """The weights that the network is applied with; the raw ones without a cap."""
  if cap is None:
    return params
  return lipjax.spectral_normalize(params, vectors, mode="cap", target=cap)


def logits(weights: Any, images: jax.Array) -> jax.Array:
  """Scores of a batch of flat images with pixels in [0, 1]."""
  x = images - 0.5
  for name in ("hidden_1", "hidden_2"):
    x = jax.nn.elu(x @ weights[name]["kernel"] + weights[name]["bias"])
  return x @ weights["output"]["kernel"] + weights["output"]["bias"]


def loss(weights: Any, batch: Split) -> jax.Array:
  """Mean cross entropy."""
  return _cross_entropy(logits(weights, batch.images), batch.labels)


def accuracy(weights: Any, data: Split, radius: jax.Array | float) -> jax.Array:
  """Accuracy under an l2 attack; clean accuracy for a radius of 0.

  Projected gradient ascent from the image itself, in steps of 2.5 · radius / 20 along the
  normalized gradient; an image counts only if every iterate is classified right.

  Guarantee: an upper bound of the accuracy under the worst perturbation.
  """
  return jnp.mean(survives(functools.partial(logits, weights), data, radius))


def survives(
  scores: Callable[[jax.Array], jax.Array], data: Split, radius: jax.Array | float
) -> jax.Array:
  """For each image whether no step of the attack of `accuracy` changes its class."""

  def step(carry, _):
    images, survived = carry
    gradient = jax.grad(lambda x: _cross_entropy(scores(x), data.labels))(images)
    moved = images + 2.5 * radius / ATTACK_STEPS * gradient / length(gradient)
    shift = moved - data.images
    shift *= jnp.minimum(1, radius / length(shift))
    images = jnp.clip(data.images + shift, 0, 1)
    return (images, survived & is_correct(images)), None

  is_correct = lambda images: jnp.argmax(scores(images), axis=-1) == data.labels
  carry = (data.images, is_correct(data.images))
  return jax.lax.scan(step, carry, length=ATTACK_STEPS)[0][1]


def _cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def length(x: jax.Array) -> jax.Array:
  """Of each row; 1 for one of zeros."""
  found = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return jnp.where(found == 0, 1, found)
