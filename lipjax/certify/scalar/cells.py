r"""Slopes and values of a scalar function on many intervals at once, whose ends may be traced.

The line is cut into cells, once and for all, and slopes and values are enclosed on each. An
interval is looked up: it is covered by the cells from that of its lower end to that of its
upper end, and tables of minima and maxima over runs of 1, 2, 4, … cells give the bounds over
all of them by two overlapping runs, however many there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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
    return _Tables(
      _order(borders.hi[:-1], np),
      _order(borders.lo[:-1], np),
      (_runs(slopes.lo, np.minimum), _runs(slopes.hi, np.maximum)),
      (_runs(ranges.lo, np.minimum), _runs(ranges.hi, np.maximum)),
      (left, right),
      # From the left border values fall at most as the lowest slope says, and up to the right
      # one they rise at most as the largest does.
      (_tangent(left, at.lo[:-1], slopes.lo), _tangent(right, at.lo[1:], slopes.hi)),
      (_tangent(left, at.hi[:-1], slopes.hi), _tangent(right, at.hi[1:], slopes.lo)),
    )


class _Tables(NamedTuple):
  """What is looked up, in the dtype of the ends.

  Attributes:
    above: the left borders, rounded up, as integers in the same order.
    below: the same, rounded down.
    slopes: the least lower and the largest upper bound on runs of cells.
    values: the same of values.
    ends: the left and the right border of each cell.
    lower: lines from the left and the right border that bound values in a cell from below.
    upper: lines that bound them from above.
  """

  above: Any
  below: Any
  slopes: Any
  values: Any
  ends: Any
  lower: Any
  upper: Any


@jax.jit
def _slopes(tables: _Tables, lo: jax.Array, hi: jax.Array) -> tuple[jax.Array, jax.Array]:
  first, last, is_valid = _covering(tables, *lax.stop_gradient((lo, hi)))
  low, high = _over(tables.slopes, first, last)
  return jnp.where(is_valid, low, -jnp.inf), jnp.where(is_valid, high, jnp.inf)


@jax.jit
def _values(tables: _Tables, lo: jax.Array, hi: jax.Array) -> tuple[jax.Array, jax.Array]:
  first, last, is_valid = _covering(tables, lo, hi)
  # No real number lies between infinities of one sign.
  is_valid &= (lo < jnp.inf) & (hi > -jnp.inf)
  lo, hi = jnp.where(is_valid, lo, 0), jnp.where(is_valid, hi, 0)
  lows, highs = zip(*(_in_cell(tables, cell, lo, hi) for cell in (first, last)), strict=True)
  low, high = jnp.minimum(*lows), jnp.maximum(*highs)
  # The cells between those of the ends, if there are any.
  has_more = last - first > 1
  inner = jnp.where(has_more, first + 1, first), jnp.where(has_more, last - 1, first)
  inner_low, inner_high = _over(tables.values, *inner)
  low = jnp.where(has_more, jnp.minimum(low, inner_low), low)
  high = jnp.where(has_more, jnp.maximum(high, inner_high), high)
  return jnp.where(is_valid, low, -jnp.inf), jnp.where(is_valid, high, jnp.inf)


def _covering(tables: _Tables, lo: jax.Array, hi: jax.Array):
  """The first and the last cell of each interval, and whether it is one."""
  a, b = _order(lo, jnp), _order(hi, jnp)
  # An end on a border is in the cell inside of the interval.
  first, last = _last_border(tables.above, a, lax.le), _last_border(tables.below, b, lax.lt)
  is_valid = (a <= b) & ~jnp.isnan(lo) & ~jnp.isnan(hi)
  # One point on a border comes out as its two cells in the wrong order.
  return jnp.minimum(first, last), jnp.maximum(first, last), is_valid


def _last_border(borders: jax.Array, x: jax.Array, is_below: Callable[..., jax.Array]) -> jax.Array:
  """The last of 2ⁿ borders below each x, or the first one.

  As `jnp.searchsorted`, which takes four times as long, or ten times to compile if unrolled.
  """

  def halve(i: Any, found: jax.Array) -> jax.Array:
    further = found + (borders.size >> (i + 1))
    return jnp.where(is_below(_take(borders, further), x), further, found)

  rounds = borders.size.bit_length() - 1
  return lax.fori_loop(0, rounds, halve, jnp.zeros(x.shape, jnp.int32))


def _over(runs: tuple[jax.Array, jax.Array], first: jax.Array, last: jax.Array):
  """The least lower and the largest upper bound of the cells from the first to the last."""
  level = jnp.iinfo(first.dtype).bits - 1 - lax.clz(last - first + 1)
  end = last + 1 - (1 << level)
  low, high = ([_take(table, level, cell) for cell in (first, end)] for table in runs)
  return jnp.minimum(*low), jnp.maximum(*high)


def _in_cell(tables: _Tables, cell: jax.Array, lo: jax.Array, hi: jax.Array):
  """Bounds of the values on the part of a cell that is in [lo, hi]."""
  a, b = (jnp.clip(x, *(_take(border, cell) for border in tables.ends)) for x in (lo, hi))
  low, high = (_take(table, 0, cell) for table in tables.values)
  for line in tables.lower:
    low = jnp.maximum(low, _along(line, cell, a, b, -1))
  for line in tables.upper:
    high = jnp.minimum(high, _along(line, cell, b, a, 1))
  return low, high


def _along(line: tuple[Any, ...], cell: jax.Array, rising, falling, side: int) -> jax.Array:
  """Where a line is at `rising` if it rises, else at `falling`, rounded up or down."""
  is_known, c, g, s = (_take(table, cell) for table in line)
  change = jnp.where(s == 0, 0, s * (jnp.where(s > 0, rising, falling) - c))
  finfo = jnp.finfo(c.dtype)
  # Five roundings, that of the border being one, and numbers too small for the processor.
  error = 4 * finfo.eps * (abs(g) + abs(change) + abs(s * c)) + 4 * finfo.tiny * (1 + abs(s))
  error = lax.stop_gradient(error)
  is_known &= jnp.isfinite(error)
  return jnp.where(is_known, g + change + side * error, side * jnp.inf)


def _take(table: jax.Array, *index: jax.Array | int) -> jax.Array:
  return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def _tangent(border: np.ndarray, value: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, ...]:
  """A line for each cell, by a point and a slope, and whether all of these are finite."""
  line = (border, value, slope)
  is_known = np.logical_and.reduce([np.isfinite(x) for x in line])
  return is_known, *(np.where(is_known, x, np.zeros_like(x)) for x in line)


def _runs(row: np.ndarray, pick: np.ufunc) -> np.ndarray:
  """What `pick` takes from the 1, 2, 4, … cells from each on, level by level."""
  levels = [row]
  while 2 ** len(levels) <= row.size:
    half = 2 ** (len(levels) - 1)
    last = levels[-1].copy()
    last[:-half] = pick(last[:-half], last[half:])
    levels.append(last)
  return np.stack(levels)


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
