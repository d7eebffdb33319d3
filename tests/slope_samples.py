"""Slopes of scalar functions on a grid."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sampled(NamedTuple):
  lower: float
  upper: float


def sampled(g, lo=-math.inf, hi=math.inf):
  """The least and the largest slope between neighbours of a grid, in float64."""
  far = np.geomspace(30, 1e6, 200)
  kinks = [x + shift for x in (-3, -1, 0, 1, 3) for shift in (-3e-7, 3e-7)]
  near = np.sort(np.append(np.linspace(-30, 30, 300_001), kinks))
  grid = np.concatenate([-far[:0:-1], near, far[1:]])
  if math.isfinite(lo) and math.isfinite(hi):
    grid = np.linspace(lo, hi, 100_001)
  with jax.enable_x64(True):
    values = np.asarray(g(jnp.asarray(grid)), np.float64)
  finite = np.isfinite(values)  # what is written by hand overflows
  quotients = np.diff(values[finite]) / np.diff(grid[finite])
  return Sampled(quotients.min(), quotients.max())
