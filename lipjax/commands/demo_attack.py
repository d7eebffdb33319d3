"""What the demo does to images: Gaussian noise and an l2 attack."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lipjax.commands.demo_data import Split
from lipjax.commands.demo_model import logits, loss

NOISE = 0.3  # Standard deviation, in pixels of [0, 1].
NOISE_DRAWS = 10
ATTACK_STEPS = 20


def noisy_accuracy(params: Any, data: Split) -> jax.Array:
  """Accuracy with Gaussian noise on every pixel, the same draws for every network."""

  def one(key):
    noise = NOISE * jax.random.normal(key, data.images.shape)
    return jnp.mean(is_correct(params, data._replace(images=data.images + noise)))

  return jnp.mean(jax.lax.map(one, jax.random.split(jax.random.key(0), NOISE_DRAWS)))


def accuracies(params: Any, data: Split, radius: float | jax.Array) -> tuple[jax.Array, jax.Array]:
  """Accuracy, and accuracy under projected gradient ascent of the loss.

  Starts at the image, takes steps of 2.5 · radius / 20 along the normalized gradient, and
  projects to the l2 ball and to pixels in [0, 1]. An image counts as correct only if it
  is so at every one of the iterates, which makes the attack as strong as its best point.

  Guarantee: the second is an upper bound of the accuracy under the worst perturbation of that
  radius: the attack finds some adversarial images, not all.

  Args:
    params: of one network.
    data: the images to attack.
    radius: of the ball. With 0 both are the same.

  Returns:
    Two scalars.
  """

  def step(carry, _):
    images, survived = carry
    gradient = jax.grad(lambda x: loss(params, Split(x, data.labels)))(images)
    moved = images + 2.5 * radius / ATTACK_STEPS * _unit(gradient)
    images = jnp.clip(data.images + _into_ball(moved - data.images, radius), 0, 1)
    return (images, survived & is_correct(params, Split(images, data.labels))), None

  clean = is_correct(params, data)
  (_, survived), _ = jax.lax.scan(step, (data.images, clean), length=ATTACK_STEPS)
  return jnp.mean(clean), jnp.mean(survived)


def is_correct(params: Any, data: Split) -> jax.Array:
  """Whether each image is classified as its label."""
  return jnp.argmax(logits(params, data.images), axis=-1) == data.labels


def _unit(x):
  length = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.where(length == 0, 1, length)


def _into_ball(x, radius):
  length = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x * jnp.minimum(1, radius / jnp.where(length == 0, 1, length))
