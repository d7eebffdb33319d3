"""What papers claim of norms in supervised training: generalization, wrong labels, robustness."""

from __future__ import annotations

import argparse

from benchmarks.experiments import options, report, supervised_data
from benchmarks.experiments.claims_choose import ROBUST, Result, result
from benchmarks.experiments.claims_figure import draw_figure
from benchmarks.experiments.claims_findings import Results, Tracked, findings
from benchmarks.experiments.claims_methods import NONE, SPECTRAL, Method, methods
from benchmarks.experiments.claims_networks import Network, networks
from benchmarks.experiments.claims_report import contents, notes, tables
from benchmarks.experiments.claims_tasks import SMALL, Task, tasks, trained_on
from benchmarks.experiments.claims_tracker import MOST_STEPS, track
from benchmarks.experiments.claims_train import Program
from benchmarks.experiments.supervised_data import Data

#: Steps are those of small batches; large ones get as many epochs.
FULL = options.Budget(seeds=3, steps=1500)
QUICK = options.Budget(seeds=2, steps=30)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_common(parser, full=FULL, quick=QUICK)
  supervised_data.add_argument(parser)


def run(args: argparse.Namespace) -> None:
  """Trains, chooses, measures, follows norms, prints and writes."""
  data = supervised_data.asked_for(args)
  data = data._replace(train=trained_on(data))
  budget = options.budget(args, full=FULL, quick=QUICK)
  results, tracked = {}, {}
  with report.progress() as bar:
    for network in networks(data):
      ways = methods(network, data.radius)
      if args.quick:
        ways = {name: method.at_most(1) for name, method in ways.items()}
      results |= _results(network, ways, data, budget, bar)
      tracked |= _tracked(network, ways, data, results, budget, bar)
  found = findings(results, tracked)
  said = notes(data, budget, results)
  report.show(tables(data, results, tracked), [x for some in found.values() for x in some], said)
  written = contents(data, budget, args.quick, results, tracked)
  texts = {"findings": found, "notes": said}
  report.write(args.out, "claims", draw_figure(data, results), texts | written)


def _results(
  network: Network, ways: dict[str, Method], data: Data, budget: options.Budget, bar
) -> Results:
  results: dict[Task, dict[str, Result]] = {}
  for task in tasks(network.name, len(data.train.labels)):
    progress = bar.add_task(f"{task.title}: methods", total=len(ways))
    results[task] = {}
    for name, method in ways.items():
      results[task][name] = result(network, method, task, data, *budget)
      bar.advance(progress)
  return results


def _tracked(
  network: Network,
  ways: dict[str, Method],
  data: Data,
  results: Results,
  budget: options.Budget,
  bar,
) -> Tracked:
  small, names = tasks(network.name, len(data.train.labels))[0], (NONE, SPECTRAL)
  progress = bar.add_task(f"{network.name}: norms followed", total=len(names))
  errors = {}
  for name in names:
    choice = results[small][name].chosen[ROBUST]._replace(rate=small.rates[-1])
    program = Program(network, ways[name], SMALL, min(budget.steps, MOST_STEPS))
    errors[network.name, name] = track(program, choice, data.train)
    bar.advance(progress)
  return errors
