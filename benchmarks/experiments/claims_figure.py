"""The figure of ``claims``: for each network accuracy, gap, wrong labels, and robustness."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.experiments import report
from benchmarks.experiments.claims_choose import CLEAN, ROBUST, Result
from benchmarks.experiments.claims_findings import Results
from benchmarks.experiments.claims_measure import NOISE
from benchmarks.experiments.claims_tasks import Task
from benchmarks.experiments.supervised_data import Data

# Told apart in every common kind of colour blindness.
STYLES = ("#0072B2", "o"), ("#E69F00", "D"), ("#555555", "s")
N_PANELS = 4


class Series(NamedTuple):
  """A dot a method: of which results, by which score, and what of them."""

  label: str
  found: dict[str, Result]
  score: str
  measure: str


def draw_figure(data: Data, results: Results) -> Any:
  groups = list(zip(*[iter(results)] * 3, strict=True))
  figure, axes = report.new_figure(N_PANELS, len(groups))
  for tasks, row in zip(groups, axes.reshape(-1, N_PANELS), strict=True):
    panels = _panels(data, results, *tasks)
    for (title, (label, series)), one in zip(panels.items(), row, strict=True):
      for some, style in zip(series, STYLES, strict=False):
        _dots(one, some, style)
      one.set(title=title, xlabel=label)
      report.legend_below(one)
  return figure


def _panels(
  data: Data, results: Results, small: Task, large: Task, wrong: Task
) -> dict[str, tuple[str, Iterable[Series]]]:
  """By title: the label of the axis, and what is drawn."""
  batches = {f"batch {task.batch}": results[task] for task in (small, large)}
  of_wrong = {"train": "training, wrong labels included", "test": "test"}
  of_robust = {
    "test": "clean",
    "attacked": f"attack {data.radius:g}",
    "noisy": f"noise {NOISE[data.name]:g}",
  }
  percent = "test accuracy (%)"
  return {
    f"{data.name}, {small.network}: accuracy": (
      percent,
      [Series(label, found, CLEAN, "test") for label, found in batches.items()],
    ),
    "Gap": (
      "training minus test accuracy (points)",
      [Series(label, found, CLEAN, "gap") for label, found in batches.items()],
    ),
    f"{wrong.wrong:.0%} wrong labels": (
      "accuracy (%)",
      [Series(label, results[wrong], CLEAN, measure) for measure, label in of_wrong.items()],
    ),
    f"Robustness, batch {small.batch}": (
      percent,
      [Series(label, results[small], ROBUST, measure) for measure, label in of_robust.items()],
    ),
  }


def _dots(axes: Any, series: Series, style: tuple[str, str]) -> None:
  """With standard errors, the first method at the top."""
  color, marker = style
  measured = (result.measured[series.score] for result in series.found.values())
  means, errors = np.array([x.estimates()[series.measure] for x in measured]).T
  places = np.arange(len(means))[::-1]
  look = {"color": color, "marker": marker, "ms": 6, "ls": "", "capsize": 3, "alpha": 0.9}
  axes.errorbar(means, places, xerr=errors, label=series.label, **look)
  axes.set_yticks(places, list(series.found))
