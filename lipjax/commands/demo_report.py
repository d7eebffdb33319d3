"""What the demo prints and writes: a table, sentences and JSON."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table

from lipjax.commands.demo_attack import NOISE
from lipjax.commands.demo_data import Digits
from lipjax.commands.demo_evaluate import RADII, RADIUS, Result
from lipjax.commands.demo_statistics import Estimate, difference, estimate, verdict


def table(results: list[Result]) -> Table:
  """One row a method; under every mean its standard error."""
  grid = Table(box=box.SIMPLE_HEAD, title="Test images, mean ± standard error over seeds")
  grid.add_column("method", justify="left")
  headers = ("clean\n%", f"noise\n{NOISE}\n%", f"attack\n{RADIUS}\n%")
  layers = [f"σ of\n{_layer(path)}" for path in results[0].norms]
  for header in (*headers, *layers, "product\nof σ"):
    grid.add_column(header, justify="right")
  for result in results:
    estimates = [*accuracies(result).values(), *map(estimate, result.norms.values())]
    cells = [_cell(value, 1 if i < 3 else 2) for i, value in enumerate(estimates)]
    product = _cell(estimate(result.product), 2)
    grid.add_row(f"[bold]{result.method.name}[/]\n{_strength(result)}", *cells, product)
  return grid


def accuracies(result: Result) -> dict[str, Estimate]:
  """The three accuracies in percent."""
  values = {"clean": result.clean, "noise": result.noisy, "attack": result.at_radius}
  return {name: estimate(value, 100) for name, value in values.items()}


def comparisons(results: list[Result]) -> list[str]:
  """One sentence for each pair of methods, computed from the numbers."""
  sentences = []
  for base, other in itertools.combinations(results, 2):
    parts = []
    for name, ours in accuracies(other).items():
      delta = difference(ours, accuracies(base)[name])
      parts.append(f"{name} {delta.mean:+.1f} ± {delta.error:.1f} ({verdict(delta)})")
    sentences.append(
      f"{other.method.name} minus {base.method.name}, in points: {', '.join(parts)}."
    )
  return sentences


def choice(result: Result) -> str:
  """How the strength of a method was chosen."""
  tried = ", ".join(f"{s:g}: {100 * score:.1f}" for s, score in result.validation.items())
  sentence = f"{result.method.name}: {result.strength:g} (validation scores {tried})."
  if result.strength in (min(result.validation), max(result.validation)):
    sentence += " It is at the edge of what was tried, so a better one may exist."
  return sentence


def notes(results: list[Result], data: Digits, n_seeds: int) -> list[str]:
  """What the numbers are, and what they are not."""
  chosen = [choice(result) for result in results if len(result.validation) > 1]
  gaps = ", ".join(f"{r.method.name} {100 * r.tracking_gap:.2g} %" for r in results)
  return [
    "Strengths: the best mean of clean and attacked accuracy on"
    f" {len(data.validation.labels)} validation images. {' '.join(chosen)}",
    f"Errors are over {n_seeds} seeds of initialization and batches; the"
    f" {len(data.test.labels)} test images stay the same. At most 2 combined standard errors"
    " are called within noise.",
    "Noise: Gaussian on every pixel, by standard deviation. Attack: 20 steps of PGD in an l2"
    " ball of that radius; it finds some adversarial images, not all, so true robust accuracy"
    " is at most this.",
    "The product of σ bounds the network's l2 Lipschitz constant only as far as the σ are"
    " right: they come from a float32 SVD without a margin for rounding. It is not a certificate.",
    f"Tracked σ against these, at the end of training, largest deviation: {gaps}.",
  ]


def numbers(results: list[Result], settings: dict[str, Any], history: np.ndarray) -> dict:
  """Everything in the table and in the figure, for JSON."""
  return {
    "versions": {"jax": jax.__version__},
    "settings": settings,
    "radii": RADII,
    "history_steps": history.tolist(),
    "methods": {result.method.name: _method_numbers(result, history) for result in results},
    "comparisons": comparisons(results),
  }


def _method_numbers(result: Result, history: np.ndarray) -> dict[str, Any]:
  as_lists = lambda arrays: {path: x.tolist() for path, x in arrays.items()}
  return {
    "strength": result.strength,
    "validation_score": {f"{s:g}": score for s, score in result.validation.items()},
    "mean_and_standard_error": {
      **{f"{name}_percent": value for name, value in accuracies(result).items()},
      **{f"sigma_{_layer(path)}": estimate(x) for path, x in result.norms.items()},
      "product_of_sigma": estimate(result.product),
    },
    "clean": result.clean.tolist(),
    "noise": result.noisy.tolist(),
    "attack_by_radius": result.attacked.tolist(),
    "sigma": as_lists(result.norms),
    "tracked_sigma": as_lists(result.tracked),
    "largest_tracking_deviation": result.tracking_gap,
    "sigma_history": as_lists({path: x[:, history] for path, x in result.history.items()}),
  }


def _cell(value: Estimate, digits: int) -> str:
  return f"{value.mean:.{digits}f}\n[dim]±{value.error:.{digits}f}[/]"


def _strength(result: Result) -> str:
  return f"[dim]λ = {result.strength:g}[/]" if result.strength else ""


def _layer(path: str) -> str:
  return path.removesuffix("/kernel")
