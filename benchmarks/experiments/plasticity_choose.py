"""Which learning rate and strength a method of ``plasticity`` gets, and what comes of it."""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

from benchmarks.experiments.claims_choose import best
from benchmarks.experiments.claims_train import Choice
from benchmarks.experiments.plasticity_methods import Method
from benchmarks.experiments.plasticity_tasks import Images
from benchmarks.experiments.plasticity_train import Measured, Stream, train
from lipjax.commands.demo_data import Split
from lipjax.commands.demo_statistics import Estimate, estimate

#: Of Adam.
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
#: Strengths that are tried at most, a factor of ten apart, before those around the best.
MOST = 7
#: Of the sequences that are chosen on, so that none of them is reported.
FIRST_SEED = 1000
#: Tasks at the beginning and at the end of a sequence that are averaged.
ENDS = 5


class Result(NamedTuple):
  """Of one method in one setting.

  Attributes:
    validation: for each candidate the mean accuracy over all tasks.
    chosen: the best one.
    measured: what comes of it, in other sequences.
  """

  validation: dict[Choice, float]
  chosen: Choice
  measured: Measured

  def estimates(self) -> dict[str, Estimate]:
    """By name: accuracies in percent, and what is known of the weights."""
    shares, *weights = self.measured
    parts = {"first": shares[:, :ENDS], "last": shares[:, -ENDS:], "all": shares}
    found = {name: estimate(part.mean(-1), 100) for name, part in parts.items()}
    # Of each sequence, so that what all its tasks share does not count as noise.
    change = estimate(parts["last"].mean(-1) - parts["first"].mean(-1), 100)
    names = Measured._fields[1:]
    return found | {"change": change} | dict(zip(names, map(estimate, weights), strict=True))


def result(stream: Stream, method: Method, validation: Split) -> Result:
  """Tries strengths, those beyond them while the best is at the edge, and those around the best.

  Args:
    stream: what is reported.
    method: how to train.
    validation: images to measure on where test images would be, to choose.
  """
  images = Images(stream.images.train, validation)
  to_choose = dataclasses.replace(stream, images=images)
  # With as many networks in each program as are reported, so that it is compiled once.
  seeds = range(FIRST_SEED, FIRST_SEED + max(1, stream.budget.seeds // len(RATES)))
  found, wanted = {}, method.strengths
  while wanted:
    for strength in wanted:
      found |= _scores(to_choose, method, strength, seeds)
    wanted = beyond(found)
  for strength in around(found):
    found |= _scores(to_choose, method, strength, seeds)
  chosen = best(found, lambda score: score)
  runs = [(chosen, seed) for seed in range(stream.budget.seeds)]
  return Result(found, chosen, train(stream, method, runs))


def beyond(found: dict[Choice, float]) -> tuple[float, ...]:
  """Ten times more or less than the best strength, where that is at the edge of these."""
  strengths = sorted({choice.strength for choice in found})
  chosen = best(found, lambda score: score).strength
  if not 1 < len(strengths) < MOST:
    return ()
  if chosen == strengths[0]:
    return (float(f"{chosen / 10:.0e}"),)
  return (float(f"{chosen * 10:.0e}"),) if chosen == strengths[-1] else ()


def around(found: dict[Choice, float]) -> tuple[float, ...]:
  """Three times less and more than the best strength, where there is a choice."""
  chosen = best(found, lambda score: score).strength
  several = len({choice.strength for choice in found}) > 1
  return tuple(float(f"{x:.0e}") for x in (chosen / 3, chosen * 3)) if several else ()


def at_the_edge(found: Result) -> list[str]:
  """What was chosen as the least or the most of what was tried, so that beyond might be better."""
  chosen, edges = found.chosen._asdict(), []
  for what, value in chosen.items():
    tried = {getattr(choice, what) for choice in found.validation}
    if len(tried) > 1 and value in (min(tried), max(tried)):
      edges.append(f"{what} {value:g}")
  return edges


def _scores(stream: Stream, method: Method, strength: float, seeds: range) -> dict[Choice, float]:
  candidates = [Choice(rate, strength) for rate in RATES]
  shares = train(stream, method, list(itertools.product(candidates, seeds))).accuracy
  means = shares.reshape(len(candidates), -1).mean(-1)
  return dict(zip(candidates, map(float, means), strict=True))
