"""Norms over training, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipjax.measure.read import TOTALS

INSTALL = 'pip install "lipjax[plot]"'


def plot_norms(history: Sequence[Mapping[str, Any]], steps: Sequence[int] | None = None) -> Any:
  r"""Spectral norms over training, a curve each, on a logarithmic axis.

  Args:
    history: for each step what `lipjax.read_spectral_norms` or `lipjax.read_scalars` gave;
      of its totals nothing is drawn, of a
      stack the largest norm.
    steps: their numbers; 0, 1, … when None.

  Returns:
    A `matplotlib.figure.Figure`, bound to no window: save it, or let a notebook show it.

  Raises:
    ImportError: matplotlib is not installed.
    ValueError: an empty history, or as many steps as it has not.

  Example:
    >>> import numpy as np
    >>> from lipjax.integrations.plot import plot_norms
    >>> history = [{"kernel": np.float32(3 * 0.9**i)} for i in range(20)]
    >>> figure = plot_norms(history)
    >>> figure.axes[0].get_ylabel()
    'spectral norm σ₁'
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    msg = f"plot_norms needs matplotlib, which is not installed. Install it with: {INSTALL}"
    raise ImportError(msg) from error
  steps = range(len(history)) if steps is None else steps
  if not history or len(steps) != len(history):
    msg = f"Expected one step for each entry of a history; got {len(history)} and {len(steps)}."
    raise ValueError(msg)
  figure = Figure(figsize=(8, 4), layout="constrained")
  axes = figure.subplots()
  keys = dict.fromkeys(key for row in history for key in row)
  for key in (key for key in keys if key.rsplit("/", 1)[-1] not in TOTALS):
    norms = [np.max(row[key], initial=0.0) if key in row else np.nan for row in history]
    # Before the first measurement norms are 0, which has no logarithm.
    axes.plot(steps, [x or np.nan for x in norms], lw=1.5, label=key)
  axes.set(xlabel="step", ylabel="spectral norm σ₁", yscale="log")
  axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
  return figure
