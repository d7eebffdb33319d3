"""Scalar functions of every entry: what an activation is made of.

Equations are put together to one function of the last node that all their operands are
functions of, so that ``x * sigmoid(x)`` is one activation and not a product.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Failure, Node, ScalarPart
from lipjax.certify.interpreter import is_scalar, rule_for, scalar
from lipjax.certify.jaxprs import source_line, traceback_of, written_at
from lipjax.certify.ranges import value_range
from lipjax.certify.slopes.line import slope_cells
from lipjax.certify.slopes.search import slope_interval

SCALAR_PRIMITIVES = [
  "abs",
  "and",
  "asinh",
  "atan",
  "atan2",
  "cbrt",
  "ceil",
  "clamp",
  "cos",
  "cosh",
  "eq",
  "erf",
  "erf_inv",
  "erfc",
  "exp",
  "exp2",
  "expm1",
  "floor",
  "ge",
  "gt",
  "integer_pow",
  "is_finite",
  "le",
  "log",
  "log1p",
  "logistic",
  "lt",
  "ne",
  "not",
  "nextafter",
  "or",
  "pow",
  "rem",
  "round",
  "rsqrt",
  "sign",
  "sin",
  "sinh",
  "sqrt",
  "square",
  "tan",
  "tanh",
  "xor",
]


@rule_for(*SCALAR_PRIMITIVES)
def scalar_function(eqn: Any, *operands: Any) -> Any:
  """The range of slopes of the scalar function that it is a part of."""
  return elementwise(eqn, operands)


def elementwise(eqn: Any, operands: Any) -> Any:
  """The equation as a function of the last node that all operands are functions of."""
  shared = shared_link(eqn, operands)
  aval = eqn.outvars[0].aval
  if shared is None:
    error = CertifyError(
      f"{eqn.primitive.name!r} of two arrays that depend on the input{source_line(eqn)} is no "
      "function of one array's entries, and its slope is not bounded: bound the function on a "
      "smaller domain, or write a rule with lipjax.register_rule for the part that has a bound."
    )
    return Node(aval, Failure(error))
  base, fn = shared
  cells = functools.cache(functools.partial(slope_cells, fn, dtype=base.aval.dtype))
  slopes = functools.cache(functools.partial(_slopes, fn, cells, base, aval))
  return Node(aval, ScalarPart(slopes, cells), (base,), link=shared)


def _slopes(fn: Any, cells: Any, base: Node, aval: Any) -> Any:
  if not jnp.issubdtype(aval.dtype, jnp.floating):
    msg = f"A result of type {aval.dtype} has jumps, so that no slope bounds it."
    raise CertifyError(msg)
  within = value_range(base)
  if within is not None:
    return tuple(jnp.broadcast_to(end, base.shape) for end in cells().between(*within))
  with jax.ensure_compile_time_eval():
    found = slope_interval(fn, dtype=base.aval.dtype)
  return found.lower, found.upper


def shared_link(eqn: Any, operands: Any) -> Any:
  """The last node that all operands are functions of, and the equation as its function."""
  nodes = [x for x in operands if isinstance(x, Node)]
  if any(node.shape != eqn.outvars[0].aval.shape for node in nodes):
    return None
  chains = [{id(base): (base, fn) for base, fn in node.ancestry()} for node in nodes]
  shared = next((key for key in chains[0] if all(key in chain for chain in chains)), None)
  if shared is None:
    return None
  functions = iter([chain[shared][1] for chain in chains])
  parts = [next(functions) if isinstance(x, Node) else _constant(x) for x in operands]
  bind = _bound(eqn)
  return chains[0][shared][0], lambda x: bind([part(x) for part in parts])


def bind_with(eqn: Any, operands: Any) -> Any:
  """The equation as a function of its one node's entries."""
  parts = [(lambda x: x) if isinstance(x, Node) else _constant(x) for x in operands]
  bind = _bound(eqn)
  return lambda x: bind([part(x) for part in parts])


def _constant(value: Any) -> Any:
  """A constant operand as a function of the entries: a scalar where it is one."""
  if is_scalar(value):
    value = np.asarray(scalar(value))
  return lambda x: value


def _bound(eqn: Any) -> Any:
  """The primitive as a function of operands that broadcast, written where the equation was."""
  traceback = traceback_of(eqn)

  def bind(operands: Any) -> Any:
    shape = functools.reduce(jnp.broadcast_shapes, map(jnp.shape, operands))
    operands = [jnp.broadcast_to(x, shape) for x in operands]
    with written_at(traceback):
      return eqn.primitive.bind(*operands, **eqn.params)

  return bind
