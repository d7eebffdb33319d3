r"""Numbers along a ray that goes to infinity, and how fast they grow or settle.

On the ray :math:`t = |x| \ge R` an interval alone cannot tell that :math:`x\,e^{-x}` is small:
it is :math:`\infty \cdot 0`. So a `Tail` holds besides its interval an envelope

.. math:: |q(x) - \ell| \le C\,t^p\,e^{-k(t - R)}

and a floor :math:`|q(x)| \ge c\,t^s`. Rates are rounded down and constants up, by far more
than the floats that they are computed in err.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lipjax.certify.scalar.scalar_functions import ScalarFunction
from lipjax.rounding import interval as iv
from lipjax.rounding.interval import Interval

_OVER, _UNDER = 1 + 1e-9, 1 - 1e-9
#: Constants of envelopes are at least this, unless they are exactly 0, which would stay 0 in a
#: product with something unbounded; and constants of floors at most that.
_LEAST, _MOST = 1e-300, 1e100


class Envelope(NamedTuple):
  """At most ``constant · t**power · exp(-rate (t - R))``."""

  constant: float
  power: float = 0.0
  rate: float = 0.0


class Floor(NamedTuple):
  """At least ``constant · t**power``, with `power` ≥ 0."""

  constant: float = 0.0
  power: float = 0.0


class Tail(NamedTuple):
  """A number that depends on t ≥ R."""

  bounds: Interval
  limit: Interval
  envelope: Envelope
  floor: Floor = Floor()


_NO_FLOOR = Floor()


class Ray:
  """Arithmetic with tails on the inputs from `start` > 0 to ∞, or, of side -1, from -start."""

  def __init__(self, start: float, side: int):
    self.start = start
    self.side = side

  def input(self) -> Tail:
    """The input itself."""
    lo, hi = (self.start, math.inf) if self.side > 0 else (-math.inf, -self.start)
    return Tail(iv.interval(lo, hi), iv.point(0.0), Envelope(1.0, 1.0), Floor(1.0, 1.0))

  def constant(self, value: float) -> Tail:
    """The same number everywhere."""
    return self._tail(iv.point(value), iv.point(value), Envelope(0.0))

  def bounds(self, tail: Tail) -> Interval:
    """All values on the ray."""
    return tail.bounds

  def whole(self, like: Tail) -> Tail:
    """Nothing is known."""
    return self._bounded(iv.whole(like.bounds))

  def step(self, tail: Tail, bounds: Interval) -> Tail:
    """Something of which only an interval is known."""
    del tail
    return self._bounded(bounds)

  def _bounded(self, bounds: Interval) -> Tail:
    return Tail(bounds, iv.point(0.0), Envelope(float(iv.magnitude(bounds))))

  def _tail(self, bounds: Interval, limit: Interval, envelope: Envelope, floor=_NO_FLOOR) -> Tail:
    """A tail whose interval is no wider than its envelope says."""
    constant = envelope.constant * _OVER
    envelope = envelope._replace(constant=constant, rate=envelope.rate * _UNDER)
    if not (math.isfinite(constant) and iv.is_bounded(limit)):
      return self._bounded(bounds)._replace(floor=floor)
    reach = self._largest(envelope)
    around = iv.add(limit, iv.interval(-reach, reach))
    return Tail(iv.meet(bounds, around), limit, envelope, floor)

  def _largest(self, envelope: Envelope) -> float:
    """The largest value of an envelope on the ray."""
    constant, power, rate = envelope
    if constant == 0:
      return 0.0
    if power <= 0:
      t = self.start
    elif rate == 0:
      return math.inf
    else:
      t = max(self.start, power / rate)
    exponent = power * math.log(t) - rate * (t - self.start)
    return max(constant * math.exp(exponent) * _OVER, _LEAST) if exponent < 700 else math.inf

  def _sum(self, *envelopes: Envelope) -> Envelope:
    """An envelope of a sum: the largest power and the smallest rate."""
    terms = [envelope for envelope in envelopes if envelope.constant != 0]
    if not terms:
      return Envelope(0.0)
    power, rate = max(e.power for e in terms), min(e.rate for e in terms)
    constant = sum(e.constant * self.start ** (e.power - power) for e in terms)
    return Envelope(constant * _OVER + _LEAST, power, rate)

  def add(self, x: Tail, y: Tail) -> Tail:
    """A sum."""
    floor = Floor()
    if min(x.bounds.lo, y.bounds.lo) >= 0 or max(x.bounds.hi, y.bounds.hi) <= 0:
      floor = max(x.floor, y.floor, key=lambda floor: (floor.constant > 0, floor.power))
    envelope = self._sum(x.envelope, y.envelope)
    return self._tail(iv.add(x.bounds, y.bounds), iv.add(x.limit, y.limit), envelope, floor)

  def negative(self, x: Tail) -> Tail:
    """The number of the other sign."""
    return x._replace(bounds=iv.negative(x.bounds), limit=iv.negative(x.limit))

  def multiply(self, x: Tail, y: Tail) -> Tail:
    """A product."""
    envelope = self._sum(
      _scaled(x.envelope, float(iv.magnitude(y.limit))),
      _scaled(y.envelope, float(iv.magnitude(x.limit))),
      _product(x.envelope, y.envelope),
    )
    constant = min(x.floor.constant * y.floor.constant * _UNDER, _MOST)
    floor = Floor(constant, x.floor.power + y.floor.power) if constant > 0 else Floor()
    bounds, limit = iv.multiply(x.bounds, y.bounds), iv.multiply(x.limit, y.limit)
    return self._tail(bounds, limit, envelope, floor)

  def power(self, x: Tail, n: int) -> Tail:
    """A positive power."""
    result = x
    for _ in range(n - 1):
      result = self.multiply(result, x)
    return result._replace(bounds=iv.meet(result.bounds, iv.power(x.bounds, n)))

  def hull(self, x: Tail, y: Tail) -> Tail:
    """One or the other, or anything in between."""
    limit = iv.hull(x.limit, y.limit)
    gap = Envelope(float(limit.hi - limit.lo))
    envelope = self._sum(x.envelope, y.envelope, gap)
    return self._tail(iv.hull(x.bounds, y.bounds), limit, envelope)

  def choose(self, condition, x: Tail, y: Tail) -> Tail:
    """`x` if the condition holds, else `y`."""
    return x if bool(condition) else y

  def within(self, x: Tail, bounds: Interval) -> Tail:
    """The same number, which is known to lie in an interval."""
    return x._replace(bounds=iv.meet(x.bounds, bounds))

  def grown(self, value: Tail, slope: Tail) -> Tail:
    """The same value with the floor that its slope shows."""
    rate = self._growth(value, slope)
    first = float(iv.smallest_magnitude(value.bounds))
    constant = min(rate, first / self.start, _MOST) * _UNDER
    if constant > 0 and not (value.floor.power >= 1 and value.floor.constant > 0):
      return value._replace(floor=Floor(constant, 1.0))
    return value

  def _growth(self, value: Tail, slope: Tail) -> float:
    """How fast the absolute value grows with t, at least; 0 if it is not known to."""
    sign = 1 if value.bounds.lo >= 0 else -1 if value.bounds.hi <= 0 else 0
    lo, hi = slope.bounds
    return max(float(lo if sign * self.side > 0 else -hi) if sign else 0.0, 0.0)

  def apply(self, name: str, function: ScalarFunction, u: Tail, slope: Tail) -> tuple[Tail, Tail]:
    """The values and the derivatives of a scalar function of `u`, whose slope is given."""
    values, slopes = function.values(u.bounds), function.slopes(u.bounds)
    growth, settling = self._growth(u, slope), function.settling
    if settling is not None and growth > 0:
      rest = settling.above if u.bounds.lo >= 0 else settling.below
      if rest is not None:
        first = math.exp(-settling.rate * float(iv.smallest_magnitude(u.bounds))) + _LEAST
        rate = settling.rate * min(growth, 1e6)
        value = Envelope(settling.constant * first, 0.0, rate)
        derivative = Envelope(settling.slope_constant * first, 0.0, rate)
        zero = iv.point(0.0)
        return self._tail(values, iv.point(rest), value), self._tail(slopes, zero, derivative)
    constant, power = u.floor
    powers = _POWERS.get(name)
    derivative = self._bounded(slopes)
    if powers is not None and constant > _LEAST and (u.bounds.lo > 0 or name in _ODD):
      # The derivative is at most factor · |u|**-exponent.
      factor, exponent = powers
      largest = factor * math.exp(min(-exponent * math.log(constant), 700.0)) + _LEAST
      envelope = Envelope(largest * _OVER, -exponent * power)
      derivative = self._tail(slopes, iv.point(0.0), envelope)
      if name == "reciprocal":
        value = Envelope(1 / constant * _OVER, -power)
        return self._tail(values, iv.point(0.0), value), derivative
      if name == "sqrt":
        return self._root(u, values), derivative
    # |f(u) - f(ℓ)| is at most the largest slope between times |u - ℓ|.
    steepest = float(iv.magnitude(function.slopes(iv.hull(u.bounds, u.limit))))
    if math.isfinite(steepest):
      value = self._tail(values, function.values(u.limit), _scaled(u.envelope, steepest))
    else:
      value = self._bounded(values)
    return value, derivative

  def _root(self, u: Tail, values: Interval) -> Tail:
    """A square root, which has the square root of the envelope of a growing number."""
    constant, power = u.floor
    floor = Floor(math.sqrt(constant) * _UNDER, power / 2)
    top = self._sum(u.envelope, Envelope(float(iv.magnitude(u.limit))))
    if math.isfinite(top.constant):
      top = Envelope(math.sqrt(top.constant), top.power / 2, top.rate / 2)
    return self._tail(values, iv.point(0.0), top, floor)


#: Derivatives at most factor · |u|**-exponent, for u > 0, and for u < 0 too of those in `_ODD`.
_POWERS = {
  "reciprocal": (1.0, 2.0),
  "sqrt": (0.5, 0.5),
  "rsqrt": (0.5, 1.5),
  "log": (1.0, 1.0),
  "log1p": (1.0, 1.0),
  "atan": (1.0, 2.0),
  "asinh": (1.0, 1.0),
}
_ODD = frozenset({"reciprocal", "atan", "asinh"})


def _scaled(envelope: Envelope, factor: float) -> Envelope:
  if factor == 0 or envelope.constant == 0:
    return Envelope(0.0)
  return envelope._replace(constant=envelope.constant * factor * _OVER + _LEAST)


def _product(x: Envelope, y: Envelope) -> Envelope:
  if x.constant == 0 or y.constant == 0:
    return Envelope(0.0)
  constant = x.constant * y.constant * _OVER + _LEAST
  return Envelope(constant, x.power + y.power, x.rate + y.rate)
