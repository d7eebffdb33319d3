"""What is chosen on validation text, and which learning rates survive."""

from __future__ import annotations

from collections.abc import Iterable
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


def to_try(methods: Iterable[Method]) -> list[Run]:
  """Every rate and strength with the first seed; the rates in the middle first."""
  runs = [
    ((abs(i - len(m.rates) // 2), j), Run(m.optimizer, m.constraint, strength, rate, 0))
    for m in methods
    for i, rate in enumerate(m.rates)
    for j, strength in enumerate(m.strengths)
  ]
  return [run for _, run in sorted(runs, key=lambda pair: pair[0])]


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
  """Of the first seed's runs with a bound up to a limit, that with the lowest validation loss."""
  some = [
    x
    for run, x in found.items()
    if run[:2] == (optimizer, constraint) and run.seed == 0 and x.upper <= limit
  ]
  return min(some, key=lambda x: x.validation, default=None)
