"""Images for the WGAN: scikit-learn's digits or CIFAR-10, as vectors of pixels in [0, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

N_DIGITS_HELD_OUT = 599  # A third of the 1,797.
N_CIFAR_HELD_OUT = 2000


class Images(NamedTuple):
  """Real images, flattened.

  Attributes:
    name: of the data set, as printed.
    shape: of one image, (height, width) or (height, width, 3).
    train: float32 of shape (n, pixels); the networks see these alone.
    held_out: the same, for the distances in the report.
  """

  name: str
  shape: tuple[int, ...]
  train: jax.Array
  held_out: jax.Array


def load(cifar: Path | None) -> Images:
  """CIFAR-10 from its folder, or the digits; split the same way every time."""
  return _digits() if cifar is None else _cifar(cifar)


def _digits() -> Images:
  from sklearn.datasets import load_digits

  images = load_digits().data / 16  # Pixels are counts from 0 to 16.
  order = np.random.default_rng(0).permutation(len(images))
  held_out, train = np.split(images[order], [N_DIGITS_HELD_OUT])
  return Images("digits", (8, 8), jnp.float32(train), jnp.float32(held_out))


def _cifar(path: Path) -> Images:
  from benchmarks.experiments import cifar

  train, _, test, _ = cifar.load(path)
  flat = lambda images: jnp.float32(images.reshape(len(images), -1)) / 255
  return Images("CIFAR-10", train.shape[1:], flat(train), flat(test[:N_CIFAR_HELD_OUT]))
