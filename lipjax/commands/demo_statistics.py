"""Means with standard errors, and what may be said of their differences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
  """A mean over seeds and its standard error."""

  mean: float
  error: float


def estimate(values: np.ndarray, scale: float = 1.0) -> Estimate:
  """Mean and standard error of one value a seed."""
  values = scale * np.asarray(values, np.float64)
  return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))


def difference(a: Estimate, b: Estimate) -> Estimate:
  """``a - b``, with the combined standard error."""
  return Estimate(a.mean - b.mean, float(np.hypot(a.error, b.error)))


def verdict(delta: Estimate) -> str:
  """``within noise`` for a difference of at most two standard errors."""
  if abs(delta.mean) <= 2 * delta.error:
    return "within noise"
  return "higher" if delta.mean > 0 else "lower"
