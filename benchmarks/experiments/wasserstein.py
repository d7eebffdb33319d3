"""Critics between two spheres at Wasserstein distance 1: what each constraint makes of them."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.experiments import options, report
from benchmarks.experiments.wasserstein_figure import draw_figure
from benchmarks.experiments.wasserstein_measure import (
  FAR,
  N_POINTS,
  Result,
  measure,
  milliseconds,
)
from benchmarks.experiments.wasserstein_methods import METHODS, PENALTY, UNCONSTRAINED
from benchmarks.experiments.wasserstein_train import BATCH, LEARNING_RATE, train
from lipjax.commands.demo_statistics import estimate

FULL = options.Budget(seeds=5, steps=4000)
QUICK = options.Budget(seeds=2, steps=20)
HEADERS = (
  "dual\nestimate\n(true: 1)",
  "largest ‖∇f‖\nbetween\nx and y",
  "largest ‖∇f‖\nin the\nfar box",
  "product\nof σ",
  "ms a\nstep",
  "× no\nconstraint",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_common(parser, full=FULL, quick=QUICK)


def run(args: argparse.Namespace) -> None:
  """Trains, measures, times, prints and writes."""
  seeds, steps = options.budget(args, full=FULL, quick=QUICK)
  results = {}
  with report.progress() as bar:
    for method in METHODS:
      task = bar.add_task(f"{method.name}: {seeds} critics at once", total=steps)
      critics = train(method, seeds, steps, lambda n, task=task: bar.advance(task, n))
      results[method.name] = measure(method, critics)
  # As many programs to compile again, which a quick run has no time for.
  times = {} if args.quick else milliseconds((UNCONSTRAINED, *METHODS), blocks=20)
  settings = {"seeds": seeds, "steps": steps, "quick": args.quick}
  rows = {name: _cells(result, times.get(name)) for name, result in results.items()}
  title = "Critics between spheres of radius 1 and 2 in R⁸, mean ± standard error over seeds"
  report.show(report.table(title, HEADERS, rows), _findings(results), _notes(settings))
  contents = {"settings": settings, "notes": _notes(settings), "times": times}
  methods = {name: _numbers(result) for name, result in results.items()}
  figure = draw_figure(results)
  contents |= {"findings": _findings(results), "methods": methods}
  report.write(args.out, "wasserstein", figure, contents)


def _cells(result: Result, time: dict[str, float] | None) -> list[str]:
  values = (result.dual, result.segment, result.far, result.product)
  cells = [report.cell(estimate(value), 3) for value in values]
  if time is None:
    return [*cells, "", ""]
  return [*cells, f"{time['median_ms']:.2f}", f"{time['ratio_to_no constraint']:.2f}"]


def _findings(results: dict[str, Result]) -> list[str]:
  far = {name: estimate(result.far / result.segment) for name, result in results.items()}
  steepest = max(far, key=lambda name: far[name].mean)
  relu, maxmin = (results[f"normalization, {kind}"] for kind in ("ReLU", "MaxMin"))
  over = max(float(max(r.segment.max(), r.far.max())) for r in (relu, maxmin))
  duals = estimate(maxmin.dual), estimate(relu.dual)
  return [
    f"Largest ratio of the far box's gradient to the segment's: {far[steepest].mean:.1f} ±"
    f" {far[steepest].error:.1f} ({steepest}).",
    f"Normalization, any seed: largest sampled gradient {over:.3f}, largest product of σ"
    f" {max(relu.product.max(), maxmin.product.max()):.4f}.",
    f"{report.comparison('Dual estimate, MaxMin minus ReLU, normalized:', *duals, digits=3)}.",
  ]


def _notes(settings: dict[str, Any]) -> list[str]:
  return [
    f"8-128-128-1 critics, Adam {LEARNING_RATE:g}, {settings['steps']} steps of {BATCH} new pairs,"
    f" {settings['seeds']} seeds of initialization and data, shared by the methods; learning rate"
    f" and constraints were not tuned. Balls of radius 1 a layer; penalty × {PENALTY:g}. ReLU where"
    " no other activation is named.",
    f"A largest gradient is that of {N_POINTS} sampled points: a lower bound of the Lipschitz"
    f" constant, not the constant. Far box: [-{FAR:g}, {FAR:g}]⁸. The product of σ (SVD in float64)"
    " bounds it from above, but for rounding.",
    "W₁ = 1 exactly, and a dual estimate is at most that only for a 1-Lipschitz critic: above 1 it"
    " measures slope as well as distance.",
    "Normalization follows σ by one power step an update while it trains, and lags by up to a few"
    " per cent; what is measured here divides by norms measured anew after training.",
    "Far out, a ReLU network is linear along each ray and keeps the slope it was trained to. Of the"
    " activations, biases and depths tried, SiLU with three hidden layers was steepest there: 2.5,"
    " by a search from the samples. What is proved of a penalized critic is its product of σ.",
    "Milliseconds: one network, one jitted step on a batch drawn before, compiling apart; medians"
    " of blocks in turn. A step this small is mostly dispatch, so the ratios say nothing of large"
    " networks.",
  ]


def _numbers(result: Result) -> dict[str, Any]:
  values = {"dual": result.dual, "gradient_segment": result.segment, "gradient_far": result.far}
  values["product_of_sigma"] = result.product
  return {
    "mean_and_standard_error": {name: estimate(value) for name, value in values.items()},
    **values,
    "sigma": result.norms,
  }
