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

from lipjax.measure.gram import gram_upper_bound, n_gram_steps
from lipjax.measure.rounding import gamma, pairwise_sum, pairwise_terms, up
from lipjax.operators.convolution import Convolution
from lipjax.operators.products import compute_dtype
from lipjax.operators.symbol import Symbols, block_kernel, evaluate, symbols
from lipjax.operators.window import Window

#: A convolution whose matrix has at most this many rows or columns is bounded by the matrix.
MATRIX_UP_TO = 512
#: … and at most this many entries.
MATRIX_ENTRIES = 2**21
#: Relative tolerance of the Schatten norm of a symbol.
SYMBOL_TOLERANCE = 2e-3
#: Steps of Gram iteration that tell alternatives apart, and most angles from the largest.
ROUGH_STEPS, FIRST_STEPS = 3, 5
#: The share of the angles that is looked at with all steps at first, and the least number.
TOP_SHARE, TOP_LEAST = 16, 2
#: Entries of the symbols that are held at once.
SYMBOLS_AT_ONCE = 2**21


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
  bounds = {name: _symbol_bound((windows, groups), kernel)}
  if _unfolding_can_win(windows):
    bounds["unfolding"] = _unfolding_bound(windows, kernel, groups)
  return bounds


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _symbol_bound(shape: tuple[tuple[Window, ...], int], kernel: jax.Array) -> jax.Array:
  return _largest_symbol(shape, kernel)[0]


@_symbol_bound.defjvp
def _(shape, primals, tangents):
  """The derivative is that of the one symbol that the bound comes from."""
  bound, phases, group = _largest_symbol(shape, *primals)
  plan = symbols(shape[0])

  def of_one(kernel):
    real, imaginary = evaluate(block_kernel(plan, kernel, shape[1])[group][None], phases)
    return plan.factor * gram_upper_bound(real[0], imaginary[0], n_steps=_all_steps(real))

  return bound, jax.jvp(of_one, primals, tangents)[1]


def _largest_symbol(shape, kernel):
  """The bound, and the phases and the group of the symbol it comes from.

  Most angles are told from the largest by a few steps of Gram iteration; only where they
  are not, as when all symbols have one norm, do all get all steps.
  """
  windows, groups = shape
  plan = symbols(windows)
  block = block_kernel(plan, kernel, groups)
  norms = functools.partial(_norms, block)
  phases = jnp.asarray(plan.phases, block.dtype)
  if len(phases) > 1:
    rough = norms(phases.reshape((-1, phases.shape[-1])), ROUGH_STEPS)
    alternative = jnp.argmin(jnp.max(rough.reshape((len(phases), -1)), axis=1))
  else:
    alternative = 0
  phases, n_angles, all_steps = phases[alternative], phases.shape[1], _all_steps(block)
  n_top = min(max(n_angles // TOP_SHARE, TOP_LEAST), n_angles)
  if n_top == n_angles or all_steps <= FIRST_STEPS:
    found = norms(phases, all_steps)
  else:
    first = norms(phases, FIRST_STEPS)
    _, top = lax.top_k(jnp.max(first, axis=1), n_top)
    found = first.at[top].set(norms(phases[top], all_steps))
    largest_is_known = jnp.max(found) <= jnp.max(found[top])
    found = lax.cond(largest_is_known, lambda: found, lambda: norms(phases, all_steps))
  angle, group = jnp.divmod(jnp.argmax(found.ravel()), groups)
  sigma = up(jnp.max(found) + _symbol_error(plan, block))
  return up(sigma * plan.factor), phases[angle], group


def _all_steps(block: jax.Array) -> int:
  return n_gram_steps(min(block.shape[-2:]), SYMBOL_TOLERANCE)


def _norms(block: jax.Array, phases: jax.Array, n_steps: int) -> jax.Array:
  """Upper bounds of the symbols' norms, shape (angles, groups)."""
  at_once = max(SYMBOLS_AT_ONCE // math.prod((len(block), *block.shape[2:])), 1)
  norm = lambda phases: gram_upper_bound(*evaluate(block, phases), n_steps=n_steps)
  if at_once >= len(phases):
    return norm(phases)
  return lax.map(norm, phases, batch_size=at_once)


def _symbol_error(plan: Symbols, block: jax.Array) -> jax.Array:
  r"""What rounding can add to a symbol's norm.

  Each entry is a sum of T products with cosines that were rounded once, so it is off by
  at most :math:`\gamma_{T+2}\sum_\tau|K_\tau|`, real and imaginary part each; and
  :math:`\|\sum_\tau|K_\tau|\|_F \le \sqrt T\|K\|_F`.
  """
  n = block.shape[1]
  largest = jnp.max(jnp.abs(block))
  scaled = jnp.square(block / jnp.where(largest > 0, largest, 1)).reshape((len(block), -1))
  norm = jnp.max(jnp.sqrt(pairwise_sum(scaled, -1))) * largest
  relative = math.sqrt(2 * n) * gamma(n + 2, block.dtype)
  return up(relative * norm, pairwise_terms(scaled.shape[-1]) + 4)


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
