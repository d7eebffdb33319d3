"""What ``claims`` trains on: small and large batches, and labels of which some are wrong."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.experiments.claims_networks import CLASSES
from benchmarks.experiments.supervised_data import Data
from lipjax.commands.demo_data import Split

SMALL, LARGE = 64, 4096
WRONG = 0.4
#: Of SGD, at first: larger ones for large batches.
RATES = {SMALL: (0.02, 0.1), LARGE: (0.1, 0.3)}
#: Of CIFAR-10, so that both batch sizes divide it.
MOST_IMAGES = 5 * LARGE


class Task(NamedTuple):
  """What is trained, and on what.

  Attributes:
    network: its name.
    batch: images of a step.
    wrong: share of the training labels that are wrong.
  """

  network: str
  batch: int
  wrong: float

  @property
  def rates(self) -> tuple[float, ...]:
    """Learning rates to choose from."""
    return RATES[SMALL if self.batch == SMALL else LARGE]

  def n_steps(self, n_images: int, n_small: int) -> int:
    """As many epochs as `n_small` steps of small batches are, one at least."""
    return max(1, n_small // (n_images // SMALL)) * (n_images // self.batch)

  @property
  def title(self) -> str:
    """As printed."""
    labels = f", {self.wrong:.0%} wrong labels" if self.wrong else ""
    return f"{self.network}, batch {self.batch}{labels}"


def tasks(network: str, n_images: int) -> list[Task]:
  """Small and large batches, and small ones with wrong labels."""
  large = min(LARGE, n_images)
  return [Task(network, SMALL, 0.0), Task(network, large, 0.0), Task(network, SMALL, WRONG)]


def trained_on(data: Data) -> Split:
  """At most `MOST_IMAGES` of the training images."""
  return Split(*(array[:MOST_IMAGES] for array in data.train))


def with_wrong_labels(split: Split, share: float) -> Split:
  """With that share of labels, to the image, changed to another class: the same ones every time."""
  random = np.random.default_rng(0)
  labels = np.array(split.labels)
  rows = random.permutation(len(labels))[: round(share * len(labels))]
  labels[rows] = (labels[rows] + random.integers(1, CLASSES, len(rows))) % CLASSES
  return split._replace(labels=jnp.asarray(labels))


def rows_of_epoch(key: jax.Array, n_images: int, batch: int) -> jax.Array:
  """Every image once, in a random order: (steps, batch), without those left over."""
  n_steps = n_images // batch
  order = jax.random.permutation(key, n_images)
  return order[: n_steps * batch].reshape(n_steps, batch)
