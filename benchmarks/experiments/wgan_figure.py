"""The figures of ``wgan``: generated images, and what happened while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.experiments import report
from benchmarks.experiments.wgan_evaluate import Measured
from benchmarks.experiments.wgan_methods import TOLERANCE

# Told apart in every common kind of colour blindness.
COLORS = {
  "none": "#555555",
  "clip": "#D55E00",
  "penalty": "#009E73",
  "spectral": "#0072B2",
  "spectral, 1 step": "#CC79A7",
}
SIDE = 8  # Images in a row, and rows, of one panel.


def draw_samples(panels: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Any:
  """One panel of images for every title; `panels` hold flat images."""
  from matplotlib.figure import Figure

  n_columns = -(-len(panels) // 2)
  figure = Figure(figsize=(3.2 * n_columns, 6.8), layout="constrained", dpi=150)
  grid = figure.subplots(2, n_columns).ravel()
  for axes in grid:
    axes.set_axis_off()
  for axes, (title, images) in zip(grid, panels.items(), strict=False):
    axes.imshow(_tiles(images, shape), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
  return figure


def draw_training(
  histories: Mapping[str, Sequence[Measured]], steps: Sequence[int], floor: np.ndarray
) -> Any:
  """Norms, dual estimates and sliced distances over the generator's steps."""
  figure, (norms, excess, dual, sliced) = report.new_figure(2, 2)
  for name, history in histories.items():
    _norms_lines(norms, name, history, steps)
    _line(dual, steps, [m.dual for m in history], COLORS[name], name)
    _line(sliced, steps, [m.sliced for m in history], COLORS[name], name)
  norms.set(title="Exact norms of the critic's layers", ylabel="σ as applied, mean over seeds")
  norms.set_yscale("log")
  for name in (name for name in histories if name.startswith("spectral")):
    deviation = [100 * m.largest_deviation for m in histories[name]]
    excess.plot(steps, deviation, color=COLORS[name], lw=1.8, label=name)
  excess.axhline(100 * TOLERANCE, color="black", lw=1, ls=":", label="tolerance")
  excess.set(title="Normalized critics: how far from the target", ylim=(0, None))
  excess.set_ylabel("largest of all layers and seeds (%)")
  dual.set(title="Dual estimate on held-out images", ylabel="mean f(real) − mean f(generated)")
  dual.set_yscale("symlog", linthresh=0.1)
  sliced.axhline(floor.mean(), color="black", lw=1, ls=":", label="two real samples")
  sliced.set(title="Sliced Wasserstein distance to held-out images", yscale="log")
  for axes in (norms, excess, dual, sliced):
    axes.set(xlabel="step of the generator", xlim=(0, steps[-1]))
    report.legend_below(axes)
  return figure


def _norms_lines(axes, name, history, steps):
  for style, layer in zip(("-", "--", ":"), history[0].norms, strict=True):
    sigma = [m.norms[layer].mean() for m in history]
    axes.plot(steps, sigma, style, color=COLORS[name], lw=1.5, label=f"{name}, {layer}")


def _line(axes, steps, values, color, label):
  """Mean ± standard error over seeds."""
  values = np.array(values)
  mean, error = values.mean(1), values.std(1, ddof=1) / np.sqrt(values.shape[1])
  axes.plot(steps, mean, color=color, lw=1.8, label=label)
  axes.fill_between(steps, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)


def _tiles(images, shape):
  """SIDE × SIDE images as one, with a margin of white between them."""
  rest = shape[2:]
  height, width = shape[0] + 1, shape[1] + 1
  blank = 1.0 if rest else 0.0  # In colour 1 is white; digits are drawn dark on white.
  tiles = np.full((SIDE, height, SIDE, width, *rest), blank)
  images = images[: SIDE * SIDE].reshape(SIDE, SIDE, *shape)
  tiles[:, 1:, :, 1:] = np.moveaxis(images, 1, 2)
  return tiles.reshape(SIDE * height, SIDE * width, *rest)
