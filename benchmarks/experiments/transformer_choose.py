"""What is chosen on validation text, and which learning rates survive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.experiments.transformer_measure import Measured
from benchmarks.experiments.transformer_methods import Method
from benchmarks.experiments.transformer_runs import Found, Run
from lipjax.commands.demo_statistics import Estimate, estimate

#: A learning rate survives if the validation loss is at most so much above the method's best.
MARGIN = 0.2


class Result(NamedTuple):
  """Of one method.

  Attributes:
    best: the run with the lowest validation loss, first seed.
    seeds: what was measured of those with its rate and strength, a seed each.
    curve: for each strength the run with the lowest validation loss over rates, first seed.
    rates: runs with the best strength, first seed, by rate.
    surviving: those of them within `MARGIN` of the best.
  """

  best: Run
  seeds: list[Measured]
  curve: list[Run]
  rates: list[Run]
  surviving: list[Run]

  def mean(self, name: str) -> Estimate:
    """Of a field of `Measured` over seeds, with a standard error if there are several."""
    values = np.array([getattr(x, name) for x in self.seeds])
    return estimate(values) if len(values) > 1 else Estimate(float(values[0]), float("nan"))


def with_middle_rates(found: Found, methods: Sequence[Method]) -> list[Run]:
  """Every strength with the rates in the middle, first seed."""
  del found
  n_strengths = max(len(method.strengths) for method in methods)
  return [
    Run(*method[:2], method.strengths[j], rate, 0)
    for j in range(n_strengths)
    for method in methods
    for rate in method.rates[1:-1] or method.rates
    if j < len(method.strengths)
  ]


def with_other_rates(found: Found, methods: Sequence[Method]) -> list[Run]:
  """The best strength of those with the other rates, first seed."""
  return [
    x.best._replace(rate=rate) for method, x in _results(found, methods) for rate in method.rates
  ]


def with_best_rates(found: Found, methods: Sequence[Method]) -> list[Run]:
  """Every strength with the rates that are best for some method of the same optimizer."""
  best = {(x.best.optimizer, x.best.rate) for _, x in _results(found, methods)}
  return [
    Run(*method[:2], strength, rate, 0)
    for method in methods
    for strength in method.strengths
    for rate in method.rates
    if (method.optimizer, rate) in best
  ]


def with_other_seeds(found: Found, methods: Sequence[Method], seeds: int) -> list[Run]:
  """The best rate and strength with the others of so many seeds."""
  best = [x.best for _, x in _results(found, methods)]
  return [run._replace(seed=seed) for seed in range(1, seeds) for run in best]


def _results(found: Found, methods: Sequence[Method]) -> list[tuple[Method, Result]]:
  return [(method, x) for method in methods if (x := result(found, method))]


def result(found: Found, method: Method) -> Result | None:
  """Of the runs that are there; None without any."""
  runs = [r for r in found if r[:2] == method[:2] and r.seed == 0]
  if not runs:
    return None
  loss = lambda run: found[run].validation
  best = min(runs, key=loss)
  with_rates = [[r for r in runs if r.strength == s] for s in method.strengths]
  curve = [min(some, key=loss) for some in with_rates if some]
  same = sorted(r for r in runs if r.strength == best.strength)
  seeds = [found[run] for run in sorted(found) if run[:-1] == best[:-1]]
  return Result(best, seeds, curve, same, [r for r in same if loss(r) <= loss(best) + MARGIN])


def at_most(found: Found, optimizer: str, constraint: str, limit: float) -> Measured | None:
  """Of the first seed's runs with a product up to a limit, that with the lowest validation loss.

  The limit is to base 10.
  """
  some = [
    x
    for run, x in found.items()
    if run[:2] == (optimizer, constraint) and run.seed == 0 and x.log_product <= limit
  ]
  return min(some, key=lambda x: x.validation, default=None)
