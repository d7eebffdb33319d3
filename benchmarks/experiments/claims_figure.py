"""The figure of ``claims``: for each network accuracy, its gap, and what attacks leave of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.experiments import report
from benchmarks.experiments.claims_choose import CLEAN, ROBUST
from benchmarks.experiments.claims_findings import Results
from benchmarks.experiments.claims_measure import NOISE
from benchmarks.experiments.supervised_data import Data

# Told apart in every common kind of colour blindness.
STYLES = ("#0072B2", "o"), ("#E69F00", "D"), ("#555555", "s")


def draw_figure(data: Data, results: Results) -> Any:
  n_networks = len(results) // 3
  figure, panels = report.new_figure(3, n_networks)
  for (small, large, wrong), row in zip(
    zip(*[iter(results)] * 3, strict=True), panels.reshape(n_networks, 3), strict=True
  ):
    labels = f"batch {small.batch}", f"batch {large.batch}", f"{wrong.wrong:.0%} wrong labels"
    some = dict(zip(labels, (small, large, wrong), strict=True))
    for axes, measure in zip(row, ("test", "gap"), strict=False):
      for (label, task), style in zip(some.items(), STYLES, strict=True):
        _dots(axes, results[task], CLEAN, measure, label, style)
    row[0].set(title=f"{data.name}, {small.network}: accuracy", xlabel="test accuracy (%)")
    row[1].set(title="Gap", xlabel="training minus test accuracy (points)")
    _robustness(row[2], data, results[small], small)
    for axes in row:
      report.legend_below(axes)
  return figure


def _robustness(axes, data, found, task):
  labels = {
    "test": "clean",
    "attacked": f"attack {data.radius:g}",
    "noisy": f"noise {NOISE[data.name]:g}",
  }
  for (measure, label), style in zip(labels.items(), STYLES, strict=True):
    _dots(axes, found, ROBUST, measure, label, style)
  axes.set(title=f"Robustness, batch {task.batch}", xlabel="test accuracy (%)")


def _dots(axes, found, score, measure, label, style):
  """A dot a method, with its standard error, the first one at the top."""
  color, marker = style
  estimates = [result.measured[score].estimates()[measure] for result in found.values()]
  means, errors = np.array(estimates).T
  places = np.arange(len(found))[::-1]
  look = {"color": color, "marker": marker, "ms": 6, "ls": "", "capsize": 3, "alpha": 0.9}
  axes.errorbar(means, places, xerr=errors, label=label, **look)
  axes.set_yticks(places, list(found))
