"""Which programs are the same: told by what they compute, so that one compiled serves all."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from lipjax.jaxprs.inline import Constant, Program, Variable, inline
from lipjax.jaxprs.versions import consts, opened


class Keyed:
  """A program that equals every other one that makes the same of the same inputs.

  Two traces of one function are two objects to JAX, which would compile both. A program with a
  parameter that cannot be compared equals itself alone.
  """

  __slots__ = ("_hash", "_key", "program")

  def __init__(self, program: Program):
    self.program = program
    try:
      self._key = _of_program(program)
    except TypeError:
      self._key = object()
    self._hash = hash(self._key)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Keyed) and self._key == other._key

  def __hash__(self) -> int:
    return self._hash


def with_constants_as_inputs(program: Program) -> tuple[Program, list[Any]]:
  """The same with the arrays that it holds as its first inputs, and these arrays.

  Literals stay: a program with another one is another program. The calls that equations were
  written out of go, as they hold arrays too, which would live as long as the program.
  """
  moved: dict[int, tuple[Variable, Any]] = {}

  def read(atom: Variable | Constant) -> Variable | Constant:
    if not isinstance(atom, Constant) or not _is_array(atom.value):
      return atom
    return moved.setdefault(id(atom.value), (Variable(atom.aval), atom.value))[0]

  without_calls = lambda eqn: eqn._replace(inputs=tuple(map(read, eqn.inputs)), calls=())
  equations = tuple(map(without_calls, program.equations))
  outputs = tuple(map(read, program.outputs))
  first = tuple(variable for variable, _ in moved.values())
  return Program((*first, *program.inputs), equations, outputs), [x for _, x in moved.values()]


def _is_array(value: Any) -> bool:
  return isinstance(value, jax.Array) or np.ndim(value) > 0


def _of_program(program: Program) -> Hashable:
  """Values by the order in which they are computed, and all else by what it is."""
  numbers = {variable: i for i, variable in enumerate(program.inputs)}

  def of(atom: Variable | Constant) -> Hashable:
    return (atom.aval, _of_value(atom.value)) if isinstance(atom, Constant) else numbers[atom]

  lines = []
  for eqn in program.equations:
    lines.append((eqn.primitive, tuple(map(of, eqn.inputs)), _of_value(eqn.params)))
    for variable in eqn.outputs:
      numbers[variable] = len(numbers)
  avals = tuple(variable.aval for variable in program.inputs)
  return avals, tuple(lines), tuple(map(of, program.outputs))


def _of_value(value: Any) -> Hashable:
  """By type too, since True is 1 and 1 is 1.0, and by bytes, since 0.0 is -0.0."""
  if hasattr(opened(value), "eqns"):
    if len(opened(value).constvars) != len(consts(value)):
      msg = "A program whose constants are not known equals no other."
      raise TypeError(msg)
    return _of_program(inline(value))
  if isinstance(value, dict):
    return tuple((name, _of_value(value[name])) for name in sorted(value))
  if isinstance(value, tuple | list):
    return type(value), tuple(map(_of_value, value))
  if isinstance(value, float | complex | np.generic | np.ndarray | jax.Array):
    array = np.asarray(value)
    return type(value), array.dtype, array.shape, array.tobytes()
  hash(value)
  return type(value), value
