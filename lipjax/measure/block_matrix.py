r"""A convolution's matrix squared, :math:`AA^T` or :math:`A^TA`, as block tridiagonal.

Rows of the input, or of the output, that are far apart along an axis share nothing, so in
groups of enough of them the square has blocks on three diagonals only.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.operators.window import Window
from lipjax.rounding.errors import gamma, product_error, transpose_product, up

#: Terms that are summed in one go: a kernel's features are few.
CHUNK = 16


class BlockPlan(NamedTuple):
  """How the square is laid out, all numbers static.

  Attributes:
    of_inputs: whether it is :math:`A^TA`.
    axis: the axis that is cut into levels.
    pairs: for each axis, (row, other row, tap, other tap) that meet in an entry.
    places: place of each row of `axis` in the order of the levels.
    width: rows in a level.
    sizes: rows of each axis.
    features: of a group.
  """

  of_inputs: bool
  axis: int
  pairs: tuple[np.ndarray, ...]
  places: np.ndarray
  width: int
  sizes: tuple[int, ...]
  features: int

  @property
  def n_levels(self) -> int:
    """Blocks on the diagonal."""
    return -(-self.sizes[self.axis] // self.width)

  @property
  def others(self) -> tuple[int, ...]:
    """The axes that are not cut."""
    return tuple(axis for axis in range(len(self.sizes)) if axis != self.axis)

  @property
  def row(self) -> int:
    """Entries of one row of `axis`."""
    return math.prod(self.sizes[axis] for axis in self.others) * self.features

  @property
  def block(self) -> int:
    """Rows of a block."""
    return self.width * self.row

  @property
  def cost(self) -> int:
    """Multiplications of one product of all blocks."""
    return self.n_levels * self.block**3


class Levels(NamedTuple):
  """A block tridiagonal matrix: what a level's blocks are made of, and what rounding costs.

  Attributes:
    rows: blocks of two rows of the axis by their taps, ``(taps, taps, row, row)``.
    diagonal: which taps meet within each level, ``(levels, width, width, taps, taps)``.
    below: and between a level and the one before it.
    error: at least the norm of what rounding has added to the matrix.
    magnitude: at least the norm of the matrix and of that of magnitudes.
  """

  rows: jax.Array
  diagonal: jax.Array
  below: jax.Array
  error: jax.Array
  magnitude: jax.Array


@functools.lru_cache(maxsize=512)
def block_plan(windows: tuple[Window, ...], c_in: int, c_out: int) -> BlockPlan:
  """The cheapest of all axes and of both squares; features are those of a group."""
  plans = []
  for of_inputs in (False, True):
    pairs = tuple(_pairs(window, of_inputs) for window in windows)
    sizes = tuple(window.size if of_inputs else window.outputs for window in windows)
    for axis in range(len(windows)):
      places, width = _order(sizes[axis], pairs[axis])
      features = c_in if of_inputs else c_out
      plans.append(BlockPlan(of_inputs, axis, pairs, places, width, sizes, features))
  return min(plans, key=lambda plan: plan.cost)


def block_levels(plan: BlockPlan, kernel: jax.Array) -> Levels:
  """The square of one group's matrix; kernel of shape ``spatial + (inputs, outputs)``."""
  n = kernel.ndim - 2
  if plan.of_inputs:
    kernel = jnp.swapaxes(kernel, -1, -2)
  # The summed features first, then every tap with every feature that stays.
  flat = jnp.moveaxis(kernel, n, 0)
  taps, features = flat.shape[1:-1], flat.shape[-1]
  flat = flat.reshape((len(flat), -1))
  gram = transpose_product(flat, flat, CHUNK).reshape((*taps, features, *taps, features))
  rows = _over_others(plan, gram, n)
  diagonal, below = _level_pairs(plan, taps[plan.axis])
  error, magnitude = _error(plan, jnp.abs(flat), (*taps, features))
  diagonal, below = (jnp.asarray(x, rows.dtype) for x in (diagonal, below))
  return Levels(rows, diagonal, below, error, magnitude)


def level_block(rows: jax.Array, pairs: jax.Array) -> jax.Array:
  """The block of two levels, from which of their taps meet."""
  block = jnp.einsum("abtu,tuxy->axby", pairs, rows, precision=lax.Precision.HIGHEST)
  size = block.shape[0] * block.shape[1]
  return block.reshape((size, size))


def n_pairs(window: Window) -> int:
  """How many pairs of taps meet along an axis, in the larger of both squares."""
  reads = window.reads()
  by_entry = np.unique(reads[reads >= 0], return_counts=True)[1]
  return int(max(np.square(n).sum() for n in (by_entry, (reads >= 0).sum(axis=1))))


def _pairs(window: Window, of_inputs: bool) -> np.ndarray:
  """(row, other row, tap, other tap) of products that are summed, shape (pairs, 4)."""
  reads = window.reads()
  meeting: dict[int, list[tuple[int, int]]] = {}
  for (output, tap), entry in np.ndenumerate(reads):
    if entry >= 0:
      row, shared = (int(entry), output) if of_inputs else (output, int(entry))
      meeting.setdefault(shared, []).append((row, tap))
  found = [(i, j, t, u) for met in meeting.values() for i, t in met for j, u in met]
  return np.array(found, int).reshape((-1, 4))


def _order(size: int, pairs: np.ndarray) -> tuple[np.ndarray, int]:
  """An order of the rows and how many make a level, so that levels meet their neighbours only.

  A line in its own order; a circle folded flat, so that its ends lie beside each other.
  """
  line = np.arange(size)
  folded = np.minimum(2 * line, 2 * (size - 1 - line) + 1)
  width = lambda places: int(np.abs(places[pairs[:, 0]] - places[pairs[:, 1]]).max(initial=1))
  places = min((line, folded), key=width)
  return places, width(places)


def _over_others(plan: BlockPlan, gram: jax.Array, n: int) -> jax.Array:
  """Rows of the cut axis against rows, by their taps: (taps, taps, row, row)."""
  for axis in plan.others:
    taps = gram.shape[axis]
    counts = np.zeros((plan.sizes[axis],) * 2 + (taps, taps))
    np.add.at(counts, tuple(plan.pairs[axis].T), 1)
    gram = jnp.tensordot(
      jnp.asarray(counts, gram.dtype),
      gram,
      ((2, 3), (axis, n + 1 + axis)),
      precision=lax.Precision.HIGHEST,
    )
    gram = jnp.moveaxis(gram, (0, 1), (axis, n + 1 + axis))
  gram = jnp.moveaxis(gram, (plan.axis, n + 1 + plan.axis), (0, 1))
  return gram.reshape((*gram.shape[:2], plan.row, plan.row))


def _level_pairs(plan: BlockPlan, taps: int) -> tuple[np.ndarray, np.ndarray]:
  """Which taps of a level's rows meet: within it, and with the level before it."""
  i, j, t, u = plan.pairs[plan.axis].T
  (level, place), (other, other_place) = (np.divmod(plan.places[x], plan.width) for x in (i, j))
  found = []
  for distance in (0, 1):
    counts = np.zeros((plan.n_levels, plan.width, plan.width, taps, taps))
    here = level - other == distance
    np.add.at(counts, tuple(x[here] for x in (level, place, other_place, t, u)), 1)
    found.append(counts)
  return found[0], found[1]


def _error(
  plan: BlockPlan, magnitude: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  r"""At least the norm of what rounding adds, and that of :math:`|A||A|^T`, a multiple of it.

  The matrix of magnitudes is symmetric, so that its norm is at most its largest row sum.
  An entry is a sum over features, and then over the pairs of taps that meet along each axis.
  """
  *taps, features = shape
  n, n_features = len(taps), len(magnitude)
  dtype = magnitude.dtype
  dot = functools.partial(jnp.tensordot, precision=lax.Precision.HIGHEST)
  of_other = jnp.sum(magnitude.reshape((n_features, -1, features)), axis=-1)
  sums = dot(magnitude, of_other, ((0,), (0,))).reshape((*taps, features, *taps))
  # Dividing the kernel by a number has rounded it once, and its square twice.
  relative, n_terms = product_error(n_features, CHUNK, dtype) + gamma(3, dtype), magnitude.size
  for axis, pairs in enumerate(plan.pairs):
    row, other, tap, other_tap = pairs.T
    counts = np.zeros((plan.sizes[axis], taps[axis], taps[axis]))
    np.add.at(counts, (row, tap, other_tap), 1)
    sums = dot(jnp.asarray(counts, dtype), sums, ((1, 2), (axis, n + 1 + axis)))
    # The second tap's axis stays, of length 1, so that the others keep their places.
    sums = jnp.expand_dims(jnp.moveaxis(sums, 0, axis), n + 1 + axis)
    met = np.unique(row * plan.sizes[axis] + other, return_counts=True)[1].max(initial=0)
    relative += gamma(int(met), dtype)
    n_terms += taps[axis] ** 2
  largest = up(jnp.max(sums), n_terms)
  tiny = 8 * magnitude.size * math.prod(plan.sizes) * float(jnp.finfo(dtype).tiny)
  return relative * largest + tiny, largest
