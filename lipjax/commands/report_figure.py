"""The singular values of a checkpoint's layers, as a picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import lipjax
from lipjax.checkpoints.checkpoint import Checkpoint
from lipjax.commands.report_rows import Row
from lipjax.operators.base import LinearOperator

INSTALL = 'pip install "lipjax[plot]"'
#: Layers in a picture, those of the largest norms, and how many of their values.
LAYERS, VALUES = 10, 64


def draw(
  checkpoint: Checkpoint, operators: Mapping[str, LinearOperator], rows: Sequence[Row], out: Path
) -> None:
  """Writes the picture; the format is told by the suffix."""
  try:
    import matplotlib
  except ImportError:
    sys.exit(f"--figure needs matplotlib, which is not installed. Install it with: {INSTALL}")
  matplotlib.use("agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
  of_leaves = [row for row in rows if row.path in operators]
  for row in of_leaves[:LAYERS]:
    values = spectrum(checkpoint, operators[row.path], row.path)
    axes.plot(np.arange(1, len(values) + 1), values, lw=1.5, marker=".", ms=4, label=row.path)
  axes.set(xscale="log", yscale="log", xlabel="number", ylabel="singular value")
  axes.set_title(f"The {VALUES} largest singular values, of the layers of largest norm")
  axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
  try:
    figure.savefig(out)
  except (OSError, ValueError) as error:
    sys.exit(f"Cannot write --figure {out}: {error}.")
  plt.close(figure)


def spectrum(checkpoint: Checkpoint, operator: LinearOperator, path: str) -> np.ndarray:
  """The largest singular values of an operator, of all of a stack together."""
  w = jnp.asarray(checkpoint.read([path])[path])
  values = lipjax.spectral_norms({"w": w}, layout={"w": operator}, k=VALUES)["w"]
  values = np.sort(np.ravel(values))[::-1][:VALUES]
  return values[values > 1e-6 * values[0]] if values.size else values
