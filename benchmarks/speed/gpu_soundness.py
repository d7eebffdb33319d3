"""Certified intervals that a device computes, against float64 on the host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lipjax

CONVOLUTIONS = {
  "3x3": (lipjax.Convolution((10, 10)), (3, 3, 16, 16)),
  "3x3 circular": (lipjax.Convolution((10, 10), padding="CIRCULAR"), (3, 3, 16, 16)),
  "3x3 strided": (lipjax.Convolution((10, 10), strides=2), (3, 3, 16, 32)),
  "5x5": (lipjax.Convolution((8, 8)), (5, 5, 16, 16)),
}


def run(n_seeds: int = 4, size: int = 256) -> dict[str, Any]:
  """How many intervals were made, how many do not hold the truth, and their largest width."""
  found = {}
  for dtype in ("float32", "bfloat16"):
    for name, (operator, shape) in {
      "dense": (lipjax.Dense(), (size, size // 2)),
      **CONVOLUTIONS,
    }.items():
      widths, outside = [], 0
      for seed in range(n_seeds):
        w = jax.random.normal(jax.random.key(seed), shape).astype(dtype)
        bounds = lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]
        true = exact_norm(operator, np.asarray(w.astype(jnp.float32), np.float64))
        outside += not float(bounds.lower) <= true <= float(bounds.upper)
        widths.append(float(bounds.upper / bounds.lower) - 1)
      found[f"{name} {dtype}"] = {
        "intervals": n_seeds,
        "outside": outside,
        "largest_width": max(widths),
      }
  return found


def exact_norm(operator: lipjax.LinearOperator, w: np.ndarray) -> float:
  """The norm in float64, by NumPy alone."""
  if isinstance(operator, lipjax.Convolution):
    w = convolution_matrix(operator, w)
  # Of the smaller Gram matrix: half of float64's digits are enough here.
  gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
  return float(np.sqrt(np.linalg.eigvalsh(gram)[-1]))


def convolution_matrix(operator: lipjax.Convolution, w: np.ndarray) -> np.ndarray:
  """The matrix of a convolution of two spatial axes and one group."""
  *taps, c_in, c_out = w.shape
  windows = operator.windows(w.shape)
  matrix = np.zeros((*(x.outputs for x in windows), c_out, *operator.spatial_shape, c_in))
  rows, columns = (window.reads() for window in windows)
  for a, b in np.ndindex(*taps):
    for i, j in np.ndindex(*matrix.shape[:2]):
      source = rows[i, a], columns[j, b]
      if min(source) >= 0:
        matrix[i, j, :, source[0], source[1], :] += w[a, b].T
  return matrix.reshape((np.prod(matrix.shape[:3]), -1))
