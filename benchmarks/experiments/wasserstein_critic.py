"""Two distributions whose Wasserstein distance is known, and the critic between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

DIMENSION = 8
WIDTHS = (DIMENSION, 128, 128, 1)
DISTANCE = 1.0  # W₁ of the two spheres; f(x) = ‖x‖ attains it.

Activation = Callable[[jax.Array], jax.Array]


def draw(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
  """`n` points of the sphere of radius 1, and as many of the one of radius 2."""
  directions = jax.random.normal(key, (2, n, DIMENSION))
  inner, outer = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
  return inner, 2 * outer


def init_params(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
  """Kernels of variance 1/fan-in, as Flax's default, and biases of zero."""
  keys = jax.random.split(key, len(WIDTHS) - 1)
  sizes = itertools.pairwise(WIDTHS)
  return {
    f"layer_{i}": {
      "kernel": jax.random.normal(key, size) / size[0] ** 0.5,
      "bias": jnp.zeros(size[1]),
    }
    for i, (key, size) in enumerate(zip(keys, sizes, strict=True))
  }


def critic(activation: Activation, params: Any, x: jax.Array) -> jax.Array:
  """One number for each row of `x`."""
  *hidden, last = params.values()
  for layer in hidden:
    x = activation(x @ layer["kernel"] + layer["bias"])
  return (x @ last["kernel"] + last["bias"])[..., 0]


def maxmin(x: jax.Array) -> jax.Array:
  """Every pair of units sorted: GroupSort with groups of two (Anil et al. 2019)."""
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([jnp.maximum(first, second), jnp.minimum(first, second)], axis=-1)


def gap(activation: Activation, params: Any, inner: jax.Array, outer: jax.Array) -> jax.Array:
  """Mean of f on the outer sphere minus that on the inner one.

  At most W₁ for a 1-Lipschitz f, up to sampling; not so for a steeper one.
  """
  f = lambda x: jnp.mean(critic(activation, params, x))
  return f(outer) - f(inner)
