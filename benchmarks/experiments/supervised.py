"""A classifier with and without capped spectral norms: accuracy, robustness and norms."""

from __future__ import annotations

import argparse
from typing import Any

import jax.numpy as jnp

from benchmarks.experiments import options, report, supervised_data
from benchmarks.experiments.supervised_data import Data
from benchmarks.experiments.supervised_evaluate import Result, evaluate, milliseconds
from benchmarks.experiments.supervised_figure import draw_figure
from benchmarks.experiments.supervised_network import ATTACK_STEPS, WIDTH
from benchmarks.experiments.supervised_train import BATCH, LEARNING_RATE, MOMENTUM, train
from lipjax.commands.demo_statistics import Estimate, estimate

FULL = options.Budget(seeds=5, steps=1500)
QUICK = options.Budget(seeds=2, steps=50)
CAPS = (1.0, 1.4, 2.0, 2.8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_common(parser, full=FULL, quick=QUICK)
  supervised_data.add_argument(parser)


def run(args: argparse.Namespace) -> None:
  """Trains, chooses the cap, measures, times, prints and writes."""
  data = supervised_data.asked_for(args)
  seeds, steps = options.budget(args, full=FULL, quick=QUICK)
  caps = CAPS[:2] if args.quick else CAPS
  plain, capped = _results(data, caps, seeds, steps)
  chosen = max(capped, key=lambda result: result.score)
  times = {} if args.quick else milliseconds(data, chosen.cap, blocks=20)
  settings = {"data": data.name, "seeds": seeds, "steps": steps, "quick": args.quick}
  texts = {"findings": _findings(plain, chosen, data), "notes": _notes(capped, data, settings)}
  report.show(_table(plain, capped, chosen, data, times), texts["findings"], texts["notes"])
  numbers = [_numbers(result, data) for result in (plain, *capped)]
  contents = {"settings": settings, **texts, "chosen_cap": chosen.cap, "times": times}
  contents |= {"radii": data.radii, "networks": numbers}
  report.write(args.out, "supervised", draw_figure(plain, capped, chosen, data), contents)


def _results(data, caps, seeds, steps) -> tuple[Result, list[Result]]:
  both = []
  with report.progress() as bar:
    for name, group in (("no cap", None), (f"caps {', '.join(f'{c:g}' for c in caps)}", caps)):
      task = bar.add_task(f"{name}: {seeds * len(group or (0,))} networks at once", total=steps)
      array = None if group is None else jnp.array(group)
      advance = lambda n, task=task: bar.advance(task, n)
      both.append(evaluate(group, train(array, seeds, steps, data.train, advance), data))
  (plain,), capped = both
  return plain, capped


def _table(plain, capped, chosen, data, times):
  headers = ("clean\n%", f"attack\n{data.radius:g}\n%", *(f"σ of\n{name}" for name in plain.norms))
  rows = {}
  for result in (plain, *capped):
    name = _name(result) + (" (chosen)" if result is chosen else "")
    accuracies = _accuracies(result, data).values()
    norms = [*result.norms.values(), result.product]
    time = times.get({_name(plain): "none", _name(chosen): "capped"}.get(_name(result), ""))
    rows[name] = [
      *(report.cell(value, 1) for value in accuracies),
      *(report.cell(estimate(value)) for value in norms),
      f"{time['median_ms']:.2f}" if time else "",
    ]
  title = f"{data.name}, {len(data.test.labels)} test images, mean ± standard error over seeds"
  return report.table(title, (*headers, "product\nof σ", "ms a\nstep"), rows)


def _accuracies(result: Result, data: Data) -> dict[str, Estimate]:
  at_radius = result.accuracies[data.radii.index(data.radius)]
  return {"clean": estimate(result.accuracies[0], 100), "attack": estimate(at_radius, 100)}


def _findings(plain: Result, chosen: Result, data: Data) -> list[str]:
  base, ours = _accuracies(plain, data), _accuracies(chosen, data)
  parts = [report.comparison(name, ours[name], base[name]) for name in base]
  return [f"{_name(chosen)} minus none, in points: {', '.join(parts)}."]


def _notes(capped: list[Result], data: Data, settings: dict[str, Any]) -> list[str]:
  tried = ", ".join(f"{result.cap:g}: {100 * result.score:.1f}" for result in capped)
  best = max(capped, key=lambda result: result.score)
  edge = " It is at the edge of what was tried." if best in (capped[0], capped[-1]) else ""
  return [
    f"{data.train.images.shape[1]}-{WIDTH}-{WIDTH}-10 ELU network, {len(data.train.labels)}"
    f" training images, SGD {LEARNING_RATE:g} with momentum {MOMENTUM:g}, {settings['steps']} steps"
    f" of {BATCH}, {settings['seeds']} seeds of initialization and batches, shared by all rows."
    " Nothing else regularizes; the learning rate was not tuned.",
    f"One cap for all layers, chosen by the mean of clean and attacked accuracy on"
    f" {len(data.validation.labels)} validation images ({tried}).{edge} The other rows show what"
    " the choice passed over.",
    "At most 2 combined standard errors are called within noise; the test images stay the same.",
    f"Attack: {ATTACK_STEPS} steps of PGD in an l2 ball, pixels in [0, 1], from the image itself;"
    " it finds some adversarial images, not all, so true robust accuracy is at most this.",
    "σ: SVD in float64 of the weights that the network is applied with, singular vectors frozen"
    " after training. They can exceed the cap by as much as one power step an update lags.",
    "Farnia, Zhang & Tse (2019) report test accuracy .508 → .559 for such a network on CIFAR-10,"
    f" with their schedule and preprocessing, which are not these. Here: {data.name}.",
    "Milliseconds: one network, one jitted step on a batch drawn before; medians of blocks in"
    " turn.",
  ]


def _numbers(result: Result, data: Data) -> dict[str, Any]:
  sigma = {f"sigma_{name}": estimate(value) for name, value in result.norms.items()}
  percent = {f"{name}_percent": value for name, value in _accuracies(result, data).items()}
  return {
    "name": _name(result),
    "mean_and_standard_error": percent | sigma | {"product_of_sigma": estimate(result.product)},
    "accuracy_by_radius": result.accuracies,
    "validation_clean_and_attacked": result.validation,
    "sigma": result.norms,
  }


def _name(result: Result) -> str:
  return "none" if result.cap is None else f"cap {result.cap:g}"
