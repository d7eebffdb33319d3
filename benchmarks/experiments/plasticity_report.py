"""What ``plasticity`` prints, draws and writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group

from benchmarks.experiments import report
from benchmarks.experiments.claims_networks import Network
from benchmarks.experiments.plasticity_choose import ENDS, RATES, Result, at_the_edge
from benchmarks.experiments.plasticity_findings import Results
from benchmarks.experiments.plasticity_methods import INITIAL, NEW, POWER, STRENGTHS
from benchmarks.experiments.plasticity_tasks import BATCH, SETTINGS
from benchmarks.experiments.plasticity_train import Budget
from benchmarks.experiments.supervised_data import Data

# Told apart in every common kind of colour blindness.
COLORS = "#555555", "#999999", "#E69F00", "#F0E442", "#CC79A7", "#56B4E9", "#0072B2", "#009E73"


def tables(data: Data, results: Results) -> Group:
  """One of each setting."""
  shown = zip(SETTINGS, results.values(), strict=True)
  return Group(*(_table(f"{data.name}, {of.name}: {of.measured}", found) for of, found in shown))


def _table(title: str, found: Mapping[str, Result]) -> Any:
  headers = "rate", "strength", f"first {ENDS}\n%", f"last {ENDS}\n%", "all\n%"
  rows = {}
  for name, result in found.items():
    of, (rate, strength) = result.estimates(), result.chosen
    cells = [report.cell(of[x], 1) for x in ("first", "last", "all", "sum_of_squares")]
    cells += [report.cell(of[x], 2) for x in ("average_sigma", "stable_rank")]
    rows[name] = [f"{rate:g}", f"{strength:g}" if strength else "", *cells]
  return report.table(title, (*headers, "sum of\nsquares", "average\nσ", "stable\nrank"), rows)


def notes(network: Network, data: Data, budget: Budget, results: Results) -> list[str]:
  """What the numbers are and are not."""
  labels, pixels = SETTINGS
  n_candidates = [len(x.validation) for found in results.values() for x in found.values()]
  return [
    f"{network.sizes}; ReLU. Adam, whose moments are kept from task to task, batches of {BATCH}."
    f" {budget.tasks} tasks a sequence. {labels.name}: {labels.n_images} images, the same in all"
    f" its tasks, labels drawn anew for each, {labels.rounds * budget.steps} steps a task; accuracy"
    f" on these images when they end. {pixels.name}: {pixels.n_images} images, their pixels in a"
    f" new order in each task, {pixels.rounds * budget.steps} steps; accuracy on"
    f" {len(data.test.labels)} test images in that order.",
    f"Learning rate ({', '.join(f'{x:g}' for x in RATES)}) and strength"
    f" ({', '.join(f'{x:g}' for x in STRENGTHS)}, ten times more or less while the best is at the"
    " edge, and three times less and more than the best) are chosen together by mean accuracy over"
    f" all tasks of {_validation(budget)} sequences that are not reported: {min(n_candidates)}"
    f" candidates without a strength, {max(n_candidates)} at most. Chosen at the edge"
    f" all the same: {_edges(results)}.",
    f"{budget.seeds} sequences are reported, seeds of initialization, tasks and batches, the same"
    " ones for all methods. A difference of at most 2 combined standard errors is called within"
    " noise. Of changes from first to last tasks the error is that of each sequence's difference.",
    "Biases are regularized by no method. Terms are added to the loss's gradient, before Adam;"
    " where a name says decoupled, to Adam's steps, before the rate."
    f" '{POWER}': strength × (σ² − 1)² of each layer, σ its norm."
    f" '{INITIAL}': strength/2 times the squared distance from the initial weights. '{NEW}': none,"
    " and new weights and moments for each task: what there is to lose, where old weights do not"
    " help.",
    "Weights: of each network after its last task, by SVD in float64; the sum over layers, and"
    " means over layers.",
    f"One small network and one data set, {data.name}; nothing is said of deeper networks with"
    " normalization layers.",
  ]


def _validation(budget: Budget) -> int:
  return max(1, budget.seeds // len(RATES))


def _edges(results: Results) -> str:
  found = [
    f"{name} {edge} ({setting})"
    for setting, methods in results.items()
    for name, result in methods.items()
    for edge in at_the_edge(result)
  ]
  return ", ".join(found) or "none"


def contents(data: Data, budget: Budget, quick: bool, results: Results) -> dict[str, Any]:
  """What is written, beside texts."""
  settings = {"data": data.name, **budget._asdict(), "quick": quick, "ends": ENDS}
  sequences = {
    of.name: {
      "measured": of.measured,
      "steps_a_task": of.rounds * budget.steps,
      "methods": {name: _numbers(result) for name, result in results[of.name].items()},
    }
    for of in SETTINGS
  }
  return {"settings": settings, "sequences": sequences}


def _numbers(result: Result) -> dict[str, Any]:
  tried = [choice._asdict() | {"accuracy": x} for choice, x in result.validation.items()]
  means = {"mean_and_standard_error": result.estimates(), "seeds": result.measured._asdict()}
  return {**result.chosen._asdict(), "validation": tried, **means}


def draw_figure(data: Data, results: Results) -> Any:
  """Accuracy against task, a panel a setting."""
  figure, panels = report.new_figure(len(SETTINGS))
  for of, axes in zip(SETTINGS, panels, strict=True):
    for color, (name, result) in zip(COLORS, results[of.name].items(), strict=False):
      _line(axes, 100 * result.measured.accuracy, color, name)
    axes.set(title=f"{data.name}, {of.name}", ylabel=f"{of.measured} (%)")
    axes.set(xlabel=f"task (mean of it and the {ENDS - 1} before)")
    report.legend_below(axes)
  return figure


def _line(axes: Any, shares: np.ndarray, color: str, name: str) -> None:
  """Mean ± standard error over sequences of running means."""
  window = min(ENDS, shares.shape[1])
  shares = np.lib.stride_tricks.sliding_window_view(shares, window, axis=1).mean(-1)
  mean, error = shares.mean(0), shares.std(0, ddof=1) / np.sqrt(len(shares))
  index, style = np.arange(len(mean)) + window, "--" if name == NEW else "-"
  axes.plot(index, mean, style, color=color, lw=1.6, label=name)
  axes.fill_between(index, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
