"""Loss of plasticity over a sequence of tasks: L2 against penalties on norms."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.experiments import options, report, supervised_data
from benchmarks.experiments.claims_networks import mlp
from benchmarks.experiments.plasticity_choose import result
from benchmarks.experiments.plasticity_findings import findings
from benchmarks.experiments.plasticity_methods import DECOUPLED, METHODS, POWER_DECOUPLED
from benchmarks.experiments.plasticity_report import contents, draw_figure, notes, tables
from benchmarks.experiments.plasticity_tasks import SETTINGS, Images
from benchmarks.experiments.plasticity_train import Budget, Stream
from lipjax.commands.demo import at_least

#: Steps are those of a round; tasks of random labels have four.
FULL, TASKS = options.Budget(seeds=8, steps=100), 40
QUICK, QUICK_TASKS = options.Budget(seeds=4, steps=4), 6
HIDDEN = 128, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_common(parser, full=FULL, quick=QUICK)
  shown = f"default {TASKS}, quick {QUICK_TASKS}"
  parser.add_argument("--tasks", type=at_least(2), metavar="N", help=shown)
  supervised_data.add_argument(parser)


def run(args: argparse.Namespace) -> None:
  """Trains on sequences, chooses strengths, prints and writes."""
  data = supervised_data.asked_for(args)
  seeds, steps = options.budget(args, full=FULL, quick=QUICK)
  budget = Budget(seeds, args.tasks or (QUICK_TASKS if args.quick else TASKS), steps)
  network, results = mlp(data.train.images.shape[1], HIDDEN), {}
  methods = _few(METHODS) if args.quick else METHODS
  with report.progress() as bar:
    for setting in SETTINGS:
      stream = Stream(network, setting, Images(data.train, data.test), budget)
      progress = bar.add_task(f"{setting.name}: methods", total=len(methods))
      results[setting.name] = found = {}
      for name, method in methods.items():
        found[name] = result(stream, method, data.validation)
        bar.advance(progress)
  said, drawn = notes(network, data, budget, results), findings(results)
  report.show(tables(data, results), [x for some in drawn.values() for x in some], said)
  texts: dict[str, Any] = {"findings": drawn, "notes": said}
  written = texts | contents(data, budget, args.quick, results)
  report.write(args.out, "plasticity", draw_figure(data, results), written)


def _few(methods):
  """Without the decoupled ones, which take long to compile, and each with one strength alone."""
  return {
    name: method._replace(strengths=method.strengths[:1])
    for name, method in methods.items()
    if name not in (DECOUPLED, POWER_DECOUPLED)
  }
