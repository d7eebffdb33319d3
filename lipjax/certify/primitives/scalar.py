"""Scalar functions of every entry: what an activation is made of."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, Operand, Range, ScalarPart
from lipjax.certify.graph import Node
from lipjax.certify.primitives.record import of_two_arrays, record
from lipjax.certify.scalar.cells import outward
from lipjax.certify.scalar.errors import NotLipschitzError
from lipjax.certify.scalar.line import graph_cells, values_on_line
from lipjax.certify.scalar.search import slopes_on_line
from lipjax.rounding.interval import Interval

#: Parts of scalar functions: by themselves they are nodes only where they have no slopes.
PARTS = """abs acos acosh asin asinh atan atanh cbrt ceil cos cosh erf erf_inv erfc exp exp2
expm1 floor integer_pow log log1p logistic nextafter not pow rem round rsqrt sign sin sinh sqrt
square tan tanh is_finite eq ge gt le lt ne and or xor"""


def _range(node: Node, x: Range) -> Range | None:
  try:
    return Range(*graph_cells(node.params["function"]).values(*x))
  except CertifyError:
    return None


@record("scalar", range=_range)
def scalar(node: Node, x: Operand) -> Depends:
  """The largest magnitude of the slopes of the scalar function that it is a part of."""
  if not node.is_float:
    msg = f"A result of type {node.dtype}{node.line} has jumps, so that no slope bounds it."
    raise CertifyError(msg)
  function = node.params["function"]
  within = x.range
  if within is None:
    found = slopes_on_line(function)
    ends = outward(Interval(np.asarray(found.lower), np.asarray(found.upper)), node.wide)
    return Depends(ScalarPart(*ends), (x.place,))
  ends = graph_cells(function).between(*within)
  lower, upper = (jnp.broadcast_to(end, x.shape) for end in ends)
  return Depends(ScalarPart(lower, upper), (x.place,))


def range_anywhere(node: Node, x: Operand) -> Range | None:
  """Between which values a scalar function has, wherever its input lies, if they are bounded."""
  found = values_on_line(node.params["function"])
  return None if found is None else Range(*outward(Interval(*map(np.asarray, found)), x.node.wide))


@record(*PARTS.split())
def no_function(node: Node, *operands: Operand) -> Depends:
  """As a part of a scalar function of one array's entries; of two arrays it has no bound."""
  moving = [x for x in operands if x.moves]
  if not node.is_float:
    msg = f"A result of type {node.dtype}{node.line} has jumps, so that no slope bounds it."
    raise CertifyError(msg)
  if len(moving) == 1:
    msg = f"The slopes of {node.name!r}{node.line} are not known."
    raise NotLipschitzError(msg)
  raise of_two_arrays(node)
