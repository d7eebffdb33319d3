"""Digits or CIFAR-10, as flat images with a validation part."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.experiments import cifar
from lipjax.commands import demo_data
from lipjax.commands.demo_data import Split

CIFAR_VALIDATION = 5000
CIFAR_EVALUATED = 2000


class Data(NamedTuple):
  """Three parts that share no image, and the attacks that suit their size.

  Attributes:
    name: as printed.
    train: to train on.
    validation: to choose the cap on.
    test: to report on.
    radii: of the attacks in the figure, in pixels of [0, 1].
    radius: of the attack in the table and in the choice of the cap; one of `radii`.
  """

  name: str
  train: Split
  validation: Split
  test: Split
  radii: tuple[float, ...]
  radius: float


def add_argument(parser: argparse.ArgumentParser) -> None:
  """Adds ``--cifar``."""
  parser.add_argument(
    "--cifar",
    type=Path,
    metavar="FOLDER",
    help="CIFAR-10 in its official binary layout (default: scikit-learn's digits)",
  )


def asked_for(args: argparse.Namespace) -> Data:
  """What the options ask for; says why and ends where it is not there."""
  try:
    return load(args.cifar, 100 if args.quick else None)
  except (ValueError, ImportError) as error:
    sys.exit(str(error))


def load(cifar_path: Path | None, n_evaluated: int | None = None) -> Data:
  """CIFAR-10 from a folder, or scikit-learn's digits without one.

  Args:
    cifar_path: the folder, for `benchmarks.experiments.cifar.load`.
    n_evaluated: at most so many validation and test images; all when None.
  """
  data = _digits() if cifar_path is None else _cifar(cifar_path)
  first = lambda split: Split(*(array[:n_evaluated] for array in split))
  return data._replace(validation=first(data.validation), test=first(data.test))


def _digits():
  return Data("digits", *demo_data.load(), radii=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0), radius=0.6)


def _cifar(path):
  images, labels, test_images, test_labels = cifar.load(path)
  validation = slice(len(labels) - CIFAR_VALIDATION, None)
  train = slice(0, validation.start)
  return Data(
    "CIFAR-10",
    _split(images[train], labels[train]),
    _split(images[validation], labels[validation], CIFAR_EVALUATED),
    _split(test_images, test_labels, CIFAR_EVALUATED),
    radii=(0.0, 0.125, 0.25, 0.375, 0.5),
    radius=0.25,
  )


def _split(images, labels, n=None):
  flat = images[:n].reshape(len(images[:n]), -1)
  return Split(jnp.asarray(flat / np.float32(255)), jnp.asarray(labels[:n]))
