"""Scalar functions that are linear on either side of 0, and 0 there."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from lipjax.certify.scalar.graph import Graph, Node


class Slopes(NamedTuple):
  """Of a function that is linear on both sides of 0, and 0 there."""

  negative: Fraction
  positive: Fraction

  def mirrored(self) -> Slopes:
    """Of the same function of minus its argument."""
    return Slopes(-self.positive, -self.negative)


class _Number(Fraction):
  """A constant; what is no such is an array of the values for -1 and 1, or of truths."""


def slopes_beside_zero(function: Graph) -> Slopes | None:
  """Both slopes, exactly; None for all functions that are not known to be such."""
  values: list[Any] = []
  for node in function.nodes:
    value = _value(node, [values[k] for k in node.inputs])
    if value is None:
      return None
    values.append(value)
  last = values[-1]
  return None if isinstance(last, _Number) or last.dtype == bool else Slopes(-last[0], last[1])


def _value(node: Node, operands: list[Any]) -> Any:
  """Of a node, where it is positively homogeneous: for all positive u it is u times its value."""
  if node.name == "input":
    return _array(-1, 1)
  if node.name == "constant":
    return _Number(node.parameter) if math.isfinite(node.parameter) else None
  numbers = [x for x in operands if isinstance(x, _Number)]
  if node.name == "mul" and len(numbers) == 1:
    (x,) = (x for x in operands if not isinstance(x, _Number))
    return None if x.dtype == bool else x * Fraction(numbers[0])
  if any(number != 0 for number in numbers):
    return None
  arrays = [_array(0, 0) if isinstance(x, _Number) else x for x in operands]
  if node.name == "select_n":
    # Where the choice changes, at 0, all are 0.
    return np.where(arrays[0], arrays[2], arrays[1]) if arrays[0].dtype == bool else None
  known = node.name in _HOMOGENEOUS and all(x.dtype != bool for x in arrays)
  return _HOMOGENEOUS[node.name](*arrays) if known else None


def _array(*values: int) -> np.ndarray:
  return np.array([Fraction(x) for x in values], object)


_HOMOGENEOUS = {
  "add": np.add, "sub": np.subtract, "neg": np.negative, "abs": np.abs, "max": np.maximum,
  "min": np.minimum, "lt": np.less, "le": np.less_equal,
}  # fmt: skip
