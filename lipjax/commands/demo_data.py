"""The demo's data: scikit-learn's bundled handwritten digits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

N_TRAIN = 1000
# Of 797 left, one is not used: two parts of one size share every compiled program.
N_VALIDATION = N_TEST = 398


class Split(NamedTuple):
  """Images and their labels.

  Attributes:
    images: float32 of shape (n, 64), pixels in [0, 1].
    labels: int32 of shape (n,).
  """

  images: jax.Array
  labels: jax.Array


class Digits(NamedTuple):
  """The three parts of the data; they share no image."""

  train: Split
  validation: Split
  test: Split


def load() -> Digits:
  """Images of 8 × 8 pixels, shuffled and split the same way every time."""
  from sklearn.datasets import load_digits

  images, labels = load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(labels))
  parts = np.split(order, np.cumsum([N_TRAIN, N_VALIDATION, N_TEST]))[:3]
  # Pixels are counts from 0 to 16.
  pick = lambda rows: Split(
    jnp.asarray(images[rows] / 16, jnp.float32), jnp.asarray(labels[rows], jnp.int32)
  )
  return Digits(*map(pick, parts))
