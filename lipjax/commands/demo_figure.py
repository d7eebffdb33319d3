"""The demo's figure: norms during training, accuracy against attack radius."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lipjax.commands.demo_evaluate import RADII, Result

# Told apart in every common kind of colour blindness.
COLORS = {"none": "#555555", "L2": "#D55E00", "spectral": "#0072B2"}
STYLES = ("-", "--", ":")
MARKERS = {"none": "o", "L2": "s", "spectral": "D"}


def draw(results: list[Result], history: np.ndarray, path: Path) -> None:
  """Writes the two panels as a PNG."""
  from matplotlib.figure import Figure

  # A Figure of its own needs neither pyplot nor a display.
  figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=150)
  left, right = figure.subplots(1, 2)
  _norms_panel(left, results, history)
  _attack_panel(right, results)
  for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
  figure.savefig(path)


def _norms_panel(axes, results, history):
  for result in results:
    for style, (name, sigma) in zip(STYLES, result.history.items(), strict=True):
      sigma = sigma[:, history]
      color = COLORS[result.method.name]
      layer = name.removesuffix("/kernel")
      label = f"{_label(result)}, {layer}"
      axes.plot(history + 1, sigma.mean(0), style, color=color, lw=1.5, label=label)
      _band(axes, history + 1, sigma, color)
  axes.set(title="Spectral norms during training", xlabel="training step")
  axes.set_ylabel("tracked σ of the layer (estimate from below)")
  axes.set_ylim(bottom=0)
  axes.set_xlim(0, history[-1] + 1)
  axes.legend(ncols=3, fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _attack_panel(axes, results):
  for result in results:
    name = result.method.name
    accuracy = 100 * result.attacked.T
    style = {"color": COLORS[name], "marker": MARKERS[name], "ms": 5, "lw": 1.8}
    axes.plot(RADII, accuracy.mean(0), label=_label(result), **style)
    _band(axes, np.array(RADII), accuracy, COLORS[name])
  axes.set(title="Accuracy under attack", xlabel="l2 radius of the attack (pixels in [0, 1])")
  axes.set_ylabel("test accuracy (%)")
  axes.set_ylim(0, 100)
  axes.set_xlim(0, RADII[-1])
  axes.legend(frameon=False)


def _band(axes, x, values, color):
  """Mean ± standard error over seeds, the first axis."""
  mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
  axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)


def _label(result: Result) -> str:
  name = result.method.name
  return f"{name}, λ = {result.strength:g}" if result.strength else name
