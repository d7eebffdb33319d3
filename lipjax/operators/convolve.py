"""A convolution of one example, by the backend's routine and by products of matrices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.operators.window import Window


def convolve(kernel: jax.Array, x: jax.Array, windows: Sequence[Window], groups: int) -> jax.Array:
  """The convolution at full precision.

  Args:
    kernel: ``spatial + (inputs of a group, outputs)``.
    x: ``spatial + (inputs,)``.
    windows: the spatial axes.
    groups: of features.

  Returns:
    ``spatial + (outputs,)``.
  """
  if _is_empty(kernel, x, windows):
    return _nothing(kernel, x, windows)
  pads = [(window.low, window.high) for window in windows]
  dilation = [window.input_dilation for window in windows]
  if any(window.mode != "zeros" for window in windows):
    x = _padded(x, windows)
    pads, dilation = [(0, 0)] * len(windows), [1] * len(windows)
  n = len(windows)
  last = (0, n + 1, *range(1, n + 1))
  out = lax.conv_general_dilated(
    x[None],
    kernel,
    [window.stride for window in windows],
    pads,
    lhs_dilation=dilation,
    rhs_dilation=[window.kernel_dilation for window in windows],
    dimension_numbers=lax.ConvDimensionNumbers(last, (n + 1, n, *range(n)), last),
    feature_group_count=groups,
    precision=lax.Precision.HIGHEST,
  )
  return out[0]


def sum_of_taps(
  kernel: jax.Array, x: jax.Array, windows: Sequence[Window], groups: int
) -> jax.Array:
  """`convolve`, as a sum over taps of products of matrices: no Winograd's algorithm."""
  total = _nothing(kernel, x, windows)
  if _is_empty(kernel, x, windows):
    return total
  *taps, c_in, c_out = kernel.shape
  x = x.reshape((*x.shape[:-1], groups, c_in))
  kernel = kernel.reshape((math.prod(taps), c_in, groups, c_out // groups))
  index = np.unravel_index(np.arange(math.prod(taps)), taps)
  reads = [window.reads().T[i] for window, i in zip(windows, index, strict=True)]
  # A place outside reads the fill value: a negative index would count from the end.
  reads = [np.where(r < 0, w.size, r) for r, w in zip(reads, windows, strict=True)]

  def add(total, tap):
    kernel, places = tap
    y = x
    for axis, place in enumerate(places):
      y = jnp.take(y, place, axis, mode="fill", fill_value=0)
    y = jnp.einsum("...gc,cgo->...go", y, kernel, precision=lax.Precision.HIGHEST)
    return total + y.reshape(total.shape), None

  return lax.scan(add, total, (kernel, reads))[0]


def _is_empty(kernel: jax.Array, x: jax.Array, windows: Sequence[Window]) -> bool:
  return 0 in (*x.shape, *kernel.shape, *(window.outputs for window in windows))


def _nothing(kernel: jax.Array, x: jax.Array, windows: Sequence[Window]) -> jax.Array:
  return jnp.zeros((*(window.outputs for window in windows), kernel.shape[-1]), x.dtype)


def _padded(x: jax.Array, windows: Sequence[Window]) -> jax.Array:
  """The input with what its padding mode puts around it."""
  for axis, window in enumerate(windows):
    if window.input_dilation > 1:
      # A dilated circle ends with zeros too, which a dilated line does not.
      gap = window.input_dilation - 1
      config = [(0, gap, gap) if i == axis else (0, 0, 0) for i in range(x.ndim)]
      x = lax.pad(x, jnp.zeros((), x.dtype), config)
    line = dataclasses.replace(window, size=window.dilated, input_dilation=1)
    places = line.entries(np.arange(-window.low, window.dilated + window.high))
    x = jnp.take(x, places, axis=axis)
  return x
