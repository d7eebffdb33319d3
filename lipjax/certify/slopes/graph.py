r"""A traced scalar function as a graph in a normal form.

What does not depend on the input is computed, as the program computes it. What only passes a
number on is left out: conversions between floats, whose rounding is not counted, copies and
stop_gradient, whose *value* has slope 1. Equal subexpressions are one node, so that NaN tests
``u != u`` and squares ``u * u`` are seen; of a comparison and its mirror image one is kept.
The logistic function and softplus are recognized where they are written with exp.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import primitives

from lipjax.certify.errors import CertifyError
from lipjax.certify.inline import Constant, Equation, Program, Variable

_KNOWN = """add add_jaxvals sub mul div neg max min abs sign floor ceil round square integer_pow pow
exp exp2 expm1 log log1p logistic tanh sin cos tan sinh cosh erf erfc sqrt rsqrt cbrt atan asinh
select_n lt le gt ge eq ne and or not xor clamp convert_element_type copy stop_gradient name
reduce_precision broadcast_in_dim reshape squeeze expand_dims is_finite"""

#: Primitives, told by identity, to the names they have here.
NAMES = {
  getattr(primitives, name + "_p"): name
  for name in _KNOWN.split()
  if hasattr(primitives, name + "_p")
}
COMMUTATIVE = frozenset({"add", "mul", "max", "min", "eq", "ne", "and", "or", "xor"})
COMPARISONS = frozenset({"lt", "le", "eq", "ne"})
LOGIC = frozenset({"and", "or", "not", "xor"})
_PASSING = frozenset({"copy", "stop_gradient", "name", "reduce_precision"})
_RESHAPING = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims"})


class Node(NamedTuple):
  """A number or truth value that is computed from earlier nodes.

  Attributes:
    name: what computes it: a name in `NAMES`, "softplus", "input" or "constant"; "" for other
      primitives.
    inputs: places of the operands in the graph.
    parameter: the exponent of integer_pow, the method of round, the value of a constant.
    equation: where it came from.
  """

  name: str
  inputs: tuple[int, ...] = ()
  parameter: Any = None
  equation: Equation | None = None


class Graph(NamedTuple):
  """Nodes in the order of computation: the first is the input, the last the result."""

  nodes: tuple[Node, ...]


def build(program: Program) -> Graph:
  """The graph of a program with one input and one output, both scalar or alike in shape."""
  if len(program.inputs) != 1 or len(program.outputs) != 1:
    msg = "A scalar function has one input and one output."
    raise CertifyError(msg)
  builder = _Builder()
  known: dict[Variable, Any] = {program.inputs[0]: builder.node("input")}

  def read(atom: Variable | Constant) -> Any:
    return _concrete(atom.value) if isinstance(atom, Constant) else known[atom]

  for equation in program.equations:
    operands = [read(atom) for atom in equation.inputs]
    if not any(isinstance(operand, int) for operand in operands):
      with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*map(jax.numpy.asarray, operands), **equation.params)
      results = results if equation.primitive.multiple_results else [results]
      known.update(zip(equation.outputs, map(np.asarray, results), strict=True))
    else:
      known.update(zip(equation.outputs, builder.apply(equation, operands), strict=True))
  result = read(program.outputs[0])
  return builder.pruned(result if isinstance(result, int) else builder.constant(result))


def _concrete(value: Any) -> np.ndarray:
  if isinstance(value, Tracer):
    msg = (
      "The scalar function closes over a value that is being traced by jit, grad or vmap. Its "
      "slopes are found outside of JAX, so its constants must be concrete: call this outside."
    )
    raise CertifyError(msg)
  return np.asarray(value)


class _Builder:
  """Makes nodes, each once; node 0 is the input. Places of nodes are ints, constants arrays."""

  def __init__(self):
    self.nodes: list[Node] = []
    self.places: dict[Any, int] = {}

  def node(self, name: str, *inputs: int, parameter: Any = None, equation: Any = None) -> int:
    if name in COMMUTATIVE:
      inputs = tuple(sorted(inputs))
    # A primitive that is not known may do anything with its parameters.
    # True is equal to 1 and NaN to nothing, hence the type and the text.
    key = (name, inputs, type(parameter), str(parameter)) if name else len(self.nodes)
    if key not in self.places:
      self.places[key] = len(self.nodes)
      self.nodes.append(Node(name, inputs, parameter, equation))
    return self.places[key]

  def constant(self, value: Any) -> int:
    value = np.asarray(value)
    if value.size == 0 or not np.array_equal(value, np.full_like(value, value.flat[0]), True):
      msg = "A scalar function does the same to every entry: its constants hold one number each."
      raise CertifyError(msg)
    value = value.flat[0]
    return self.node("constant", parameter=bool(value) if value.dtype == bool else float(value))

  def apply(self, equation: Equation, operands: list[Any]) -> list[int]:
    """The results of an equation, some of whose operands depend on the input."""
    name = NAMES.get(equation.primitive, "")
    if equation.primitive is jax.lax.optimization_barrier_p:
      return operands
    if name in _PASSING or (name in _RESHAPING and _keeps_size(equation)):
      return operands[:1]
    places = [o if isinstance(o, int) else self.constant(o) for o in operands]
    if name == "convert_element_type":
      return [self._converted(equation, places[0])]
    if not name or name in _RESHAPING or _is_about_truths(name, equation):
      return [self.node("", *places, equation=equation) for _ in equation.outputs]
    return [self._normal(name, places, equation)]

  def _converted(self, equation: Equation, place: int) -> int:
    before, after = equation.inputs[0].aval.dtype, np.dtype(equation.params["new_dtype"])
    if jax.numpy.issubdtype(after, np.floating):
      if jax.numpy.issubdtype(before, np.floating):
        return place
      if np.dtype(bool) == before:
        zero, one = self.constant(0.0), self.constant(1.0)
        return self.node("select_n", place, zero, one, equation=equation)
    return self.node("", place, equation=equation)

  def _normal(self, name: str, places: list[int], equation: Equation) -> int:
    """One node, or some simpler ones."""

    def node(name, *inputs, parameter=None):
      return self.node(name, *inputs, parameter=parameter, equation=equation)

    match name:
      case "add_jaxvals":
        name = "add"
      case "gt":
        name, places = "lt", places[::-1]
      case "ge":
        name, places = "le", places[::-1]
      case "clamp":
        low, x, high = places[0], places[1], places[2]
        return node("min", node("max", x, low), high)
      case "square":
        return self._power(places[0], 2, node)
      case "integer_pow":
        return self._power(places[0], int(equation.params["y"]), node)
      case "round":
        return node(name, *places, parameter=int(equation.params["rounding_method"]))
      case "mul" if places[0] == places[1]:
        return self._power(places[0], 2, node)
      case "mul":
        return self._product(places[0], places[1], node)
      case "neg" if self.nodes[places[0]].name == "neg":
        return self.nodes[places[0]].inputs[0]
      case "div" if (exponent := self._exponent(places[1])) is not None:
        # u/(1 + exp(v)), whose divisor is unbounded, is u times the logistic function of -v.
        negative = self._normal("neg", [exponent], equation)
        return self._product(places[0], node("logistic", negative), node)
      case "log" if (exponent := self._exponent(places[0])) is not None:
        return node("softplus", exponent)
      case "log1p" if self.nodes[places[0]].name == "exp":
        return node("softplus", *self.nodes[places[0]].inputs)
      case "pow" if self._is_integer(places[1]):
        return self._power(places[0], int(self.nodes[places[1]].parameter), node)
      case "select_n" if len(places) > 3 or equation.inputs[0].aval.dtype != bool:
        return node("")
      case "select_n" if places[1] == places[2]:
        return places[1]
    return node(name, *places)

  def _power(self, place: int, exponent: int, node) -> int:
    """An integer power. Squares of sines have tighter slopes without the product in them."""
    base = self.nodes[place]
    if exponent == 2 and base.name in ("sin", "cos"):
      cosine = node("cos", node("mul", base.inputs[0], self.constant(2.0)))
      half = self.constant(0.5)
      return node("sub" if base.name == "sin" else "add", half, node("mul", cosine, half))
    return node("integer_pow", place, parameter=exponent)

  def _product(self, a: int, b: int, node) -> int:
    """A product. A factor that jumps between constants is brought inside of the choice.

    So ``x * (x > 0)`` becomes a choice of ``x * 0`` and ``x * 1``, which does not jump.
    """
    for x, factor in ((a, b), (b, a)):
      choice = self.nodes[factor]
      if choice.name == "select_n":
        condition, *cases = choice.inputs
        if all(self.nodes[case].name == "constant" for case in cases):
          return node("select_n", condition, *(node("mul", x, case) for case in cases))
    return node("mul", a, b)

  def _exponent(self, place: int) -> int | None:
    """Of 1 + exp(v) the place of v, of anything else None."""
    node = self.nodes[place]
    if node.name == "add":
      for one, other in (node.inputs, node.inputs[::-1]):
        if self.nodes[one][::2] == ("constant", 1.0) and self.nodes[other].name == "exp":
          return self.nodes[other].inputs[0]
    return None

  def _is_integer(self, place: int) -> bool:
    node = self.nodes[place]
    return node.name == "constant" and abs(node.parameter) < 1e3 and node.parameter % 1 == 0

  def pruned(self, result: int) -> Graph:
    """The nodes that the result depends on, the input first in any case."""
    needed = {0, result}
    for place in range(result, -1, -1):
      if place in needed:
        needed.update(self.nodes[place].inputs)
    places = {old: new for new, old in enumerate(sorted(needed))}
    kept = (self.nodes[old] for old in places)
    nodes = [node._replace(inputs=tuple(places[i] for i in node.inputs)) for node in kept]
    return Graph(tuple(nodes))


def _is_about_truths(name: str, equation: Equation) -> bool:
  """Whether truth values are compared or chosen, or whole numbers, which no rule is for."""
  operands = equation.inputs[1:] if name == "select_n" else equation.inputs
  is_float = [jax.numpy.issubdtype(atom.aval.dtype, np.floating) for atom in operands]
  return any(is_float) if name in LOGIC else not all(is_float)


def _keeps_size(equation: Equation) -> bool:
  # A constant, an array of which one entry counts, would not come here: it would be computed.
  return equation.inputs[0].aval.size == equation.outputs[0].aval.size
