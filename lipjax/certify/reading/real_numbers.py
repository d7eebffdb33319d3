"""What is so of all real numbers: tests for NaN and infinity, comparisons that a sign decides.

A bound is of a function of real numbers; what JAX writes for others is left out as it is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

#: Comparisons of a number with itself.
_TRUTHS = {"eq": True, "ge": True, "le": True, "gt": False, "lt": False, "ne": False}
#: Comparisons with 0 that a sign decides.
_SIGNS = frozenset({"eq", "ge", "le", "gt", "lt", "ne"})
#: What is positive, or not negative, where all operands are.
_KEEP_SIGN = """
abs add broadcast_in_dim convert_element_type div mul reduce_max reduce_min reduce_sum reshape sign
slice sqrt squeeze transpose
"""
#: What a number does nothing to another one by.
_NOTHING = {("max", -math.inf), ("min", math.inf), ("mul", 1.0), ("add", 0.0)}
_NOTHING |= {("add_any", 0.0)}


def simplified(
  reader: Any, name: str, operands: Sequence[Any], shape: tuple[int, ...]
) -> Any | None:
  """What is so of all real numbers, or does nothing: tests for NaN and infinity, for example."""
  numbers = [None if isinstance(x, int) else _number(x) for x in operands]
  if name == "select_n":
    if numbers[0] is not None:
      return operands[1 + int(numbers[0])]
    same = isinstance(operands[1], int) and all(x is operands[1] for x in operands[1:])
    return operands[1] if same else None
  if name == "is_finite":
    return np.ones(shape, bool)
  if name in _TRUTHS and isinstance(operands[0], int) and operands[0] is operands[1]:
    return np.full(shape, _TRUTHS[name])
  if name in _SIGNS and numbers[1] is not None and numbers[1] == 0:
    sign = _sign(reader, operands[0])
    if sign > 0 or (sign == 0 and name in ("ge", "lt")):
      return np.full(shape, name in ("ge", "gt", "ne"))
  if name == "abs" and _sign(reader, operands[0]) >= 0:
    return operands[0]
  if name in ("eq", "ne") and any(x is not None and np.isinf(x) for x in numbers):
    return np.full(shape, name == "ne")
  for number, other in zip(numbers, operands[::-1], strict=True) if len(operands) == 2 else ():
    if number is None or reader.shape(other) != shape:
      continue
    is_logic = name in ("and", "or") and isinstance(number, np.bool_)
    if (name, float(number)) in _NOTHING or (is_logic and number == (name == "and")):
      return other
    if is_logic:
      return np.full(shape, number)
  return None


def _sign(reader: Any, x: Any, depth: int = 8) -> int:
  """1 if all numbers are surely positive, 0 if none is negative, -1 if nothing is known."""
  if not isinstance(x, int):
    return -1 if not x.size else 1 if np.all(x > 0) else 0 if np.all(x >= 0) else -1
  node = reader.nodes[x]
  if node.name in ("exp", "exp2", "cosh", "logistic"):
    return 1
  if node.name in ("abs", "square"):
    return 0
  if node.name == "array":
    return 0 if node.params["is_nonnegative"] else -1
  if node.name not in _KEEP_SIGN.split() or depth == 0 or node.size == 0:
    return -1
  operands = [_operand(reader, k) for k in node.inputs]
  # A sum of no terms is 0.
  signs = [_sign(reader, k, depth - 1) if np.prod(reader.shape(k)) else -1 for k in operands]
  return min(signs)


def _operand(reader: Any, i: int) -> Any:
  node = reader.nodes[i]
  return node.params["value"].value if node.name == "static" else i


def is_one_number(value: np.ndarray) -> bool:
  """Whether all entries are equal, and there are some."""
  return value.size > 0 and bool(np.all(value == value.flat[0]))


def _number(value: np.ndarray) -> Any:
  """The one number that all entries are, if so."""
  return value.flat[0] if is_one_number(value) else None


def has_16_bits(params: dict[str, Any]) -> bool:
  """Whether a precision is that of a floating-point type of 16 bits at least."""
  bits = params["exponent_bits"], params["mantissa_bits"]
  return any(bits[0] >= e and bits[1] >= m for e, m in ((5, 10), (8, 7)))
