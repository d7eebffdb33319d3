"""Sequences of tasks in ``plasticity``: random labels, or a random order of the pixels, in each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks.experiments.claims_networks import CLASSES
from benchmarks.experiments.claims_tasks import rows_of_epoch
from lipjax.commands.demo_data import Split

BATCH = 20


class Images(NamedTuple):
  """With the labels that they have.

  Attributes:
    train: to train on.
    test: to measure on, where it is not the training images that are measured on.
  """

  train: Split
  test: Split


# Compared by identity, so that programs are compiled once for each setting.
@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """What changes from task to task, and what is measured at the end of each.

  Attributes:
    name: as printed.
    change: from a task's key and images with labels to those of the task.
    n_images: to train on, the same ones in all tasks of a sequence.
    rounds: how often the steps that were asked for are taken in each task.
    on_training: whether accuracy is that on the training images: how much was memorized.
  """

  name: str
  change: Callable[[jax.Array, Split], Split]
  n_images: int
  rounds: int
  on_training: bool

  @property
  def measured(self) -> str:
    """As printed."""
    return "training accuracy" if self.on_training else "test accuracy"


def random_labels(key: jax.Array, split: Split) -> Split:
  """Labels that have nothing to do with the images."""
  return split._replace(labels=jax.random.randint(key, split.labels.shape, 0, CLASSES))


def permuted_pixels(key: jax.Array, split: Split) -> Split:
  """Pixels in another order, the same one for all images and for every split."""
  return split._replace(images=jax.random.permutation(key, split.images, axis=1))


SETTINGS = (
  Setting("random labels", random_labels, n_images=200, rounds=4, on_training=True),
  Setting("permuted pixels", permuted_pixels, n_images=1000, rounds=1, on_training=False),
)


def task(setting: Setting, sequence: jax.Array, index: Any, images: Images) -> Images:
  """What is trained on in one task, and what is measured on.

  Args:
    setting: which sequence.
    sequence: its key.
    index: of the task.
    images: to take from.
  """
  chosen, tasks = jax.random.split(sequence)
  rows = jax.random.permutation(chosen, len(images.train.labels))[: setting.n_images]
  change = functools.partial(setting.change, jax.random.fold_in(tasks, index))
  train = change(Split(*(x[rows] for x in images.train)))
  return Images(train, train if setting.on_training else change(images.test))


def batches(key: jax.Array, split: Split, n_steps: int) -> Split:
  """So many of them, epoch after epoch in a random order: (steps, batch, …)."""
  n_images = len(split.labels)
  n_epochs = -(-n_steps // (n_images // BATCH))
  one = functools.partial(rows_of_epoch, n_images=n_images, batch=BATCH)
  rows = jax.vmap(one)(jax.random.split(key, n_epochs)).reshape(-1, BATCH)[:n_steps]
  return Split(*(x[rows] for x in split))
