"""Exact norms of trained layers."""

from __future__ import annotations

from typing import Any

import numpy as np


def exact_norms(weights: Any) -> dict[str, np.ndarray]:
  """``{layer: σ}`` by SVD in float64, over the last two axes of every kernel."""
  wide = {name: np.asarray(layer["kernel"], np.float64) for name, layer in weights.items()}
  return {name: np.linalg.norm(kernel, 2, axis=(-2, -1)) for name, kernel in wide.items()}
