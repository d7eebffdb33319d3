"""``python -m lipjax demo``: what spectral decay does to a small network, measured."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

SUMMARY = "train a small network with and without spectral decay and compare"
INSTALL = 'pip install "lipjax[demo]"'


def add_parser(commands: Any) -> None:
  """Adds ``demo`` to the command line."""
  parser = commands.add_parser(
    "demo",
    help=SUMMARY,
    description="Trains a small network on scikit-learn's digits without regularization, with"
    " L2 decay and with spectral decay, chooses strengths on validation images, and compares"
    " accuracy, robustness and norms on test images. One to two minutes on two cores.",
  )
  parser.add_argument("--quick", action="store_true", help="a smaller run, for a first look")
  parser.add_argument("--seeds", type=at_least(2), metavar="N", help="default 5, quick 2")
  parser.add_argument("--steps", type=at_least(1), metavar="N", help="default 1500, quick 100")
  parser.add_argument(
    "--out",
    type=Path,
    default=Path("lipjax-demo"),
    metavar="DIR",
    help="where demo.png and demo.json go (default: %(default)s)",
  )
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
  """Trains, prints and writes. Exits with a message when an extra is missing."""
  begin = time.perf_counter()
  _require_extras()
  _make_directory(args.out)
  from lipjax.commands import demo_data

  data = demo_data.load()
  n_seeds = args.seeds or (2 if args.quick else 5)
  n_steps = args.steps or (100 if args.quick else 1500)
  results = _results(data, n_seeds, n_steps, quick=args.quick)
  settings = {"seeds": n_seeds, "steps": n_steps, "quick": args.quick}
  _print(results, data, settings)
  _write(results, settings, args.out)
  print(f"\nWrote {args.out / 'demo.png'} and {args.out / 'demo.json'}", end="")
  print(f" after {time.perf_counter() - begin:.0f} s.")
  return 0


def _results(data, n_seeds, n_steps, *, quick):
  from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

  from lipjax.commands import demo_evaluate, demo_train
  from lipjax.commands.demo_methods import METHODS

  columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn())
  results = []
  with Progress(*columns, TextColumn("steps"), TimeElapsedColumn()) as progress:
    for method in METHODS:
      strengths = method.grid[:2] if quick else method.grid
      title = f"{method.name}: {len(strengths)} × {n_seeds} networks"
      task = progress.add_task(title, total=len(strengths) * n_steps)
      on_progress = functools.partial(progress.advance, task)
      trained = {
        strength: demo_train.train(method, strength, n_seeds, n_steps, data.train, on_progress)
        for strength in strengths
      }
      results.append(demo_evaluate.evaluate(method, trained, data))
  return results


def _print(results, data, settings):
  from rich.console import Console

  from lipjax.commands import demo_report

  console = Console(highlight=False)
  console.print(
    f"\n64-256-256-10 ReLU network, {len(data.train.labels)} training images, SGD 0.05 with"
    f" momentum 0.9, {settings['steps']} steps, {settings['seeds']} seeds."
  )
  console.print(demo_report.table(results))
  for sentence in demo_report.comparisons(results):
    console.print(sentence)
  console.print()
  for note in demo_report.notes(results, data, settings["seeds"]):
    console.print(f"· {note}", style="dim")


def _write(results, settings, directory):
  import numpy as np

  from lipjax.commands import demo_figure, demo_report

  history = np.unique(np.linspace(0, settings["steps"] - 1, 200).astype(int))
  demo_figure.draw(results, history, directory / "demo.png")
  text = json.dumps(demo_report.numbers(results, settings, history), indent=1)
  (directory / "demo.json").write_text(text, encoding="utf-8")


def _require_extras():
  for name in ("sklearn", "matplotlib", "rich"):
    try:
      importlib.import_module(name)
    except ImportError:
      sys.exit(f"The demo needs {name}, which is not installed. Install it with: {INSTALL}")


def _make_directory(path: Path):
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    sys.exit(f"Cannot write to --out {path}: {error.strerror or error}.")


def at_least(least: int):
  """An argparse type: an integer of at least `least`."""

  def parse(text: str) -> int:
    try:
      value = int(text)
    except ValueError:
      value = least - 1
    if value < least:
      msg = f"{text!r} is not an integer of at least {least}"
      raise argparse.ArgumentTypeError(msg)
    return value

  return parse
