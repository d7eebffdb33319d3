"""The figure of ``transformer``: loss against bounds and learning rates, a row an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.experiments import report
from benchmarks.experiments.transformer_choose import Result
from benchmarks.experiments.transformer_methods import (
  BALL,
  NONE,
  RATES,
  SPECTRAL,
  SPHERE,
  WEIGHT,
  Method,
)
from benchmarks.experiments.transformer_runs import Found

# Told apart in every common kind of colour blindness.
STYLES = {
  NONE: ("#555555", "s"), WEIGHT: ("#E69F00", "D"), SPECTRAL: ("#0072B2", "o"),
  BALL: ("#009E73", "^"), SPHERE: ("#CC79A7", "v"),
}  # fmt: skip
#: Nats above the lowest loss that are shown.
SHOWN = 1.5


def draw_figure(found: Found, results: Mapping[Method, Result]) -> Any:
  figure, axes = report.new_figure(3, len(RATES))
  for optimizer, (products, slopes, rates) in zip(RATES, axes.reshape(-1, 3), strict=True):
    some = {m: x for m, x in results.items() if m.optimizer == optimizer}
    for method, one in some.items():
      color, marker = STYLES[method.constraint]
      look = {"color": color, "marker": marker, "ms": 6, "lw": 1.5, "label": method.constraint}
      best = [found[run] for run in one.curve]
      tests = [x.test for x in best]
      products.plot([x.log_product for x in best], tests, **look)
      slopes.plot([x.log_slope for x in best], tests, **look)
      rates.plot(
        [run.rate for run in one.rates], [found[run].validation for run in one.rates], **look
      )
    products.set(title=f"{optimizer}: each strength at its best rate", ylabel="test loss (nats)")
    products.set(xlabel="log10 of the certified product of norms")
    slopes.set(title=f"{optimizer}: the same networks", ylabel="test loss (nats)")
    slopes.set(xlabel="log10 of the steepest slope found")
    rates.set(title=f"{optimizer}: rates at the best strength", ylabel="validation loss (nats)")
    rates.set(xlabel="learning rate", xscale="log")
    lowest = min((x.validation for x in found.values()), default=0.0)
    for one in (products, slopes, rates):
      if np.isfinite(lowest):
        one.set_ylim(lowest - 0.1, lowest + SHOWN)
      report.legend_below(one)
  return figure
