"""The figure of ``wasserstein``: what each critic says, and how steep it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.experiments import report
from benchmarks.experiments.wasserstein_critic import DISTANCE
from benchmarks.experiments.wasserstein_measure import Result
from lipjax.commands.demo_statistics import estimate

# Told apart in every common kind of colour blindness.
SEGMENT, FAR = "#0072B2", "#D55E00"


def draw_figure(results: dict[str, Result]) -> Any:
  figure, (left, right) = report.new_figure(2)
  rows = np.arange(len(results))
  _points(left, rows, [r.dual for r in results.values()], "#333333", "o", "")
  left.axvline(DISTANCE, color="#009E73", lw=1.5, label="true distance: 1")
  left.set(title="Dual estimate of the Wasserstein distance", xlabel="mean f(Y) − mean f(X)")
  left.set_yticks(rows, results)
  segment, far = [r.segment for r in results.values()], [r.far for r in results.values()]
  _points(right, rows - 0.12, segment, SEGMENT, "o", "between x and y")
  _points(right, rows + 0.12, far, FAR, "s", "in the far box")
  right.axvline(1, color="#009E73", lw=1.5, label="1-Lipschitz")
  right.set(title="Largest sampled gradient (a lower bound)", xlabel="‖∇f‖")
  right.set_yticks(rows, [])
  right.set_xlim(left=0)
  for axes in (left, right):
    axes.set_ylim(len(results) - 0.5, -0.5)
    report.legend_below(axes)
  return figure


def _points(axes, rows, values, color, marker, label):
  """Mean ± standard error over seeds."""
  means, errors = zip(*map(estimate, values), strict=True)
  axes.errorbar(means, rows, xerr=errors, fmt=marker, color=color, ms=6, capsize=3, label=label)
