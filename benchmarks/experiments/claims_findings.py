"""What follows from the numbers of ``claims``, in sentences no stronger than they are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from benchmarks.experiments import report, verdicts
from benchmarks.experiments.claims_choose import CLEAN, ROBUST, Result
from benchmarks.experiments.claims_measure import Measured
from benchmarks.experiments.claims_methods import (
  ADVERSARIAL,
  CAP,
  L2,
  NONE,
  PENALTY,
  RESHAPED,
  SPECTRAL,
)
from benchmarks.experiments.claims_tasks import Task
from benchmarks.experiments.claims_tracker import Errors

Results = dict[Task, dict[str, Result]]
Tracked = dict[tuple[str, str], Errors]
WORDS = {
  "train": "training",
  "test": "test",
  "gap": "gap",
  "attacked": "attack",
  "noisy": "noise",
  "product": "product",
}


def findings(results: Results, tracked: Tracked) -> dict[str, list[str]]:
  """Sentences for each claim."""
  found: dict[str, list[str]] = {}
  for small, large, wrong in zip(*[iter(results)] * 3, strict=True):
    for claim, sentences in {
      "large batches": _large_batches(results, small, large),
      "wrong labels": _wrong_labels(results, wrong),
      "robustness": _robustness(results, small),
      "normalization or penalty": _normalization(results, small),
      "the right norm": _right_norm(results, (small, large, wrong)),
    }.items():
      found.setdefault(claim, []).extend(sentences)
  return found | {"following norms": _following(tracked)}


def _large_batches(results: Results, small: Task, large: Task) -> Iterable[str]:
  at = lambda task, method: results[task][method].measured[CLEAN]
  both = f"{small.network}, {NONE}, batch {large.batch} minus {small.batch}"
  yield _minus(both, at(large, NONE), at(small, NONE), "test", "gap")
  others = NONE, L2, ADVERSARIAL
  for task, other in ((small, NONE), *((large, other) for other in others)):
    name = f"{task.title}: {SPECTRAL} minus {other}"
    yield _minus(name, at(task, SPECTRAL), at(task, other), "test", "gap")
  yield _against(large, at(large, SPECTRAL), {other: at(large, other) for other in others})


def _against(task: Task, ours: Measured, theirs: dict[str, Measured]) -> str:
  """Against how many of the others the test accuracy is higher, and whether that is the claim."""
  found = {other: measured.estimates()["test"] for other, measured in theirs.items()}
  return verdicts.against(task.title, SPECTRAL, ours.estimates()["test"], found)


def _wrong_labels(results: Results, task: Task) -> Iterable[str]:
  base, *others = ((name, result.measured[CLEAN]) for name, result in results[task].items())
  for name, measured in others:
    yield _minus(f"{task.title}: {name} minus {base[0]}", measured, base[1], "train", "test")
  yield _highest(task, "test", dict([base, *others]))


def _robustness(results: Results, task: Task) -> Iterable[str]:
  base, *others = ((name, result.measured[ROBUST]) for name, result in results[task].items())
  for name, measured in others:
    title = f"{task.title}: {name} minus {base[0]}"
    yield _minus(title, measured, base[1], "test", "attacked", "noisy")
  for measure in ("attacked", "noisy"):
    yield _highest(task, measure, dict([base, *others]))


def _highest(task: Task, measure: str, found: dict[str, Measured]) -> str:
  means = {name: measured.estimates()[measure] for name, measured in found.items()}
  return verdicts.highest(f"{task.title}: highest mean accuracy ({WORDS[measure]})", means)


def _normalization(results: Results, task: Task) -> Iterable[str]:
  for other in (PENALTY, SPECTRAL):
    for choice, measures in ((CLEAN, ("test",)), (ROBUST, ("test", "attacked", "noisy"))):
      ours, theirs = (results[task][name].measured[choice] for name in (CAP, other))
      title = f"{task.title}, by {choice} score: {CAP} minus {other}"
      yield _minus(title, ours, theirs, *measures)


def _right_norm(results: Results, some: Iterable[Task]) -> Iterable[str]:
  for task in some:
    if RESHAPED not in results[task]:
      return
    for choice, measures in (
      (CLEAN, ("test", "gap")),
      (ROBUST, ("test", "attacked", "noisy", "product")),
    ):
      ours, theirs = (results[task][name].measured[choice] for name in (SPECTRAL, RESHAPED))
      title = f"{task.title}, by {choice} score: true norm minus reshaped"
      yield _minus(title, ours, theirs, *measures)


def _following(tracked: Tracked) -> Iterable[str]:
  sentences = []
  for (network, method), errors in tracked.items():
    worst = {
      name: max(float(np.max(layer[name])) for layer in errors.by_layer.values())
      for name in next(iter(errors.by_layer.values()))
    }
    parts = ", ".join(f"{name} {100 * value:.2g} %" for name, value in worst.items())
    sentences.append(
      f"{network}, {method}: largest share of a norm that was missing: {parts};"
      f" the subspace took {errors.steps_an_update:.2f} steps an update."
    )
  return sentences


def _minus(title: str, ours: Measured, theirs: Measured, *measures: str) -> str:
  a, b = ours.estimates(), theirs.estimates()
  parts = (report.comparison(WORDS[measure], a[measure], b[measure]) for measure in measures)
  return f"{title}: {', '.join(parts)}."
