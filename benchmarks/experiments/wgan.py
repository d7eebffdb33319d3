"""A WGAN on images with four critics: unconstrained, clipped, penalized, normalized."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import options, report, wgan_report
from benchmarks.experiments.wgan_data import Images, load
from benchmarks.experiments.wgan_evaluate import floor, measure, samples
from benchmarks.experiments.wgan_figure import draw_samples, draw_training
from benchmarks.experiments.wgan_methods import METHODS
from benchmarks.experiments.wgan_speed import milliseconds
from benchmarks.experiments.wgan_train import train

FULL = options.Budget(seeds=3, steps=1500)
QUICK = options.Budget(seeds=2, steps=100)
EVERY = 50  # Steps of the generator between two measurements.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_common(parser, full=FULL, quick=QUICK)
  parser.add_argument(
    "--cifar", type=Path, metavar="PATH", help="CIFAR-10's binary files instead of the digits"
  )


def run(args: argparse.Namespace) -> None:
  """Trains, measures, times, prints and writes."""
  seeds, steps = options.budget(args, full=FULL, quick=QUICK)
  images = load(args.cifar)
  moments = [*range(0, steps, EVERY), steps]
  histories, starts, panels = {}, {}, {"held out": np.asarray(images.held_out[:64])}
  with report.progress() as bar:
    for method in METHODS[:4] if args.quick else METHODS:
      task = bar.add_task(f"{method.name}: {seeds} generators at once", total=steps)
      history = []
      for step, state in train(method, seeds, moments, images.train):
        starts.setdefault(method, state.critic)
        history.append(measure(method, state, images.held_out))
        bar.update(task, completed=step)
      histories[method.name] = history
      panels[method.name] = samples(state, 64)
  times = milliseconds(starts, images, blocks=3 if args.quick else 40)
  settings = {"images": images.name, "seeds": seeds, "steps": steps, "quick": args.quick}
  real = floor(images.train, images.held_out, seeds)
  outcome = wgan_report.Outcome(settings, moments, histories, real, times)
  wgan_report.show(outcome)
  _write(args.out, outcome, images, panels)


def _write(folder: Path, outcome: wgan_report.Outcome, images: Images, panels: Any) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  draw_samples(panels, images.shape).savefig(folder / "wgan_samples.png")
  training = draw_training(outcome.histories, outcome.moments, outcome.floor)
  training.savefig(folder / "wgan_training.png")
  report.write_json(folder, "wgan", wgan_report.numbers(outcome))
  print(f"\nWrote wgan.json, wgan_samples.png and wgan_training.png in {folder}.")
