r"""The rules of arithmetic for values and slopes, on boxes or on a ray.

A `Dual` holds all values u(a) and all slopes :math:`(u(a) - u(b))/(a - b)` of a node for
:math:`a \ne b` in one interval of inputs. The rules are those of derivatives, and they hold for
slopes as they stand, without any limit: uv has the slopes :math:`u(a) s_v + v(b) s_u`, f(u) has
:math:`f'(\xi) s_u`, and max(u, v) one between :math:`s_u` and :math:`s_v`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lipjax.certify.scalar import errors as slope_errors
from lipjax.certify.scalar.graph import Node
from lipjax.certify.scalar.inverse_functions import INVERSE_FUNCTIONS
from lipjax.certify.scalar.scalar_functions import FUNCTIONS, integer_power, real_power
from lipjax.rounding import interval as iv
from lipjax.rounding.interval import Interval


class Dual(NamedTuple):
  """Values and slopes: Intervals on boxes, Tails on a ray."""

  value: Any
  slope: Any


class Boxes:
  """Arithmetic with intervals; a box is an interval of inputs."""

  add = staticmethod(iv.add)
  negative = staticmethod(iv.negative)
  multiply = staticmethod(iv.multiply)
  power = staticmethod(iv.power)
  hull = staticmethod(iv.hull)
  choose = staticmethod(iv.choose)
  within = staticmethod(iv.meet)
  whole = staticmethod(iv.whole)

  def __init__(self, boxes: Interval):
    self.boxes = boxes

  def constant(self, value: float) -> Interval:
    """The same number on every box."""
    return iv.point(np.full(self.boxes.lo.shape, value))

  def bounds(self, x: Interval) -> Interval:
    """The interval itself."""
    return x

  def step(self, x: Interval, bounds: Interval) -> Interval:
    """Something of which an interval is known."""
    del x
    return bounds

  def grown(self, value: Interval, slope: Interval) -> Interval:
    """The value itself: on a box nothing is gained."""
    del slope
    return value

  def apply(self, name, function, u: Interval, slope: Interval) -> tuple[Interval, Interval]:
    """Values and derivatives of a scalar function."""
    del name, slope
    return function.values(u), function.slopes(u)


def apply_rule(ar: Any, node: Node, operands: list[Dual]) -> Dual:
  """The rule of a primitive that computes a number."""
  known = FUNCTIONS.get(node.name) or INVERSE_FUNCTIONS.get(node.name)
  if known is not None:
    return _composed(ar, node.name, known, operands[0])
  a, b = operands[0], operands[-1]
  match node.name:
    case "add":
      return Dual(ar.add(a.value, b.value), ar.add(a.slope, b.slope))
    case "sub" if node.inputs[0] == node.inputs[1]:
      return Dual(ar.constant(0.0), ar.constant(0.0))
    case "sub":
      return apply_rule(ar, Node("add"), [a, _negative(ar, b)])
    case "neg":
      return _negative(ar, a)
    case "mul":
      return _product(ar, a, b)
    case "div":
      return _quotient(ar, a, b)
    case "max":
      return _maximum(ar, a, b)
    case "min":
      return _negative(ar, _maximum(ar, _negative(ar, a), _negative(ar, b)))
    case "abs":
      result = _maximum(ar, a, _negative(ar, a))
      positive = iv.clipped(ar.bounds(result.value), 0, np.inf)
      return Dual(ar.within(result.value, positive), result.slope)
    case "integer_pow":
      return _integer_power(ar, node.parameter, a)
    case "pow":
      return _power(ar, node, a, b)
    case "sign" | "floor" | "ceil" | "round":
      return _step(ar, node, a)
    case _:
      raise slope_errors.unknown(node.parameter or node.name, node.line)


def _negative(ar: Any, a: Dual) -> Dual:
  return Dual(ar.negative(a.value), ar.negative(a.slope))


def _product(ar: Any, a: Dual, b: Dual) -> Dual:
  slope = ar.add(ar.multiply(a.value, b.slope), ar.multiply(b.value, a.slope))
  return Dual(ar.multiply(a.value, b.value), slope)


def _quotient(ar: Any, a: Dual, b: Dual) -> Dual:
  inverse, _ = ar.apply("reciprocal", FUNCTIONS["reciprocal"], b.value, b.slope)
  value = ar.multiply(a.value, inverse)
  # (s_u - (u/v) s_v)/v holds each operand less often than the usual formula.
  top = ar.add(a.slope, ar.negative(ar.multiply(value, b.slope)))
  return Dual(value, ar.multiply(top, inverse))


def _composed(ar: Any, name: str, function: Any, a: Dual) -> Dual:
  value, derivative = ar.apply(name, function, a.value, a.slope)
  return Dual(value, ar.multiply(derivative, a.slope))


def _maximum(ar: Any, a: Dual, b: Dual) -> Dual:
  x, y = ar.bounds(a.value), ar.bounds(b.value)
  value, slope = ar.hull(a.value, b.value), ar.hull(a.slope, b.slope)
  first, second = x.lo >= y.hi, y.lo >= x.hi
  value = ar.within(value, iv.maximum(x, y))
  value = ar.choose(first, a.value, ar.choose(second, b.value, value))
  return Dual(value, ar.choose(first, a.slope, ar.choose(second, b.slope, slope)))


def _integer_power(ar: Any, n: int, a: Dual) -> Dual:
  if n <= 0 or isinstance(ar, Boxes):
    return _composed(ar, "", integer_power(n), a)
  lower = ar.power(a.value, n - 1) if n > 1 else ar.constant(1.0)
  slope = ar.multiply(ar.multiply(ar.constant(float(n)), lower), a.slope)
  return Dual(ar.power(a.value, n), slope)


def _power(ar: Any, node: Node, a: Dual, b: Dual) -> Dual:
  """u^c, or c^u = exp(u log c), for a constant c."""
  base, exponent = _number(ar, a), _number(ar, b)
  if exponent is not None:
    return _composed(ar, "", real_power(exponent), a)
  if base is not None and base > 0:
    # The constant log c is known up to rounding.
    log = np.full_like(ar.bounds(b.value).lo, math.log(base))
    factor = ar.step(b.value, iv.rounded(log, log))
    scaled = Dual(ar.multiply(factor, b.value), ar.multiply(factor, b.slope))
    return _composed(ar, "exp", FUNCTIONS["exp"], scaled)
  place, reason = node.line, "unless the base or the exponent is constant"
  raise slope_errors.unknown(node.name, place, f" {reason}")


def _number(ar: Any, x: Dual) -> float | None:
  """The number that x is on all boxes; None if it moves, be it from one box to the next."""
  value, slope = ar.bounds(x.value), ar.bounds(x.slope)
  first = value.lo.flat[0]
  is_still = (slope.lo == 0) & (slope.hi == 0)
  is_number = is_still & (value.lo == first) & (value.hi == first)
  return float(first) if is_number.all() else None


_STEPS = {"sign": np.sign, "floor": np.floor, "ceil": np.ceil}


def _step(ar: Any, node: Node, a: Dual) -> Dual:
  """A function that jumps from one constant to the next."""
  x = ar.bounds(a.value)
  if node.name == "round":  # a half goes either way, so that it does not matter which
    bounds = Interval(np.ceil(x.lo - 0.5), np.floor(x.hi + 0.5))
  else:
    bounds = Interval(_STEPS[node.name](x.lo), _STEPS[node.name](x.hi))
  slope = iv.choose(bounds.lo == bounds.hi, iv.point(np.zeros_like(x.lo)), iv.whole(x))
  return Dual(ar.step(a.value, bounds), ar.step(a.slope, slope))
