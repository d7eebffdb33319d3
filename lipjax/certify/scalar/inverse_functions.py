"""Inverse functions on intervals, which are defined on a part of the line."""

from __future__ import annotations

import math

import numpy as np

from lipjax.certify.scalar.scalar_functions import (
  ScalarFunction,
  decreasing,
  each,
  from_bottom,
  increasing,
  root,
)
from lipjax.rounding import interval as iv
from lipjax.rounding.interval import Interval


def _within(function, limit):
  """A function that is defined between two numbers."""

  def values(x):
    inside = (x.lo > -limit) & (x.hi < limit)
    return iv.choose(inside, function(iv.choose(inside, x, iv.point(0.0))), iv.whole(x))

  return values


def _inverse_slopes(square, sign=1.0):
  """Of 1/√(1 - u²), an even function that grows with |u|; or of 1/(1 - u²)."""
  one = iv.point(1.0)

  def at(u):
    less = iv.multiply(iv.subtract(one, Interval(u, u)), iv.add(one, Interval(u, u)))
    return iv.reciprocal(less if square else root(less))

  def values(x):
    slopes = Interval(at(iv.smallest_magnitude(x)).lo, at(iv.magnitude(x)).hi)
    return slopes if sign > 0 else iv.negative(slopes)

  return values


def _erf_inv_slopes(x):
  """√π/2 · exp(erf_inv(u)²)."""
  far = _erf_inverse(iv.magnitude(x))
  near = _erf_inverse(iv.smallest_magnitude(x))
  factor = math.sqrt(math.pi) / 2
  return iv.rounded(factor * np.exp(near**2) * (1 - 1e-9), factor * np.exp(far**2) * (1 + 1e-9), 64)


def _erf_inverse(u):
  """By bisection of the C library's erf."""
  u = np.asarray(u, np.float64)
  low, high = np.full_like(u, -6.0), np.full_like(u, 6.0)
  for _ in range(60):
    middle = (low + high) / 2
    is_below = each(math.erf)(middle) < u
    low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
  return (low + high) / 2


def _erf_inv(x):
  # Up to 0.999 the inverse is within 1e-13 of the exact one, with a wide margin.
  lo, hi = _erf_inverse(x.lo), _erf_inverse(x.hi)
  return Interval(lo - 1e-10 * (1 + abs(lo)), hi + 1e-10 * (1 + abs(hi)))


def _acosh_slopes(x):
  """Of 1/√(u² - 1)."""
  one = iv.point(1.0)
  return iv.reciprocal(root(iv.multiply(iv.subtract(x, one), iv.add(x, one))))


#: By the names of their primitives, as in `scalar_functions.FUNCTIONS`.
INVERSE_FUNCTIONS = {
  "asin": ScalarFunction(
    _within(increasing(np.arcsin), 1), _within(_inverse_slopes(square=False), 1)
  ),
  "acos": ScalarFunction(
    _within(decreasing(np.arccos), 1), _within(_inverse_slopes(square=False, sign=-1), 1)
  ),
  "atanh": ScalarFunction(
    _within(increasing(np.arctanh), 1), _within(_inverse_slopes(square=True), 1)
  ),
  "acosh": ScalarFunction(
    from_bottom(1, increasing(np.arccosh), is_open=True),
    from_bottom(1, _acosh_slopes, is_open=True),
  ),
  "erf_inv": ScalarFunction(_within(_erf_inv, 0.999), _within(_erf_inv_slopes, 0.999)),
}
