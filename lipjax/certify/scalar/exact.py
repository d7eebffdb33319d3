r"""Values of a scalar function in exact rational arithmetic, where they are rational.

It proves that the branches of a choice meet: where the condition changes, both must have one
value, and no rounded arithmetic can show that two numbers are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from lipjax.certify.scalar.graph import Graph, Node

Value = Fraction | bool | None

_ZERO, _ONE = Fraction(0), Fraction(1)
#: Where functions have rational values.
_POINTS = {
  **{
    (name, _ZERO): _ZERO
    for name in ["expm1", "log1p", "tanh", "sin", "tan", "sinh", "erf", "atan", "asinh"]
  },
  **{(name, _ZERO): _ONE for name in ["exp", "exp2", "cos", "cosh", "erfc"]},
  ("logistic", _ZERO): Fraction(1, 2),
  ("log", _ONE): _ZERO,
  ("cbrt", _ZERO): _ZERO,
  ("cbrt", _ONE): _ONE,
  ("cbrt", -_ONE): -_ONE,
}


def exact_values(
  graph: Graph, x: Fraction | None, given: dict[int, Fraction] | None = None
) -> list[Value]:
  """The value of every node at `x`; None where it is not rational, or not known to be.

  Nodes that are given have the value that is given, and no input is needed for what depends on
  these alone.
  """
  values: list[Value] = []
  given = given or {}
  for place, node in enumerate(graph.nodes):
    if place in given:
      values.append(given[place])
      continue
    try:
      value = _value(node, [values[i] for i in node.inputs], x)
      # Powers of powers would take long, and prove nothing.
      is_long = isinstance(value, Fraction) and value.denominator.bit_length() > 10_000
      values.append(None if is_long else value)
    except (ZeroDivisionError, OverflowError, ValueError):
      values.append(None)
  return values


def _value(node: Node, operands: list[Value], x: Value) -> Value:
  if node.name == "input":
    return x
  if node.name == "between":
    return None
  if node.name == "truth":
    return node.parameter
  if node.name == "constant":
    return Fraction(node.parameter)
  if node.name == "select_n":
    which, *cases = operands
    return None if which is None else cases[int(which)]
  if node.name == "mul" and _ZERO in operands:
    # Whatever the other one is.
    return _ZERO
  if any(operand is None for operand in operands):
    return None
  return _known(node, *operands)


def _known(node: Node, a: Any, b: Any = None) -> Value:
  """A value of rational operands."""
  match node.name:
    case "add":
      return a + b
    case "sub":
      return a - b
    case "mul":
      return a * b
    case "div":
      return a / b
    case "neg":
      return -a
    case "max":
      return max(a, b)
    case "min":
      return min(a, b)
    case "abs":
      return abs(a)
    case "sign":
      return Fraction((a > 0) - (a < 0))
    case "floor":
      return Fraction(math.floor(a))
    case "ceil":
      return Fraction(math.ceil(a))
    case "integer_pow":
      return None if abs(node.parameter) > 64 else a**node.parameter
    case "lt":
      return a < b
    case "le":
      return a <= b
    case "eq":
      return a == b
    case "ne":
      return a != b
    case "and":
      return a and b
    case "or":
      return a or b
    case "xor":
      return a != b
    case "not":
      return not a
    case "sqrt":
      return _root(a)
    case "rsqrt":
      root = _root(a)
      return None if root is None else 1 / root
    case _:
      return _POINTS.get((node.name, a))


def _root(a: Fraction) -> Fraction | None:
  """The square root of the square of a fraction."""
  root = Fraction(math.isqrt(a.numerator), math.isqrt(a.denominator))
  return root if root * root == a else None


def candidates(graph: Graph, comparison: Node, lo: float, hi: float) -> Iterator[Fraction]:
  """Numbers in [lo, hi] at which both sides of a comparison may be equal.

  The ends, and simple fractions near the middle; then, of sides that are affine, the root of
  their difference. What is yielded is not checked.
  """
  a, b = Fraction(lo), Fraction(hi)
  middle = (a + b) / 2
  near = [a, b, *(middle.limit_denominator(n) for n in (1, 10, 1000))]
  yield from (x for x in near if a <= x <= b)
  left, right = gap(graph, comparison, a), gap(graph, comparison, b)
  if left is None or right is None or left == right:
    return
  secant = a - left * (b - a) / (right - left)
  if a <= secant <= b:
    yield secant


def gap(graph: Graph, comparison: Node, x: Fraction) -> Fraction | None:
  """How far apart the sides of a comparison are at `x`, exactly."""
  values = exact_values(graph, x)
  left, right = (values[i] for i in comparison.inputs)
  return None if left is None or right is None else Fraction(left) - Fraction(right)


def kinks(graph: Graph, lo: float, hi: float) -> set[float]:
  """Floats in (lo, hi) where two affine sides of a comparison, or of a maximum, cross."""
  found = set()
  for node in graph.nodes:
    if node.name == "abs":
      sides = _value_at
    elif node.name in ("max", "min", "lt", "le", "eq", "ne"):
      sides = gap
    else:
      continue
    left, right = (sides(graph, node, Fraction(end)) for end in (lo, hi))
    if left is None or right is None or left == right:
      continue
    a, b = Fraction(lo), Fraction(hi)
    x = a - left * (b - a) / (right - left)
    if a < x < b and float(x) == x and sides(graph, node, x) == 0:
      found.add(float(x))
  return found


def _value_at(graph: Graph, node: Node, x: Fraction) -> Fraction | None:
  value = exact_values(graph, x)[node.inputs[0]]
  return None if value is None else Fraction(value)
