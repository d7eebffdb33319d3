"""Which learning rate and strength a method of ``claims`` gets, and what comes of it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.experiments.claims_measure import Measured, on_test, on_validation
from benchmarks.experiments.claims_methods import Method
from benchmarks.experiments.claims_networks import Network
from benchmarks.experiments.claims_tasks import Task, with_wrong_labels
from benchmarks.experiments.claims_train import Choice, Program, train
from benchmarks.experiments.supervised_data import Data

#: What is chosen by, on validation images: accuracy, or the mean of it and that under attack.
CLEAN, ROBUST = "clean", "robust"
SCORES: dict[str, Callable[[tuple[float, float]], float]] = {
  CLEAN: lambda found: found[0],
  ROBUST: lambda found: sum(found) / 2,
}


class Result(NamedTuple):
  """Of one method in one task.

  Attributes:
    validation: for each candidate clean and attacked accuracy, first seed.
    chosen: by each of `SCORES`.
    measured: likewise, of the networks of all seeds.
  """

  validation: dict[Choice, tuple[float, float]]
  chosen: dict[str, Choice]
  measured: dict[str, Measured]


def result(
  network: Network,
  method: Method,
  task: Task,
  data: Data,
  n_seeds: int,
  n_steps: int,
) -> Result:
  """Trains a network for each candidate, and the chosen ones for the other seeds.

  Args:
    network: what to train.
    method: how.
    task: on what.
    data: with labels that are right.
    n_seeds: for what is chosen; the first alone for the other candidates.
    n_steps: of a training with small batches, equal numbers of epochs for all.
  """
  data = data._replace(train=with_wrong_labels(data.train, task.wrong))
  program = Program(network, method, task.batch, task.n_steps(len(data.train.labels), n_steps))

  @functools.cache
  def trained(choice: Choice, seed: int) -> Any:
    return train(program, choice, seed, data.train)

  @functools.cache
  def measured(choice: Choice) -> Measured:
    found = (on_test(network, trained(choice, seed), data) for seed in range(n_seeds))
    return Measured(*map(np.array, zip(*found, strict=True)))

  candidates = itertools.starmap(Choice, itertools.product(task.rates, method.strengths))
  validation = {c: on_validation(network, trained(c, 0), data) for c in candidates}
  chosen = {name: best(validation, score) for name, score in SCORES.items()}
  return Result(validation, chosen, {name: measured(c) for name, c in chosen.items()})


def best(validation: dict[Choice, Any], score: Callable[[Any], float]) -> Choice:
  """The candidate with the highest score, the first of several."""
  return max(validation, key=lambda choice: score(validation[choice]))
