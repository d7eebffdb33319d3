r"""Intervals that are rounded outward, many at once.

An `Interval` holds every real number between `lo` and `hi`, float64 arrays that may be
infinite: then the numbers are unbounded, but each of them is finite, so that 0 times any of
them is 0. What is computed holds every result of numbers from the operands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Interval(NamedTuple):
  """Real numbers from `lo` to `hi`, elementwise in arrays of one shape."""

  lo: Floats
  hi: Floats


def interval(lo: ArrayLike, hi: ArrayLike) -> Interval:
  """An interval; a bound that is not a number is no bound."""
  lo, hi = np.broadcast_arrays(np.asarray(lo, np.float64), np.asarray(hi, np.float64))
  return Interval(np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi))


def point(value: ArrayLike) -> Interval:
  """One number; every number when it is not one."""
  return interval(value, value)


def whole(like: Interval) -> Interval:
  """All real numbers, in the shape of `like`."""
  return Interval(np.full(like.lo.shape, -np.inf), np.full(like.lo.shape, np.inf))


def rounded(lo: ArrayLike, hi: ArrayLike, ulps: int = 1) -> Interval:
  """An interval around bounds that were computed with a relative error of some ulps."""
  lo, hi = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
  # The absolute part is for numbers below 1e-308. The step outward takes infinity, as a lower
  # bound, back to the largest number.
  relative, absolute = ulps * np.finfo(np.float64).eps, ulps * 5e-324
  lo = np.nextafter(np.where(np.isinf(lo), lo, lo - relative * np.abs(lo) - absolute), -np.inf)
  hi = np.nextafter(np.where(np.isinf(hi), hi, hi + relative * np.abs(hi) + absolute), np.inf)
  return interval(lo, hi)


def clipped(x: Interval, lo: float, hi: float) -> Interval:
  """What of an interval lies between two bounds that are known to hold."""
  return Interval(np.clip(x.lo, lo, hi), np.clip(x.hi, lo, hi))


def add(x: Interval, y: Interval) -> Interval:
  """Sums. They are exact, and not rounded, where floats can hold them."""
  return interval(_add(x.lo, y.lo, -np.inf), _add(x.hi, y.hi, np.inf))


def _add(a: Floats, b: Floats, toward: float) -> Floats:
  total = a + b
  other = total - a
  error = (a - (total - other)) + (b - other)  # Knuth's: total + error is a + b exactly
  # Infinity minus itself is not a number, which differs from 0: it is rounded as well.
  return np.where(error == 0, total, np.nextafter(total, toward))


def negative(x: Interval) -> Interval:
  """Numbers of the other sign."""
  return Interval(-x.hi, -x.lo)


def subtract(x: Interval, y: Interval) -> Interval:
  """Differences."""
  return add(x, negative(y))


def multiply(x: Interval, y: Interval) -> Interval:
  """Products."""
  corners = [_multiply(a, b) for a in (x.lo, x.hi) for b in (y.lo, y.hi)]
  lo = np.minimum.reduce([lo for lo, _ in corners])
  hi = np.maximum.reduce([hi for _, hi in corners])
  return interval(lo, hi)


def _multiply(a: Floats, b: Floats) -> tuple[Floats, Floats]:
  is_zero = (a == 0) | (b == 0)
  product = np.where(is_zero, 0.0, a * b)
  is_exact = is_zero | (np.abs(a) == 1) | (np.abs(b) == 1)
  lo = np.where(is_exact, product, np.nextafter(product, -np.inf))
  return lo, np.where(is_exact, product, np.nextafter(product, np.inf))


def reciprocal(x: Interval) -> Interval:
  """One over an interval; unbounded on the sides where it reaches 0."""
  with np.errstate(divide="ignore"):
    lo, hi = rounded(1 / x.hi, 1 / x.lo)
  above, below = x.lo >= 0, x.hi <= 0
  lo = np.where(above, np.maximum(lo, 0), np.where(below & (x.lo < 0), lo, -np.inf))
  hi = np.where(below, np.minimum(hi, 0), np.where(above & (x.hi > 0), hi, np.inf))
  # Zero itself has neither bound, and an interval that touches it has one only.
  lo = np.where(below & ((x.hi == 0) | (x.lo == 0)), -np.inf, lo)
  hi = np.where(above & ((x.lo == 0) | (x.hi == 0)), np.inf, hi)
  return interval(lo, hi)


def maximum(x: Interval, y: Interval) -> Interval:
  """The larger number of each pair."""
  return Interval(np.maximum(x.lo, y.lo), np.maximum(x.hi, y.hi))


def hull(x: Interval, y: Interval) -> Interval:
  """The smallest interval around both."""
  return Interval(np.minimum(x.lo, y.lo), np.maximum(x.hi, y.hi))


def meet(x: Interval, y: Interval) -> Interval:
  """The numbers in both intervals, which are known to hold a common one."""
  return Interval(np.maximum(x.lo, y.lo), np.minimum(x.hi, y.hi))


def choose(condition: NDArray[np.bool_], x: Interval, y: Interval) -> Interval:
  """Elementwise `x` where the condition holds, `y` elsewhere."""
  return Interval(np.where(condition, x.lo, y.lo), np.where(condition, x.hi, y.hi))


def magnitude(x: Interval) -> Floats:
  """The largest absolute value."""
  return np.maximum(np.abs(x.lo), np.abs(x.hi))


def smallest_magnitude(x: Interval) -> Floats:
  """The smallest absolute value; 0 where the interval holds 0."""
  return np.maximum(np.maximum(x.lo, -x.hi), 0)


def is_bounded(x: Interval) -> NDArray[np.bool_]:
  """Whether both ends are finite."""
  return np.isfinite(x.lo) & np.isfinite(x.hi)


def power(x: Interval, n: int) -> Interval:
  """Integer powers; 1 for n = 0."""
  if n < 0:
    return reciprocal(power(x, -n))
  if n == 0:
    return Interval(np.ones_like(x.lo), np.ones_like(x.hi))
  if n == 1:
    return x
  if n % 2:
    # numpy takes a large power by exp and log, whose error grows with n.
    return rounded(_power(x.lo, n), _power(x.hi, n), 2 * n + 2)
  lo, hi = _power(smallest_magnitude(x), n), _power(magnitude(x), n)
  bounds = rounded(lo, hi, 2 * n + 2)
  return Interval(np.where(lo == 0, 0.0, np.maximum(bounds.lo, 0)), bounds.hi)


def _power(x: Floats, n: int) -> Floats:
  """Powers by repeated multiplication, of a relative error of n ulps at most."""
  result, square = np.ones_like(x), x
  while n:
    if n & 1:
      result = result * square
    n >>= 1
    if n:
      square = square * square
  return result
