"""Transformers of characters: loss beside certified norms, and learning rates that survive."""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import numpy as np

from benchmarks.experiments import options, report, transformer_text
from benchmarks.experiments.transformer_choose import (
  result,
  with_best_rates,
  with_middle_rates,
  with_other_rates,
  with_other_seeds,
)
from benchmarks.experiments.transformer_figure import draw_figure
from benchmarks.experiments.transformer_measure import Measured, log_product, log_slope, losses
from benchmarks.experiments.transformer_methods import (
  ADAMW,
  MUON,
  NONE,
  SPHERE,
  WEIGHT,
  methods,
)
from benchmarks.experiments.transformer_network import Transformer, n_parameters
from benchmarks.experiments.transformer_report import contents, findings, notes, tables
from benchmarks.experiments.transformer_runs import DIVERGED, Run, RunsFile
from benchmarks.experiments.transformer_text import Text
from benchmarks.experiments.transformer_train import Choice, Program, train
from lipjax.commands.demo import at_least

FULL = options.Budget(seeds=2, steps=90)
QUICK = options.Budget(seeds=2, steps=5)
#: Windows of a step, and of a quick run's.
BATCH, QUICK_BATCH = 8, 2
SIZES = {"length": 64, "width": 192, "heads": 4, "layers": 4}
#: A program that follows norms takes some ten seconds to compile.
QUICK_METHODS = (ADAMW, NONE), (ADAMW, WEIGHT), (MUON, NONE), (MUON, SPHERE)
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
  ways = methods()
  if args.quick:
    ways = [way.at_most(1) for way in ways if way[:2] in QUICK_METHODS]
  sizes = QUICK_SIZES if args.quick else SIZES
  batch = QUICK_BATCH if args.quick else BATCH
  network = Transformer(len(text.characters), **sizes)
  settings = {"steps": budget.steps, "batch": batch, **sizes, "text": text.digest}
  file = RunsFile(args.runs or args.out / "transformer_runs.jsonl", settings)
  until = time.monotonic() + 60 * (np.inf if args.minutes is None else args.minutes)
  found = file.read()
  with report.progress() as bar:
    for title, runs_of in (
      ("middle rates, all strengths", with_middle_rates),
      ("other rates, best strength", with_other_rates),
      ("best rates, all strengths", with_best_rates),
      ("other rates, new best strength", with_other_rates),
      ("chosen, other seeds", functools.partial(with_other_seeds, seeds=budget.seeds)),
    ):
      some = runs_of(found, ways)
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


def _measured(network: Transformer, run: Run, batch: int, n_steps: int, text: Text) -> Measured:
  program = Program(network, run.optimizer, run.constraint, batch, n_steps)
  trained = train(program, Choice(run.rate, run.strength, run.seed), text.train)
  validation, test = losses(network, trained.params, text)
  norms = log_product(trained.params), log_slope(network, trained.params, text)
  numbers = trained.loss, validation, test, *norms, trained.seconds
  return Measured(*(x if np.isfinite(x) else DIVERGED for x in numbers))
