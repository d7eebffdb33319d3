"""A jaxpr with every call written out: the program that runs, and no derivative rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import primitives

from lipjax.jaxprs.versions import callee, consts, opened


class Variable:
  """A value that an equation computes or the caller passes; told apart by identity."""

  __slots__ = ("aval",)

  def __init__(self, aval: Any):
    self.aval = aval


class Constant:
  """A value that the program holds: a literal, or an array that it closes over."""

  __slots__ = ("aval", "value")

  def __init__(self, aval: Any, value: Any):
    self.aval = aval
    self.value = value


class Equation(NamedTuple):
  """One application of a primitive that is not a call.

  Attributes:
    primitive: JAX's object.
    inputs: operands.
    outputs: results, each of one equation only.
    params: JAX's parameters of the primitive.
    source_info: JAX's record of where it was written.
    calls: the calls that it was written out of, innermost first.
  """

  primitive: Any
  inputs: tuple[Variable | Constant, ...]
  outputs: tuple[Variable, ...]
  params: dict[str, Any]
  source_info: Any
  calls: tuple[Any, ...] = ()


class Program(NamedTuple):
  """A straight list of equations from `inputs` to `outputs`."""

  inputs: tuple[Variable, ...]
  equations: tuple[Equation, ...]
  outputs: tuple[Variable | Constant, ...]

  def run(
    self,
    operands: Sequence[Any],
    apply: Callable[[Equation, list[Any]], Sequence[Any]],
    constant: Callable[[Constant], Any] = lambda constant: constant.value,
  ) -> list[Any]:
    """What the program returns: `apply` gives the results of each equation.

    Args:
      operands: what stands for the inputs.
      apply: from an equation and its operands to its results.
      constant: what stands for a constant.
    """
    known = dict(zip(self.inputs, operands, strict=True))

    def read(atom: Variable | Constant) -> Any:
      return constant(atom) if isinstance(atom, Constant) else known[atom]

    for equation in self.equations:
      results = apply(equation, [read(atom) for atom in equation.inputs])
      known.update(zip(equation.outputs, results, strict=True))
    return [read(atom) for atom in self.outputs]


# JAX keeps some of these under one name in one version and under another in the next.
_NAMES = ("jit_p", "pjit_p", "closed_call_p", "call_p", "remat_p", "checkpoint_p")
_NAMES += ("custom_jvp_call_p", "custom_vjp_call_p")

#: The primitives that only call a function, told by identity: a name says nothing.
CALLS = frozenset(getattr(primitives, name) for name in _NAMES if hasattr(primitives, name))


def inline(
  closed_jaxpr: Any,
  calls: tuple[Any, ...] = (),
  constants: Sequence[Any] | None = None,
  kept: Callable[[Any], bool] = lambda call: False,
) -> Program:
  """Write out every call, nested ones too, of a closed jaxpr.

  Calls are jit, closed and core calls, remat, and functions with custom derivatives, of which
  the function itself is taken and never the rule, which may say anything. Loops, branches and
  maps are not calls: they stay equations.

  Args:
    closed_jaxpr: what `jax.make_jaxpr` returns, in any JAX from 0.10 on.
    calls: the equations whose body it is, innermost first.
    constants: of a jaxpr that is not closed.
    kept: calls that stay equations.

  Returns:
    The same program. A value that is only passed on has one `Variable` throughout.
  """
  jaxpr = opened(closed_jaxpr)
  inputs = tuple(Variable(var.aval) for var in jaxpr.invars)
  equations: list[Equation] = []
  given = consts(closed_jaxpr) if constants is None else constants
  outputs = _write(closed_jaxpr, given, inputs, equations, calls, kept)
  return Program(inputs, tuple(equations), outputs)


def _write(
  closed: Any,
  constants: Sequence[Any],
  arguments: tuple[Variable | Constant, ...],
  equations: list[Equation],
  calls: tuple[Any, ...],
  kept: Callable[[Any], bool],
) -> tuple[Variable | Constant, ...]:
  """Append the equations of a jaxpr applied to `arguments`; return what it returns."""
  jaxpr = opened(closed)
  known: dict[Any, Variable | Constant] = dict(zip(jaxpr.invars, arguments, strict=True))
  for var, value in zip(jaxpr.constvars, constants, strict=True):
    known[var] = Constant(var.aval, value)

  def read(atom: Any) -> Variable | Constant:
    return Constant(atom.aval, atom.val) if hasattr(atom, "val") else known[atom]

  for equation in jaxpr.eqns:
    inputs = tuple(read(atom) for atom in equation.invars)
    if equation.primitive in CALLS and not kept(equation):
      called = callee(equation.params)
      outputs = _write(called, consts(called), inputs, equations, (equation, *calls), kept)
    else:
      outputs = tuple(Variable(var.aval) for var in equation.outvars)
      what = equation.primitive, inputs, outputs, equation.params
      equations.append(Equation(*what, getattr(equation, "source_info", None), calls))
    known.update(zip(equation.outvars, outputs, strict=True))
  return tuple(read(atom) for atom in jaxpr.outvars)


def bind(equation: Equation, values: Sequence[Any]) -> list[Any]:
  """What an equation's primitive makes of values."""
  params = equation.primitive.get_bind_params(equation.params)
  results = equation.primitive.bind(*values, **params)
  return list(results) if equation.primitive.multiple_results else [results]
