"""The generator and the critic: perceptrons, as pure functions of their parameters.

A dense critic keeps the comparison exact: the spectral norm of a kernel is the Lipschitz
constant of its layer, which for a convolution's reshaped kernel it is not.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

LATENT = 32
WIDTH = 128

Params = dict[str, dict[str, jax.Array]]


def init_generator(key: jax.Array, n_pixels: int) -> Params:
  """Parameters of a 32-128-128-pixels perceptron."""
  return _init(key, (LATENT, WIDTH, WIDTH, n_pixels))


def init_critic(key: jax.Array, n_pixels: int) -> Params:
  """Parameters of a pixels-128-128-1 perceptron."""
  return _init(key, (n_pixels, WIDTH, WIDTH, 1))


def generate(params: Params, latents: jax.Array) -> jax.Array:
  """Images from latents: ReLU inside, and pixels in [0, 1] by a sigmoid."""
  return jax.nn.sigmoid(_apply(params, latents, jax.nn.relu))


def criticize(params: Params, images: jax.Array) -> jax.Array:
  """One number an image; leaky ReLU, whose slopes are at most 1."""
  return _apply(params, images, jax.nn.leaky_relu)[..., 0]


def _init(key, widths) -> Params:
  sizes = list(itertools.pairwise(widths))
  keys = jax.random.split(key, len(sizes))
  initialize = jax.nn.initializers.he_normal()
  return {
    f"layer_{i}": {"kernel": initialize(k, size), "bias": jnp.zeros(size[1])}
    for i, (k, size) in enumerate(zip(keys, sizes, strict=True), 1)
  }


def _apply(params: Params, x: jax.Array, activation: Any) -> jax.Array:
  for i, layer in enumerate(params.values(), 1):
    x = x @ layer["kernel"] + layer["bias"]
    x = activation(x) if i < len(params) else x
  return x
