"""The figure of ``supervised``: accuracy against the attack, and against the cap."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.experiments import report
from benchmarks.experiments.supervised_data import Data
from benchmarks.experiments.supervised_evaluate import Result

# Told apart in every common kind of colour blindness.
PLAIN, CAPPED = "#555555", "#0072B2"


def draw_figure(plain: Result, capped: list[Result], chosen: Result, data: Data) -> Any:
  figure, (left, right) = report.new_figure(2)
  for result, color, marker, label in (
    (plain, PLAIN, "o", "no cap"),
    (chosen, CAPPED, "D", f"every σ capped at {chosen.cap:g}"),
  ):
    _line(left, data.radii, result.accuracies, color, marker, "-", label)
  left.set(title=f"{data.name}: accuracy under attack", ylabel="test accuracy (%)")
  left.set(xlabel="l2 radius of the attack (pixels in [0, 1])", ylim=(0, 100))
  _validation_panel(right, plain, capped, chosen, data)
  for axes in (left, right):
    report.legend_below(axes)
  return figure


def _validation_panel(axes, plain, capped, chosen, data):
  caps = [result.cap for result in capped]
  for row, style, what in ((0, "-", "clean"), (1, "--", f"attack {data.radius:g}")):
    values = np.stack([result.validation[row] for result in capped])
    _line(axes, caps, values, CAPPED, "D", style, what)
    mean = 100 * plain.validation[row].mean()
    axes.axhline(mean, color=PLAIN, ls=style, lw=1.5, label=f"{what}, no cap")
  axes.axvline(chosen.cap, color="#009E73", lw=1.2, ls=":", label="chosen")
  axes.set(title="Choice of the cap, on validation images", ylabel="validation accuracy (%)")
  axes.set(xlabel="cap on every layer's σ", ylim=(0, 100))


def _line(axes, x, values, color, marker, style, label):
  """Mean ± standard error over seeds, the last axis of `values`."""
  mean = 100 * values.mean(-1)
  error = 100 * values.std(-1, ddof=1) / np.sqrt(values.shape[-1])
  axes.plot(x, mean, style, color=color, marker=marker, ms=5, lw=1.8, label=label)
  axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
