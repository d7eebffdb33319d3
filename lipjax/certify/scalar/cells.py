r"""Slopes and values of a scalar function on many intervals at once, whose ends may be traced.

The line is cut into cells, once and for all, and slopes and values are enclosed on each. An
interval is looked up: it is covered by the cells from that of its lower end to that of its
upper end, and tables of minima and maxima over runs of 1, 2, 4, … cells give the bounds over
all of them by two overlapping runs, however many there are.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lipjax.rounding.interval import Interval


class SlopeCells:
  r"""Bounds of the slopes and the values of one scalar function g, on any intervals.

  `between` and `values` take ends that are JAX arrays, and work under jit, vmap and grad.

  **Guarantee.** As that of `slope_interval`: the bounds hold for the real function that the
  primitives and the constants of the program define; all rounding is outward, that of tables
  to float32 and that of the look-up too. Where no finite bounds are known they are -∞ and ∞:
  where g is steep without limit, jumps or is undefined, and where an end is NaN, or both are in
  the wrong order. The slopes on an interval are bounded by those on all cells that it touches
  in more than a point.

  Attributes:
    borders: of the K cells, K + 1 of them from -∞ to ∞, where the last is repeated.
    slopes: bounds of the slopes on each cell.
    ranges: bounds of the values on each cell.
    at: bounds of the values at each border; infinite where that is.
  """

  def __init__(self, borders: np.ndarray, slopes: Interval, values: Interval, at: Interval):
    self.borders, self.slopes, self.ranges, self.at = borders, slopes, values, at
    # The same arrays in every layer, so that a program holds one copy of them.
    self._tables = functools.cache(self._make_tables)

  def between(self, lo: ArrayLike, hi: ArrayLike) -> tuple[jax.Array, jax.Array]:
    r"""Bounds of the slopes of g on intervals.

    .. math:: \alpha \le \frac{g(a) - g(b)}{a - b} \le \beta \quad\text{for all } a \ne b
       \text{ in } [lo, hi]

    Args:
      lo: smallest inputs, of any shape and float dtype; -∞ where there is none.
      hi: largest inputs, of a shape that broadcasts. Where ``lo == hi`` there are no slopes,
        and the bounds are those around that point.

    Returns:
      α and β of the broadcast shape, in float32, or in float64 if an end is. Their derivatives
      are zero.
    """
    lo, hi = _ends(lo, hi)
    return _slopes(self._tables(lo.dtype), lo, hi)

  def values(self, lo: ArrayLike, hi: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Bounds of the values of g on intervals.

    Args:
      lo: smallest inputs, as in `between`.
      hi: largest inputs.

    Returns:
      Lower and upper bounds. Their derivatives, always finite, are bounds of slopes of g where
      they are reached in the cell of an end, and else zero.
    """
    lo, hi = _ends(lo, hi)
    return _values(self._tables(lo.dtype), lo, hi)

  def _make_tables(self, dtype: Any) -> _Tables:
    borders = outward(Interval(self.borders, self.borders), dtype)
    slopes, ranges, at = (outward(x, dtype) for x in (self.slopes, self.ranges, self.at))
    left, right = borders.lo[:-1], borders.hi[1:]
    # From the left border values fall at most as the lowest slope says, and up to the right
    # one they rise at most as the largest does.
    lines = [_tangent(left, at.lo[:-1], slopes.lo, -1), _tangent(right, at.lo[1:], slopes.hi, -1)]
    lines += [_tangent(left, at.hi[:-1], slopes.hi, 1), _tangent(right, at.hi[1:], slopes.lo, 1)]
    # Less than an end is at most the number before it, both counted in floats.
    starts = np.stack([_order(borders.hi[:-1], np), _order(borders.lo[:-1], np) + 1])
    runs = [_runs(np.stack([x.lo, -x.hi], axis=1)) for x in (slopes, ranges)]
    ends = np.stack([left, right], axis=1)
    return _Tables(starts, runs[0], runs[1], np.concatenate([ends, *lines], axis=1))


class _Tables(NamedTuple):
  """What is looked up, in the dtype of the ends; one row for each cell, as gathers are slow.

  Attributes:
    borders: the left borders, rounded up, as integers in the same order; and rounded down, and
      one more.
    slopes: the lower and minus the upper bound on runs of cells, level by level.
    values: the same of values.
    lines: the left and the right border, and four lines from there, two below the values in the
      cell and two above: where they start, with which value, and their slope.
  """

  borders: Any
  slopes: Any
  values: Any
  lines: Any

  @property
  def n_cells(self) -> int:
    """How many there are, a power of two."""
    return self.borders.shape[1]


@jax.jit
def _slopes(tables: _Tables, lo: jax.Array, hi: jax.Array) -> tuple[jax.Array, jax.Array]:
  cells, is_valid = _covering(tables, *lax.stop_gradient((lo, hi)))
  low, high = _over(tables.slopes, tables.n_cells, *cells)
  return jnp.where(is_valid, low, -jnp.inf), jnp.where(is_valid, high, jnp.inf)


@jax.jit
def _values(tables: _Tables, lo: jax.Array, hi: jax.Array) -> tuple[jax.Array, jax.Array]:
  (first, last), is_valid = _covering(tables, lo, hi)
  # No real number lies between infinities of one sign.
  is_valid &= (lo < jnp.inf) & (hi > -jnp.inf)
  lo, hi = jnp.where(is_valid, lo, 0), jnp.where(is_valid, hi, 0)
  lows, highs = _in_cells(tables, jnp.stack([first, last]), lo, hi)
  low, high = jnp.min(lows, axis=0), jnp.max(highs, axis=0)
  # The cells between those of the ends, if there are any.
  has_more = last - first > 1
  inner = jnp.where(has_more, first + 1, first), jnp.where(has_more, last - 1, first)
  inner_low, inner_high = _over(tables.values, tables.n_cells, *inner)
  low = jnp.where(has_more, jnp.minimum(low, inner_low), low)
  high = jnp.where(has_more, jnp.maximum(high, inner_high), high)
  return jnp.where(is_valid, low, -jnp.inf), jnp.where(is_valid, high, jnp.inf)


def _covering(tables: _Tables, lo: jax.Array, hi: jax.Array):
  """The first and the last cell of each interval, and whether it is one."""
  ends = _order(jnp.stack([lo, hi]), jnp)
  # An end on a border is in the cell inside of the interval.
  first, last = _last_border(tables.borders, ends)
  is_valid = (ends[0] <= ends[1]) & ~jnp.isnan(lo) & ~jnp.isnan(hi)
  # One point on a border comes out as its two cells in the wrong order.
  return (jnp.minimum(first, last), jnp.maximum(first, last)), is_valid


def _last_border(borders: jax.Array, x: jax.Array) -> jax.Array:
  """The last of 2ⁿ borders at or below each x, or the first one; each x[i] in its borders[i].

  As `jnp.searchsorted`, which takes four times as long, or ten times to compile if unrolled.
  """
  n = borders.shape[1]
  start = (n * np.arange(2, dtype=np.int32)).reshape((2,) + (1,) * (x.ndim - 1))
  flat = jnp.asarray(borders).reshape((-1, 1))

  def halve(i: Any, found: jax.Array) -> jax.Array:
    further = found + (n >> (i + 1))
    return jnp.where(_rows(flat, start + further)[..., 0] <= x, further, found)

  return lax.fori_loop(0, n.bit_length() - 1, halve, jnp.zeros(x.shape, jnp.int32))


def _over(runs: jax.Array, n_cells: int, first: jax.Array, last: jax.Array):
  """The least lower and the largest upper bound of the cells from the first to the last."""
  level = jnp.iinfo(first.dtype).bits - 1 - lax.clz(last - first + 1)
  cells = jnp.stack([first, last + 1 - (1 << level)])
  found = jnp.min(_rows(runs, level * n_cells + cells), axis=0)
  return found[..., 0], -found[..., 1]


def _in_cells(tables: _Tables, cells: jax.Array, lo: jax.Array, hi: jax.Array):
  """Bounds of the values on the part of each cell that is in [lo, hi]."""
  bounds, row = _rows(tables.values, cells), _rows(tables.lines, cells)
  a, b = (jnp.clip(x, row[..., 0], row[..., 1])[..., None] for x in (lo, hi))
  start, value, slope = (row[..., 2 + k :: 3] for k in range(3))
  # Two lines below, of which the lower end counts, and two above.
  side = np.array([-1, -1, 1, 1], a.dtype)
  lower = jnp.where((slope > 0) == (side < 0), a, b)
  change = jnp.where(slope == 0, 0, slope * (lower - start))
  finfo = jnp.finfo(a.dtype)
  # Five roundings, that of the border being one, and numbers too small for the processor.
  error = 4 * finfo.eps * (abs(value) + abs(change) + abs(slope * start))
  error = lax.stop_gradient(error + 4 * finfo.tiny * (1 + abs(slope)))
  ends = jnp.where(jnp.isfinite(error), value + change + side * error, side * jnp.inf)
  low = jnp.maximum(bounds[..., 0], jnp.max(ends[..., :2], axis=-1))
  return low, jnp.minimum(-bounds[..., 1], jnp.min(ends[..., 2:], axis=-1))


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
  """Rows of a table at places that are in it; one operation, where an index takes ten."""
  numbers = lax.GatherDimensionNumbers((index.ndim,), (0,), (0,))
  sizes, mode = (1, table.shape[1]), lax.GatherScatterMode.PROMISE_IN_BOUNDS
  return lax.gather(jnp.asarray(table), index[..., None], numbers, sizes, mode=mode)


def _tangent(border: np.ndarray, value: np.ndarray, slope: np.ndarray, side: int) -> np.ndarray:
  """A line for each cell, by a point and a slope; infinite where these are not finite."""
  line = np.stack([border, value, slope], axis=1)
  is_known = np.isfinite(line).all(axis=1, keepdims=True)
  return np.where(is_known, line, np.array([0, side * np.inf, 0], line.dtype))


def _runs(rows: np.ndarray) -> np.ndarray:
  """The least of the 1, 2, 4, … rows from each on, level by level."""
  levels = [rows]
  while 2 ** len(levels) <= len(rows):
    half = 2 ** (len(levels) - 1)
    last = levels[-1].copy()
    last[:-half] = np.minimum(last[:-half], last[half:])
    levels.append(last)
  return np.concatenate(levels)


def _ends(lo: ArrayLike, hi: ArrayLike) -> tuple[jax.Array, jax.Array]:
  """Both ends in one shape and dtype, of 32 bits at least."""
  dtype = jnp.promote_types(jnp.result_type(lo, hi), jnp.float32)
  lo, hi = jnp.broadcast_arrays(jnp.asarray(lo, dtype), jnp.asarray(hi, dtype))
  return lo, hi


def _order(x: Any, xp: Any) -> Any:
  """Integers in the order of floats. Processors compare the smallest floats as if they were 0."""
  info = np.iinfo(f"int{8 * x.dtype.itemsize}")
  bits = x.view(info.dtype)
  bits = xp.where(bits == info.min, 0, bits)  # -0 is 0
  return bits ^ ((bits >> (info.bits - 1)) & info.max)


def outward(x: Interval, dtype: Any) -> Interval:
  """Intervals with ends in another dtype, none of them subnormal."""
  return Interval(_down(x.lo, dtype), 0 - _down(-x.hi, dtype))


def _down(x: np.ndarray, dtype: Any) -> np.ndarray:
  with np.errstate(over="ignore"):
    result = x.astype(dtype)
  result = np.where(result > x, np.nextafter(result, np.array(-np.inf, dtype)), result)
  tiny = np.finfo(dtype).tiny
  return np.where(abs(result) < tiny, np.where(result < 0, -tiny, 0), result).astype(dtype)
