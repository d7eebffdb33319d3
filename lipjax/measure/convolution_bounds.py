"""Certified upper bounds of a convolution's norm: a ladder from the exact matrix to free bounds.

Each rung is a function ``(operator, w) -> upper`` for one slice, rounding included.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.measure.gram import gram_upper_bound
from lipjax.measure.rounding import gamma, pairwise_sum, up
from lipjax.measure.symbol_bound import symbol_upper_bound
from lipjax.operators.convolution import Convolution
from lipjax.operators.products import compute_dtype
from lipjax.operators.symbol import symbols
from lipjax.operators.window import Window

#: A convolution whose matrix has at most this many rows or columns is bounded by the matrix.
MATRIX_UP_TO = 512
#: … and at most this many entries.
MATRIX_ENTRIES = 2**21


def convolution_upper_bounds(operator: Convolution, w: jax.Array) -> dict[str, jax.Array]:
  r"""Upper bounds of one slice's norm by name; the norm is at most the smallest.

  ``matrix``: the operator's own matrix, where that is small. Else ``circulant``: with
  zeros around it a convolution is a part of one on a circle, of any length without a wrong
  wrap and with any twist of the ends, and that one is block diagonal in the Fourier
  domain; of the twists the best counts. On axes too long for that, ``grid``: a symbol is a
  trigonometric polynomial of degree D, so that its largest norm is at most
  :math:`1/\cos(\pi D/N)` times that on N equally spaced angles. ``unfolding``, where it
  can win: :math:`\sqrt{n}` times the norm of an unfolding of the kernel, n being how often
  an input is read, which is exact where windows do not overlap.

  Args:
    operator: without batch axes.
    w: its kernel, finite.
  """
  w = w.astype(compute_dtype(w.dtype))
  windows, groups = operator.windows(w.shape), operator.feature_group_count
  kernel = operator.kernel(w)
  if _matrix_is_small(windows, kernel.shape, groups) and not _is_whole_circle(windows):
    return {"matrix": _matrix_bound(windows, kernel, groups)}
  plan = symbols(windows)
  name = "circulant" if plan.is_circle else "grid"
  bounds = {name: symbol_upper_bound(windows, groups, kernel)}
  if _unfolding_can_win(windows):
    bounds["unfolding"] = _unfolding_bound(windows, kernel, groups)
  return bounds


def _is_whole_circle(windows: tuple[Window, ...]) -> bool:
  """Whether the operator is the one on the circle, so that its symbols are exact."""
  return all(w.mode == "circular" and w.outputs * w.stride == w.circle for w in windows)


def _matrix_is_small(windows: tuple[Window, ...], shape: tuple[int, ...], groups: int) -> bool:
  rows = math.prod(window.outputs for window in windows) * shape[-1] // groups
  columns = math.prod(window.size for window in windows) * shape[-2]
  return min(rows, columns) <= MATRIX_UP_TO and rows * columns * groups <= MATRIX_ENTRIES


def _matrix_bound(windows: tuple[Window, ...], kernel: jax.Array, groups: int) -> jax.Array:
  """The bound of the largest group's own matrix."""
  matrix = _matrix(windows, kernel, groups)
  bounds = gram_upper_bound(matrix)
  repeats = max(_repeats(window) for window in windows)
  if repeats > 1:
    # Padding lets several taps read one entry, and their sum is rounded.
    size = math.prod(kernel.shape[:-2])
    magnitude = _matrix(windows, jnp.abs(kernel), groups).reshape((groups, -1))
    largest = jnp.max(magnitude)
    square = pairwise_sum(jnp.square(magnitude / jnp.where(largest > 0, largest, 1)), -1)
    bounds = bounds + up(gamma(size, kernel.dtype) * largest * jnp.sqrt(square), size)
  return jnp.max(up(bounds))


def _matrix(windows: tuple[Window, ...], kernel: jax.Array, groups: int) -> jax.Array:
  """The operator's matrix, (groups, outputs, inputs)."""
  n, (c_in, c_out) = len(windows), kernel.shape[-2:]
  for i, window in enumerate(windows):
    reads = window.reads()[:, :, None] == np.arange(window.size)
    # Axes 2i and 2i+1 become this window's outputs and inputs.
    kernel = jnp.tensordot(
      jnp.asarray(reads, kernel.dtype), kernel, ((1,), (2 * i,)), precision=lax.Precision.HIGHEST
    )
    kernel = jnp.moveaxis(kernel, (0, 1), (2 * i, 2 * i + 1))
  kernel = kernel.reshape((*kernel.shape[:-1], groups, c_out // groups))
  outputs, inputs = range(0, 2 * n, 2), range(1, 2 * n, 2)
  kernel = kernel.transpose((2 * n + 1, *outputs, 2 * n + 2, *inputs, 2 * n))
  n_in = math.prod(window.size for window in windows) * c_in
  return kernel.reshape((groups, kernel.size // groups // n_in, n_in))


def _repeats(window: Window) -> int:
  """Taps of one output that read one entry."""
  reads = window.reads()
  return max((_most(row) for row in reads), default=1)


def _most(entries: np.ndarray) -> int:
  """How often the most frequent entry occurs; -1 is none."""
  return int(np.unique(entries[entries >= 0], return_counts=True)[1].max(initial=0))


def _unfolding_can_win(windows: tuple[Window, ...]) -> bool:
  """Where windows overlap little, or the kernel is larger than the input."""
  reads = math.prod(_most(window.reads().ravel()) for window in windows)
  return reads <= 2 or any(w.taps > w.size or w.mode != "zeros" for w in windows)


def _unfolding_bound(windows: tuple[Window, ...], kernel: jax.Array, groups: int) -> jax.Array:
  """The smallest over which taps stand with the outputs and which with the inputs."""
  axes, bounds = range(len(windows)), []
  for split in itertools.chain.from_iterable(
    itertools.combinations(axes, k) for k in range(len(windows) + 1)
  ):
    square = math.prod(
      _spread(window) if i in split else _most(window.reads().ravel())
      for i, window in enumerate(windows)
    )
    norm = jnp.max(gram_upper_bound(_unfolded(kernel, split, groups)))
    bounds.append(up(math.sqrt(square) * norm))
  return functools.reduce(jnp.minimum, bounds)


def _spread(window: Window) -> int:
  """Square of the norm of summing, for each output, what its taps have read."""
  reads = window.reads()
  taps = int((reads >= 0).sum(axis=1).max(initial=0))
  shared = max((_most(column) for column in reads.T), default=0)
  return taps * shared


def _unfolded(kernel: jax.Array, split: Iterable[int], groups: int) -> jax.Array:
  """The kernel as matrices with the taps of the axes in `split` on the outputs' side."""
  n, c_out = kernel.ndim - 2, kernel.shape[-1]
  with_out = tuple(split)
  with_in = tuple(axis for axis in range(n) if axis not in with_out)
  rows = math.prod(kernel.shape[axis] for axis in with_out) * c_out // groups
  kernel = kernel.reshape((*kernel.shape[:-1], groups, c_out // groups))
  return kernel.transpose((n + 1, *with_out, n + 2, *with_in, n)).reshape((groups, rows, -1))
