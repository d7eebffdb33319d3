r"""Scalar functions on intervals: their values, their derivatives, and how fast they settle.

Each `ScalarFunction` maps an interval to one of all values on it, and to one of all
derivatives: by the mean value theorem every slope :math:`(f(a) - f(b))/(a - b)` is a
derivative in between. Outside of the domain both are unbounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lipjax.rounding import interval as iv
from lipjax.rounding.interval import Interval

#: Relative error of numpy's and the C library's functions, in ulps, with a wide margin.
ULPS = 16


class Settling(NamedTuple):
  r"""How a function comes to rest far out: :math:`|f(u) - f(\pm\infty)| \le C e^{-k|u|}`.

  Attributes:
    below: the limit at -∞, None when there is none.
    above: the limit at +∞.
    constant: C.
    slope_constant: the same for the derivative, which goes to 0.
    rate: k.
  """

  below: float | None
  above: float | None
  constant: float
  slope_constant: float
  rate: float


class ScalarFunction(NamedTuple):
  """A function of one number, on intervals."""

  values: Callable[[Interval], Interval]
  slopes: Callable[[Interval], Interval]
  settling: Settling | None = None


def increasing(f, lo=-np.inf, hi=np.inf, ulps=ULPS):
  """An increasing function with values between `lo` and `hi`."""
  return lambda x: iv.clipped(iv.rounded(f(x.lo), f(x.hi), ulps), lo, hi)


def decreasing(f, lo=-np.inf, hi=np.inf, ulps=ULPS):
  """A decreasing function with values between `lo` and `hi`."""
  return lambda x: iv.clipped(iv.rounded(f(x.hi), f(x.lo), ulps), lo, hi)


def _bump(f, hi):
  """An even function that falls from `hi` at 0 to 0 far out."""

  def values(x):
    far, near = f(iv.magnitude(x)), f(iv.smallest_magnitude(x))
    return iv.clipped(iv.rounded(far, near, ULPS), 0, hi)

  return values


def from_bottom(bottom, function, is_open=False):
  """A function that is defined from `bottom` on; above it when `is_open`."""

  def values(x):
    inside = x.lo > bottom if is_open else x.lo >= bottom
    return iv.choose(inside, function(iv.choose(inside, x, iv.point(bottom + 1.0))), iv.whole(x))

  return values


def each(f):
  """A function of the C library on arrays: more exact than approximations by polynomials."""
  ufunc = np.frompyfunc(f, 1, 1)
  return lambda x: np.asarray(ufunc(x), np.float64)


def _sech2(u):
  e = np.exp(-2 * np.abs(u))
  return 4 * e / (1 + e) ** 2


def _logistic(u):
  e = np.exp(-np.abs(u))
  return np.where(u >= 0, 1 / (1 + e), e / (1 + e))


def _softplus(u):
  return np.maximum(u, 0) + np.log1p(np.exp(-np.abs(u)))


def _logistic_slope(u):
  e = np.exp(-np.abs(u))
  return e / (1 + e) ** 2


def _gauss(u):
  u = np.minimum(np.abs(u), 40.0)
  # The exponent's own rounding, up to 1600/2 ulps, is why `ULPS` does not do here.
  return 2 / math.sqrt(math.pi) * np.exp(-u * u)


def _gauss_slopes(x):
  far, near = _gauss(iv.magnitude(x)), _gauss(iv.smallest_magnitude(x))
  # Beyond 26 the exponential is below 1e-293, but not 0.
  far = np.where(iv.magnitude(x) > 26, 0.0, far)
  return iv.clipped(iv.rounded(far, near, 4000), 0, _up(2 / math.sqrt(math.pi)))


def _up(x: float) -> float:
  return math.nextafter(x * (1 + 1e-15), math.inf)


def _cosine(x: Interval, shift: float = 0.0) -> Interval:
  """Values of cos(x + shift)."""
  period = 2 * math.pi
  far = ~(iv.magnitude(x) < 1e6)  # where the argument's rounding would matter
  lo, hi = np.where(far, 0.0, x.lo) + shift, np.where(far, 10.0, x.hi) + shift
  margin = 1e-8
  ends = np.cos(lo), np.cos(hi)
  low, high = np.minimum(*ends) - 1e-9, np.maximum(*ends) + 1e-9

  def holds(phase):  # whether phase + 2πk lies in the interval, or nearly
    return np.ceil((lo - margin - phase) / period) <= np.floor((hi + margin - phase) / period)

  low, high = np.where(holds(math.pi), -1.0, low), np.where(holds(0.0), 1.0, high)
  return iv.clipped(Interval(low, high), -1, 1)


def _sine(x: Interval) -> Interval:
  """Values of sin; near 0, where signs matter, to the last digits."""
  near = iv.magnitude(x) < 1.5
  low, high = np.where(near, x.lo, 0.0), np.where(near, x.hi, 0.0)
  return iv.choose(near, _SIN(Interval(low, high)), _cosine(x, -math.pi / 2))


def _tangent(x: Interval) -> Interval:
  """Values of tan where the interval lies within one branch."""
  inside = iv.magnitude(x) < 1.57
  values = iv.rounded(np.tan(np.where(inside, x.lo, 0)), np.tan(np.where(inside, x.hi, 0)), ULPS)
  return iv.choose(inside, values, iv.whole(x))


def _cosh(x: Interval) -> Interval:
  low, high = np.cosh(iv.smallest_magnitude(x)), np.cosh(iv.magnitude(x))
  return iv.clipped(iv.rounded(low, high, ULPS), 1, np.inf)


_EXP = increasing(np.exp, 0)
_LOGISTIC = increasing(_logistic, 0, 1)
_EXP2 = increasing(np.exp2, 0)
_LN2 = iv.rounded(math.log(2), math.log(2), 2)
_SIN = increasing(np.sin)
_SINH = increasing(np.sinh)
root = from_bottom(0, increasing(np.sqrt, 0))


def _cbrt_slopes(x):
  return iv.multiply(iv.rounded(1 / 3, 1 / 3), iv.reciprocal(iv.power(_CBRT(x), 2)))


_CBRT = increasing(np.cbrt)
_HALF = iv.point(0.5)

# exp(-u²) ≤ exp(1/4 - |u|), and 1 - tanh|u| = 2/(exp(2|u|) + 1).
_ERF = Settling(-1.0, 1.0, 1.2841, 1.4490, 1.0)
_ERFC = Settling(2.0, 0.0, 1.2841, 1.4490, 1.0)

#: The functions by the names of their primitives in `jax.extend.core.primitives`, less "_p";
#: "reciprocal" and "softplus", log(1 + exp(u)), are no primitives.
FUNCTIONS = {
  "exp": ScalarFunction(_EXP, _EXP, Settling(0.0, None, 1.0, 1.0, 1.0)),
  "exp2": ScalarFunction(
    _EXP2, lambda x: iv.multiply(_LN2, _EXP2(x)), Settling(0.0, None, 1.0, 0.7, 0.69)
  ),
  "expm1": ScalarFunction(increasing(np.expm1, -1), _EXP, Settling(-1.0, None, 1.0, 1.0, 1.0)),
  "log": ScalarFunction(
    from_bottom(0, increasing(np.log), is_open=True), from_bottom(0, iv.reciprocal, is_open=True)
  ),
  "log1p": ScalarFunction(
    from_bottom(-1, increasing(np.log1p), is_open=True),
    from_bottom(-1, lambda x: iv.reciprocal(iv.add(x, iv.point(1.0))), is_open=True),
  ),
  "logistic": ScalarFunction(
    _LOGISTIC, _bump(_logistic_slope, 0.25), Settling(0.0, 1.0, 1.0, 1.0, 1.0)
  ),
  "softplus": ScalarFunction(
    increasing(_softplus, 0), _LOGISTIC, Settling(0.0, None, 1.0, 1.0, 1.0)
  ),
  "tanh": ScalarFunction(
    increasing(np.tanh, -1, 1), _bump(_sech2, 1), Settling(-1.0, 1.0, 2.0, 4.0, 2.0)
  ),
  "sin": ScalarFunction(_sine, _cosine),
  "cos": ScalarFunction(_cosine, lambda x: _cosine(x, math.pi / 2)),
  "tan": ScalarFunction(
    _tangent, lambda x: iv.add(iv.power(_tangent(x), 2), iv.point(np.ones_like(x.lo)))
  ),
  "sinh": ScalarFunction(_SINH, _cosh),
  "cosh": ScalarFunction(_cosh, _SINH),
  "erf": ScalarFunction(increasing(each(math.erf), -1, 1), _gauss_slopes, _ERF),
  "erfc": ScalarFunction(
    decreasing(each(math.erfc), 0, 2), lambda x: iv.negative(_gauss_slopes(x)), _ERFC
  ),
  "sqrt": ScalarFunction(
    root, from_bottom(0, lambda x: iv.multiply(_HALF, iv.reciprocal(root(x))), is_open=True)
  ),
  "rsqrt": ScalarFunction(
    from_bottom(0, lambda x: iv.reciprocal(root(x)), is_open=True),
    from_bottom(
      0,
      lambda x: iv.multiply(iv.negative(_HALF), iv.power(iv.reciprocal(root(x)), 3)),
      is_open=True,
    ),
  ),
  "cbrt": ScalarFunction(_CBRT, _cbrt_slopes),
  "atan": ScalarFunction(
    increasing(np.arctan, -1.5707963267948968, 1.5707963267948968),
    _bump(lambda u: 1 / (1 + u * u), 1),
  ),
  "asinh": ScalarFunction(increasing(np.arcsinh), _bump(lambda u: 1 / np.hypot(1, u), 1)),
  "reciprocal": ScalarFunction(iv.reciprocal, lambda x: iv.negative(iv.power(iv.reciprocal(x), 2))),
}


def integer_power(n: int) -> ScalarFunction:
  """The function of the n-th power."""
  factor = iv.point(float(n))
  if n < 0:
    # The power of the reciprocal, which is defined on one side of 0 at a time.
    return ScalarFunction(
      lambda x: iv.power(iv.reciprocal(x), -n),
      lambda x: iv.multiply(factor, iv.power(iv.reciprocal(x), 1 - n)),
    )
  return ScalarFunction(
    lambda x: iv.power(x, n), lambda x: iv.multiply(factor, iv.power(x, max(n - 1, 0)))
  )


def real_power(exponent: float) -> ScalarFunction:
  """The function u^c of positive numbers, and of 0 where that is defined."""

  def values(c):
    one = increasing if c >= 0 else decreasing
    # pow is exact to a few ulps for all arguments.
    return from_bottom(0, one(lambda u: np.power(u, c), 0), is_open=c < 0)

  slope = values(exponent - 1)
  return ScalarFunction(values(exponent), lambda x: iv.multiply(iv.point(exponent), slope(x)))
