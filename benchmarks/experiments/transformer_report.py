"""What ``transformer`` prints and writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from benchmarks.experiments import report
from benchmarks.experiments.transformer_choose import MARGIN, Result, at_most
from benchmarks.experiments.transformer_measure import (
  N_SLOPES,
  N_WINDOWS,
  SLOPE_LENGTH,
  Measured,
)
from benchmarks.experiments.transformer_methods import NONE, RATES, Method
from benchmarks.experiments.transformer_runs import Found, Run
from benchmarks.experiments.transformer_text import Text
from lipjax.commands.demo_statistics import Estimate

Results = Mapping[Method, Result]
#: Of a chosen network: digits after the point, and what is above the column.
COLUMNS = {
  "test": (3, "test loss"),
  "log_product": (1, "log10 of\nproduct"),
  "log_slope": (2, "log10 of\nslope"),
}
#: Of products that others are compared at: powers of ten beside that of the unconstrained network.
POWERS = (0, -2, -4, -8)


def tables(results: Results, found: Found) -> Group:
  """Of the chosen networks, and of those up to a product."""
  return Group(_chosen_table(results, found), *(_limits_table(results, found, x) for x in RATES))


def _chosen_table(results: Results, found: Found) -> Table:
  rows = {}
  for method, one in results.items():
    cells = [_cell(one.mean(name), digits) for name, (digits, _) in COLUMNS.items()]
    ms = f"{median_ms(found, method):.0f}"
    chosen = f"{one.best.strength:g}", f"{one.best.rate:g}"
    rows[method.name] = [*chosen, *cells, ms, survivors(one)]
  headers = "strength", "rate", *(header for _, header in COLUMNS.values()), "ms a\nstep"
  title = "Chosen by validation loss: mean ± standard error over seeds"
  return report.table(title, (*headers, "rates that survive"), rows)


def median_ms(found: Found, method: Method) -> float:
  """Of a step, over the method's runs: on a shared machine single ones are far off."""
  return 1000 * float(np.median([x.seconds for run, x in found.items() if run[:2] == method[:2]]))


def _limits_table(results: Results, found: Found, optimizer: str) -> Table:
  limits, tests = at_limits(optimizer, found, results)
  rows = {x: ["" if y is None else f"{y:.3f}" for y in some] for x, some in tests.items()}
  headers = [f"up to\n10^{limit:.1f}" for limit in limits]
  title = f"{optimizer}: test loss, chosen by validation loss among products of norms up to"
  return report.table(title, headers, rows)


def at_limits(
  optimizer: str, found: Found, results: Results
) -> tuple[list[float], dict[str, list[float | None]]]:
  """Log10 of products, and each constraint's test loss with the best rate and strength up to them.

  The products are that of the chosen network without a constraint times `POWERS` of ten.
  """
  some = {m.constraint: x for m, x in results.items() if m.optimizer == optimizer}
  limits = [some[NONE].seeds[0].log_product + power for power in POWERS] if NONE in some else []
  best = {x: [at_most(found, optimizer, x, limit) for limit in limits] for x in some}
  return limits, {x: [None if y is None else y.test for y in ys] for x, ys in best.items()}


def _cell(value: Estimate, digits: int) -> str:
  """A mean, with its standard error where there are several seeds."""
  return report.cell(value, digits) if math.isfinite(value.error) else f"{value.mean:.{digits}f}"


def survivors(one: Result) -> str:
  """From the smallest to the largest rate that survives, with signs where the grid ends."""
  first, last = one.surviving[0], one.surviving[-1]
  low, high = ("≤" if first == one.rates[0] else ""), ("≥" if last == one.rates[-1] else "")
  return f"{low}{first.rate:g} to {high}{last.rate:g}"


def findings(found: Found, results: Results) -> list[str]:
  """Sentences no stronger than the numbers."""
  sentences = []
  for optimizer in RATES:
    some = {m.constraint: x for m, x in results.items() if m.optimizer == optimizer}
    if NONE in some:
      sentences += [
        _of_losses(optimizer, some),
        _at_equal_norms(optimizer, found, results),
        _of_rates(optimizer, some),
      ]
  return sentences


def _of_losses(optimizer: str, some: Mapping[str, Result]) -> str:
  means = {name: one.mean("test") for name, one in some.items() if len(one.seeds) > 1}
  base = means.pop(NONE, None)
  parts = (
    [report.comparison(name, x, base, 3) for name, x in means.items()] if base else ["no seeds"]
  )
  return f"{optimizer}, test loss minus that without a constraint: {', '.join(parts)}."


def _at_equal_norms(optimizer: str, found: Found, results: Results) -> str:
  parts = []
  limits, tests = at_limits(optimizer, found, results)
  for i, limit in enumerate(limits):
    there = {name: some[i] for name, some in tests.items() if some[i] is not None}
    first = min(there, key=there.__getitem__, default="none")
    loss = f" {there[first]:.3f}" if there else ""
    missing = ", ".join(name for name in tests if name not in there)
    without = f" (no network there: {missing})" if missing else ""
    parts.append(f"up to 10^{limit:.1f} {first}{loss}{without}")
  return f"{optimizer}, lowest test loss by the product of norms: {'; '.join(parts)}."


def _of_rates(optimizer: str, some: Mapping[str, Result]) -> str:
  parts = (f"{name} {len(x.surviving)} of {len(x.rates)}" for name, x in some.items())
  return f"{optimizer}, rates within {MARGIN:g} nats of the method's best: {', '.join(parts)}."


def notes(settings: Mapping[str, Any], text: Text, found: Found, results: Results) -> list[str]:
  """What the numbers are and are not."""
  sizes = ", ".join(f"{name} {settings[name]}" for name in ("layers", "width", "heads", "length"))
  sizes += f", {settings['parameters'] / 1e6:.2f} million parameters"
  n_read = settings["steps"] * settings["batch"] * settings["length"]
  first = sum(run.seed == 0 for run in found)
  return [
    f"Characters of pydoc_data.topics, each paragraph once: {len(text.train)} to train on,"
    f" {len(text.validation)} for validation, {len(text.test)} for testing, contiguous parts;"
    f" {settings['characters']} different ones. Losses are of {N_WINDOWS} windows, in nats a"
    " character.",
    f"A transformer ({sizes}), normalization by root mean squares without a scale, no biases;"
    f" {settings['steps']} steps of {settings['batch']} windows,"
    f" {n_read / len(text.train):.2f} of the training text: training has barely begun, and what"
    " differs is mostly how fast it goes.",
    f"Learning rates {_grid(results, 'rates')}; they rise for a tenth of the steps and fall along"
    f" a cosine. Strengths {_grid(results, 'strengths')}. {first} runs of the first seed."
    " The rates in the middle, and those that turn out best for a method of the same optimizer,"
    " are tried with all strengths, the others with the method's best strength; then rate and"
    " strength are chosen by validation loss, first seed. At an end of"
    " a grid of more than two:"
    f" {_at_the_edge(results)}.",
    "Decay, ball and sphere hold all matrices but the tables of characters and positions. Balls"
    " and spheres are of spectral norms √(outputs/inputs) times the strength. Muon leaves tables"
    " and head to Adam, at a tenth of its rate.",
    "Product: of certified upper bounds of the norms of these matrices; it is compared between"
    " networks, and bounds none of them, as attention and normalization have no Lipschitz constant"
    f" on all inputs. Slope: the largest norm of the Jacobian of the last logits of {SLOPE_LENGTH}"
    " characters in their embeddings, in units of these embeddings' root mean square length, at"
    f" {N_SLOPES} windows.",
    f"A rate survives if, at the method's best strength, its validation loss is at most"
    f" {MARGIN:g} above the method's best; ≤ and ≥ where the rates that were tried end. Rates are"
    " a factor of 4 apart.",
  ]


def _grid(results: Results, name: str) -> str:
  grids = {}
  for method in results:
    of = method.optimizer if name == "rates" else method.name
    grids[of] = getattr(method, name)
  shown = {of: ", ".join(f"{x:g}" for x in grid) for of, grid in grids.items() if grid != (0.0,)}
  return "; ".join(f"{of}: {grid}" for of, grid in shown.items())


def _at_the_edge(results: Results) -> str:
  parts = []
  for method, one in results.items():
    for what, grid in (("rate", method.rates), ("strength", method.strengths)):
      value = getattr(one.best, what)
      if len(grid) > 2 and value in (grid[0], grid[-1]):
        parts.append(f"{method.name}: {what} {value:g}")
  return "; ".join(parts) or "none"


def contents(settings: Mapping[str, Any], found: Found, results: Results) -> dict[str, Any]:
  """What is written, beside texts."""
  methods = [
    {
      **method._asdict(),
      "name": method.name,
      "chosen": one.best._asdict(),
      "mean_and_standard_error": {name: one.mean(name) for name in COLUMNS},
      "median_ms": median_ms(found, method),
      "curve": [_flat(run, found[run]) for run in one.curve],
      "surviving_rates": [run.rate for run in one.surviving],
      "survivors": survivors(one),
    }
    for method, one in results.items()
  ]
  limits = {}
  for optimizer in RATES:
    bounds, tests = at_limits(optimizer, found, results)
    limits[optimizer] = {"log_products": bounds, "test": tests}
  return {"settings": settings, "margin": MARGIN, "methods": methods, "at_most": limits}


def _flat(run: Run, measured: Measured) -> dict[str, Any]:
  return {**run._asdict(), **measured._asdict()}
