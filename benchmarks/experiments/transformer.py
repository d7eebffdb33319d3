"""Transformers of characters: loss beside certified norms and bounds, and rates that survive."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import options, report, transformer_text
from benchmarks.experiments.transformer_choose import result, to_try
from benchmarks.experiments.transformer_figure import draw_figure
from benchmarks.experiments.transformer_measure import Measured, certified, log_product, losses
from benchmarks.experiments.transformer_methods import Method, methods
from benchmarks.experiments.transformer_network import Transformer, n_parameters
from benchmarks.experiments.transformer_report import contents, findings, notes, tables
from benchmarks.experiments.transformer_runs import DIVERGED, Run, RunsFile
from benchmarks.experiments.transformer_text import Text
from benchmarks.experiments.transformer_train import Choice, Program, train
from lipjax.commands.demo import at_least

FULL = options.Budget(seeds=2, steps=150)
QUICK = options.Budget(seeds=2, steps=5)
#: Windows of a step, and of a quick run's.
BATCH, QUICK_BATCH = 8, 2
SIZES = {"length": 64, "width": 192, "heads": 4, "layers": 4}
QUICK_SIZES = {"length": 16, "width": 16, "heads": 2, "layers": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_common(parser, full=FULL, quick=QUICK)
  parser.add_argument(
    "--runs",
    type=Path,
    metavar="FILE",
    help="where each run is kept as it is done, and is not repeated: a file to go on with"
    " (default: transformer_runs.jsonl in the folder of --out)",
  )
  parser.add_argument(
    "--minutes",
    type=at_least(0),
    metavar="N",
    help="begin no run after so many; what is there is reported (default: no limit)",
  )


def run(args: argparse.Namespace) -> None:
  """Trains what is not in the file yet, chooses, prints and writes."""
  text, budget = transformer_text.load(), options.budget(args, full=FULL, quick=QUICK)
  ways = [method.at_most(1) for method in methods()] if args.quick else methods()
  sizes = QUICK_SIZES if args.quick else SIZES
  batch = QUICK_BATCH if args.quick else BATCH
  network = Transformer(len(text.characters), **sizes)
  settings = {"steps": budget.steps, "batch": batch, **sizes, "text": text.digest}
  file = RunsFile(args.runs or args.out / "transformer_runs.jsonl", settings)
  until = time.monotonic() + 60 * (np.inf if args.minutes is None else args.minutes)
  found = file.read()
  with report.progress() as bar:
    for title, runs in (("first seed", to_try(ways)), ("chosen, other seeds", None)):
      some = _other_seeds(found, ways, budget.seeds) if runs is None else runs
      progress = bar.add_task(title, total=len(some), completed=sum(x in found for x in some))
      for one in some:
        if one not in found and time.monotonic() < until:
          found[one] = _measured(network, one, batch, budget.steps, text)
          file.add(one, found[one])
          bar.advance(progress)
  results = {method: x for method in ways if (x := result(found, method))}
  settings |= {"seeds": budget.seeds, "quick": args.quick, "characters": len(text.characters)}
  settings |= {"parameters": n_parameters(network)}
  said, texts = findings(found, results), notes(settings, text, found, results)
  report.show(tables(results, found), said, texts)
  written = contents(settings, found, results) | {"findings": said, "notes": texts}
  report.write(args.out, "transformer", draw_figure(found, results), written)


def _other_seeds(found: dict[Run, Measured], ways: Iterable[Method], seeds: int) -> list[Run]:
  best = [x.best for method in ways if (x := result(found, method))]
  return [run._replace(seed=seed) for seed in range(1, seeds) for run in best]


def _measured(network: Transformer, run: Run, batch: int, n_steps: int, text: Text) -> Measured:
  program = Program(network, run.optimizer, run.constraint, batch, n_steps)
  trained = train(program, Choice(run.rate, run.strength, run.seed), text.train)
  validation, test = losses(network, trained.params, text)
  bounds: Any = (DIVERGED,) * 3
  if np.isfinite(validation):
    bounds = log_product(trained.params), *certified(network, trained.params, text)
  numbers = trained.loss, validation, test, *bounds, trained.seconds
  return Measured(*(x if np.isfinite(x) else DIVERGED for x in numbers))
