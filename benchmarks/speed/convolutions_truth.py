"""Exact norms of convolutions in float64, in NumPy alone: nothing of lipjax is trusted here."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, svds

from benchmarks.speed.convolutions_rows import Row

#: A matrix of at most this many entries is written out.
DENSE_ENTRIES = 2**16
#: Of the residual; the norm's own error is at most as large, and mostly its square.
LANCZOS_TOLERANCE = 1e-10


def exact_norm(row: Row, kernel: np.ndarray) -> dict[str, Any]:
  """The norm of the convolution with a float32 kernel as it is stored.

  With circular padding the largest singular value of all symbols; else of the matrix, by
  a dense SVD or by Lanczos to the last digit. `residual` is that of the squared matrix.
  """
  begin, kernel = time.perf_counter(), kernel.astype(np.float64)
  if row.circular:
    norm = np.linalg.svd(symbols(np, row, kernel), compute_uv=False).max()
    how, residual = "symbols", 0.0
  else:
    of_group = np.split(kernel, row.groups, axis=-1)
    found = [_matrix_norm(row, part) for part in of_group]
    norm, how, residual = max(found)
  seconds = time.perf_counter() - begin
  return {"norm": float(norm), "how": how, "residual": float(residual), "seconds": seconds}


def symbols(xp: Any, row: Row, kernel: Any) -> Any:
  """The symbols on `row.circle`, shape ``(…, outputs, inputs)``; `xp` is numpy or jax.numpy.

  A stride folds the frequencies that it makes alike onto the inputs, a dilated input
  those onto the outputs. Where the padding begins is a phase, which no norm sees.
  """
  d, m = row.kernel_dilation, row.circle
  is_whole = not row.circular or row.outputs * row.stride == m
  if row.span > m or min(row.stride, row.input_dilation) > 1 or not is_whole:
    raise ValueError(f"the symbols of {row} are not worked out here.")
  if d > 1:
    # Zeros between the taps; those after the last one are beyond the span.
    first = np.zeros((d, d, 1, 1), kernel.dtype)
    first[0, 0] = 1
    kernel = xp.kron(kernel, first)[: row.span, : row.span]
  found = xp.fft.fft2(kernel, s=(m, m), axes=(0, 1))
  fold = max(row.stride, row.input_dilation)
  c_in, c_out, groups = kernel.shape[2], kernel.shape[3], row.groups
  # Frequency f + a·m/fold is entry (a, f) of an axis.
  found = found.reshape((fold, m // fold, fold, m // fold, c_in, groups, c_out // groups))
  if row.input_dilation > 1:
    found = found.transpose((1, 3, 5, 0, 2, 6, 4))
    shape = (-1, fold**2 * c_out // groups, c_in)
  else:
    found = found.transpose((1, 3, 5, 6, 0, 2, 4))
    shape = (-1, c_out // groups, fold**2 * c_in)
  return found.reshape(shape) / fold


def _matrix_norm(row: Row, kernel: np.ndarray) -> tuple[float, str, float]:
  """Norm, method and residual of one group's convolution."""
  c_in, c_out = kernel.shape[2:]
  shape = row.outputs**2 * c_out, row.size**2 * c_in
  if math.prod(shape) <= DENSE_ENTRIES:
    matrix = apply(row, kernel, np.eye(shape[1]).reshape((-1, row.size, row.size, c_in)))
    return np.linalg.svd(matrix.reshape((shape[1], -1)), compute_uv=False)[0], "dense", 0.0
  matvec = lambda x: apply(row, kernel, x.reshape((1, row.size, row.size, c_in))).ravel()
  rmatvec = lambda y: adjoint(row, kernel, y.reshape((row.outputs, row.outputs, c_out))).ravel()
  operator = LinearOperator(shape, matvec=matvec, rmatvec=rmatvec, dtype=np.float64)
  v0 = np.random.default_rng(0).standard_normal(min(shape))
  _, sigma, right = svds(operator, k=1, tol=LANCZOS_TOLERANCE, ncv=min(48, min(shape) - 1), v0=v0)
  v = right[0]
  residual = np.linalg.norm(rmatvec(matvec(v)) - sigma[0] ** 2 * v) / sigma[0] ** 2
  return sigma[0], "lanczos", residual


def apply(row: Row, kernel: np.ndarray, x: np.ndarray) -> np.ndarray:
  """One group's zero-padded convolution of a batch."""
  low, high = row.pads
  side = row.dilated + low + high
  padded = np.zeros((len(x), side, side, x.shape[-1]))
  inner = slice(low, low + row.dilated, row.input_dilation)
  padded[:, inner, inner] = x
  return sum(padded[:, a, b] @ kernel[t] for t, a, b in _taps(row))


def adjoint(row: Row, kernel: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Its transpose."""
  low, high = row.pads
  side = row.dilated + low + high
  padded = np.zeros((side, side, kernel.shape[2]))
  for t, a, b in _taps(row):
    padded[a, b] += y @ kernel[t].T
  inner = slice(low, low + row.dilated, row.input_dilation)
  return padded[inner, inner]


def _taps(row: Row):
  """Every tap, and what all outputs read by it."""
  length = (row.outputs - 1) * row.stride + 1
  reads = [slice(t, t + length, row.stride) for t in range(0, row.span, row.kernel_dilation)]
  for i, j in itertools.product(range(row.taps), repeat=2):
    yield (i, j), reads[i], reads[j]
