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

from lipjax.measure.block_matrix import block_levels, block_plan, n_pairs
from lipjax.measure.cholesky import norm_upper_bound
from lipjax.measure.gram import gram_upper_bound
from lipjax.measure.lower_bound import norm_lower_bound
from lipjax.measure.scaling import nonzero
from lipjax.measure.symbol_bound import symbol_upper_bound
from lipjax.operators.convolution import Convolution
from lipjax.operators.products import compute_dtype
from lipjax.operators.symbol import Symbols, symbols
from lipjax.operators.window import Window
from lipjax.rounding.errors import up

#: Bounded by the matrix up to a cost of one of 160 rows.
MATRIX_COST = 2**22
#: And where symbols would be loose, up to one of 2580 rows: 3 s on two cores.
MATRIX_COST_IF_LOOSE = 2**34
#: And up to this many rows of an axis, and pairs of its taps that meet, which are listed.
MATRIX_SIDE, MATRIX_PAIRS = 1024, 2**15


def convolution_upper_bounds(
  operator: Convolution, w: jax.Array, estimate: jax.Array | None = None
) -> dict[str, jax.Array]:
  r"""Upper bounds of one slice's norm by name; the norm is at most the smallest.

  ``matrix``: by a Cholesky factor of the operator's own matrix in blocks, where that is
  affordable. Else ``circulant``: with zeros around it a convolution is a part of one on a
  circle, of any length without a wrong wrap and with any twist of the ends, and that one is
  block diagonal in the Fourier domain; of the twists the best counts. On axes too long for
  that, ``grid``: a symbol is a trigonometric polynomial of degree D, so that its largest
  norm is at most :math:`1/\cos(\pi D/N)` times that on N equally spaced angles.
  ``unfolding``, where it can win: :math:`\sqrt{n}` times the norm of an unfolding of the
  kernel, n being how often an input is read, which is exact where windows do not overlap.

  Args:
    operator: without batch axes.
    w: its kernel, finite.
    estimate: of the norm, from below, for ``matrix``; `norm_lower_bound` when None.
  """
  w = w.astype(compute_dtype(w.dtype))
  windows, groups = operator.windows(w.shape), operator.feature_group_count
  kernel = operator.kernel(w)
  plan = symbols(windows)
  exact = _symbols_are_exact(windows, plan)
  if not exact and _matrix_is_affordable(windows, kernel.shape, groups):
    if estimate is None:
      estimate = norm_lower_bound(operator, w, jax.random.key(0))
    return {"matrix": _matrix_bound(windows, groups, kernel, estimate)}
  name = "circulant" if plan.is_circle else "grid"
  bounds = {name: symbol_upper_bound(windows, groups, kernel)}
  if _unfolding_can_win(windows):
    bounds["unfolding"] = _unfolding_bound(windows, kernel, groups)
  return bounds


def _symbols_are_exact(windows: tuple[Window, ...], plan: Symbols) -> bool:
  """Whether the operator is the one on the circle, or its windows do not overlap."""
  on_circle = lambda w: w.mode == "circular" and w.outputs * w.stride == w.circle
  alone = lambda w, axis: w.mode == "zeros" and len(axis.offsets) == 1
  return all(on_circle(w) or alone(w, axis) for w, axis in zip(windows, plan.axes, strict=True))


def _matrix_is_affordable(windows: tuple[Window, ...], shape: tuple[int, ...], groups: int) -> bool:
  """Whether the matrix is cheap, or its bound worth more than one by symbols would cost."""
  sides = (max(window.size, window.outputs) for window in windows)
  if max(sides) > MATRIX_SIDE or max(map(n_pairs, windows)) > MATRIX_PAIRS:
    return False
  plan = block_plan(windows, shape[-2], shape[-1] // groups)
  on_border = any(w.mode != "zeros" or max(w.size, w.outputs) <= 2 * w.span for w in windows)
  return groups * plan.cost <= (MATRIX_COST_IF_LOOSE if on_border else MATRIX_COST)


def _matrix_bound(
  windows: tuple[Window, ...], groups: int, kernel: jax.Array, estimate: jax.Array
) -> jax.Array:
  """The bound of the largest group's own matrix, a small factor times the estimate."""
  *taps, c_in, c_out = kernel.shape
  plan = block_plan(windows, c_in, c_out // groups)
  scale = jnp.where(estimate > 0, estimate, jnp.max(jnp.abs(kernel)))

  def of_group(kernel):
    return norm_upper_bound(block_levels(plan, kernel))

  fixed = lax.stop_gradient(kernel / nonzero(scale)).reshape((*taps, c_in, groups, c_out // groups))
  # The derivative is the estimate's: the factor counts as a constant.
  return up(scale * lax.stop_gradient(jnp.max(jax.vmap(of_group, in_axes=-2)(fixed))))


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
