r"""A scalar function as a graph in a normal form.

It is read off nodes of a larger graph, from one array to another one whose every entry is a
function of the same entry there. What only passes a
number on is left out: conversions between floats, whose rounding is not counted, copies and
stop_gradient, whose *value* has slope 1. Equal subexpressions are one node, so that NaN tests
``u != u`` and squares ``u * u`` are seen; of a comparison and its mirror image one is kept.
The logistic function and softplus are recognized where they are written with exp.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Graph as ArrayGraph
from lipjax.certify.graph import Node as ArrayNode
from lipjax.certify.graph import constant_value

_KNOWN = """add add_any sub mul div neg max min abs sign floor ceil round square integer_pow pow
exp exp2 expm1 log log1p logistic tanh sin cos tan sinh cosh erf erfc sqrt rsqrt cbrt atan asinh
asin acos atanh acosh erf_inv select_n lt le gt ge eq ne and or not xor clamp convert_element_type
broadcast_in_dim reshape squeeze is_finite"""

#: Primitives that it knows.
NAMES = frozenset(_KNOWN.split())
COMMUTATIVE = frozenset({"add", "mul", "max", "min", "eq", "ne", "and", "or", "xor"})
COMPARISONS = frozenset({"lt", "le", "eq", "ne"})
LOGIC = frozenset({"and", "or", "not", "xor"})
_RESHAPING = frozenset({"broadcast_in_dim", "reshape", "squeeze"})


@dataclasses.dataclass(frozen=True)
class Node:
  """A number or truth value that is computed from earlier nodes; equal wherever it was written.

  Attributes:
    name: what computes it: a name in `NAMES`, "softplus", "input", "constant", "truth" if it is
      one, "between" for a constant that differs from entry to entry, or "unknown".
    inputs: places of the operands in the graph.
    parameter: the exponent of integer_pow, the method of round, the value of a constant, the
      least and the largest of one that differs, the name of a primitive that is not known.
    line: where it was written.
  """

  name: str
  inputs: tuple[int, ...] = ()
  parameter: Any = None
  line: str = dataclasses.field(default="", compare=False)


class Graph(NamedTuple):
  """Nodes in the order of computation: the first is the input, the last the result."""

  nodes: tuple[Node, ...]


def build(graph: ArrayGraph, arrays: list[Any], base: int, i: int) -> Graph:
  """The function of the entries of node `base` that those of node `i` are.

  Raises:
    CertifyError: something between the two is no function of single entries.
  """
  nodes, needed, left = graph.nodes, {base, i}, [i]
  while left:
    k = left.pop()
    new = set(nodes[k].inputs) - needed if k != base and nodes[k].moves else set()
    needed |= new
    left.extend(new)
  builder = _Builder()
  places = {base: builder.node("input")}
  for k in sorted(needed - {base}):
    node = nodes[k]
    if node.name == "input" or (node.moves and node.shape != nodes[base].shape):
      msg = f"{node.name!r} is no function of single numbers{node.line}."
      raise CertifyError(msg)
    if node.moves:
      operands = [places[j] for j in node.inputs]
      places[k] = builder.apply(node, operands, [nodes[j] for j in node.inputs])
    else:
      places[k] = builder.constant(constant_value(graph, arrays, k))
  return builder.pruned(places[i])


def constant_of(value: Any) -> Node:
  """One number, or truth value."""
  value = np.asarray(value)
  if value.dtype == bool:
    return Node("truth", parameter=bool(value))
  return Node("constant", parameter=float(value))


class _Builder:
  """Makes nodes, each once; node 0 is the input. Places of nodes are ints, constants arrays."""

  def __init__(self):
    self.nodes: list[Node] = []
    self.places: dict[Any, int] = {}

  def node(self, name: str, *inputs: int, parameter: Any = None, line: str = "") -> int:
    if name in COMMUTATIVE:
      inputs = tuple(sorted(inputs))
    # NaN is equal to nothing, hence the text.
    key = (name, inputs, str(parameter)) if name != "unknown" else len(self.nodes)
    if key not in self.places:
      self.places[key] = len(self.nodes)
      self.nodes.append(Node(name, inputs, parameter, line))
    return self.places[key]

  def constant(self, value: Any) -> int:
    if isinstance(value, Tracer):
      return self.node("between", parameter=(-np.inf, np.inf))
    value = np.asarray(value)
    if value.size and np.array_equal(value, np.full_like(value, value.flat[0]), equal_nan=True):
      constant = constant_of(value.flat[0])
      return self.node(constant.name, parameter=constant.parameter)
    if value.size and jnp.issubdtype(value.dtype, jnp.floating):
      value = value.astype(np.float64)
      ends = (float(np.min(value)), float(np.max(value)))
      return self.node(
        "between", parameter=ends if np.all(np.isfinite(ends)) else (-np.inf, np.inf)
      )
    # Choices that differ from entry to entry.
    msg = "A scalar function does the same to every entry: its choices are by one number each."
    raise CertifyError(msg)

  def apply(self, node: ArrayNode, places: list[int], operands: list[ArrayNode]) -> int:
    """The place of a node, some of whose operands depend on the input."""
    name = node.name
    if name in _RESHAPING:
      return places[0]
    if name == "convert_element_type":
      return self._converted(node, places[0], operands[0].dtype)
    if name not in NAMES or _is_about_truths(name, operands):
      return self._unknown(node, places)
    return self._normal(name, places, node, operands)

  def _converted(self, node: ArrayNode, place: int, before: Any) -> int:
    if node.is_float:
      if jnp.issubdtype(before, jnp.floating):
        return place
      if np.dtype(bool) == before:
        zero, one = self.constant(0.0), self.constant(1.0)
        return self.node("select_n", place, zero, one, line=node.line)
    return self._unknown(node, [place])

  def _unknown(self, node: ArrayNode, places: list[int]) -> int:
    name = node.name or str(node.primitive)
    return self.node("unknown", *places, parameter=name, line=node.line)

  def _normal(
    self, name: str, places: list[int], source: ArrayNode, operands: list[ArrayNode]
  ) -> int:
    """One node, or some simpler ones."""

    def node(name, *inputs, parameter=None):
      return self.node(name, *inputs, parameter=parameter, line=source.line)

    match name:
      case "add_any":
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
        return self._power(places[0], int(source.params["y"]), node)
      case "round":
        return node(name, *places, parameter=int(source.params["rounding_method"]))
      case "mul" if places[0] == places[1]:
        return self._power(places[0], 2, node)
      case "mul":
        return self._product(places[0], places[1], node)
      case "neg" if self.nodes[places[0]].name == "neg":
        return self.nodes[places[0]].inputs[0]
      case "div" if (exponent := self._exponent(places[1])) is not None:
        # u/(1 + exp(v)), whose divisor is unbounded, is u times the logistic function of -v.
        negative = self._normal("neg", [exponent], source, operands)
        return self._product(places[0], node("logistic", negative), node)
      case "log" if (exponent := self._exponent(places[0])) is not None:
        return node("softplus", exponent)
      case "log1p" if self.nodes[places[0]].name == "exp":
        return node("softplus", *self.nodes[places[0]].inputs)
      case "pow" if self._is_integer(places[1]):
        return self._power(places[0], int(self.nodes[places[1]].parameter), node)
      case "add" if (inner := self._softplus(*places)) is not None:
        return node("softplus", inner)
      case "sub" if self._is_constant(places[1], 0):
        return places[0]
      case "sub" if self.nodes[places[1]] == Node("softplus", (places[0],)):
        # v - log(1 + exp(v)) is minus the same of -v.
        return node("neg", node("softplus", self._normal("neg", places[:1], source, operands)))
      case "exp" if (inner := self._minus_softplus(places[0])) is not None:
        return node("logistic", self._normal("neg", [inner], source, operands))
      case "div" if (inner := self._ratio("sinh", places[0], "cosh", places[1])) is not None:
        return node("tanh", inner)
      case "select_n" if len(places) > 3 or operands[0].dtype != bool:
        return self._unknown(source, places)
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
      if choice.name == "div" and self._is_constant(choice.inputs[0], 1):
        inner = self._ratio("sinh", x, "cosh", choice.inputs[1])
        if inner is not None:
          return node("tanh", inner)
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
        if self._is_constant(one, 1) and self.nodes[other].name == "exp":
          return self.nodes[other].inputs[0]
    return None

  def _ratio(self, top: str, a: int, bottom: str, b: int) -> int | None:
    """Of two functions of one number, by their names, its place."""
    one, other = self.nodes[a], self.nodes[b]
    is_it = (one.name, other.name) == (top, bottom) and one.inputs == other.inputs
    return one.inputs[0] if is_it else None

  def _softplus(self, a: int, b: int) -> int | None:
    """Of max(v, 0) + log(1 + exp(-|v|)) the place of v."""
    for x, y in ((a, b), (b, a)):
      top, rest = self.nodes[x], self.nodes[y]
      if top.name != "max" or rest.name != "softplus" or self.nodes[rest.inputs[0]].name != "neg":
        continue
      inner = self.nodes[self.nodes[rest.inputs[0]].inputs[0]]
      zero = [k for k in top.inputs if self._is_constant(k, 0)]
      others = [k for k in top.inputs if k not in zero]
      if inner.name == "abs" and zero and others == list(inner.inputs):
        return others[0]
    return None

  def _minus_softplus(self, place: int) -> int | None:
    """Of -log(1 + exp(v)) the place of v."""
    node = self.nodes[place]
    inner = self.nodes[node.inputs[0]] if node.name == "neg" else node
    return inner.inputs[0] if node.name == "neg" and inner.name == "softplus" else None

  def _is_constant(self, place: int, value: float) -> bool:
    return self.nodes[place] == Node("constant", parameter=float(value))

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
    inputs = lambda node: tuple(places[i] for i in node.inputs)
    kept = (self.nodes[old] for old in places)
    return Graph(tuple(dataclasses.replace(node, inputs=inputs(node)) for node in kept))


def _is_about_truths(name: str, operands: list[ArrayNode]) -> bool:
  """Whether truth values are compared or chosen, or whole numbers, which no rule is for."""
  operands = operands[1:] if name == "select_n" else operands
  is_float = [x.is_float for x in operands]
  return any(is_float) if name in LOGIC else not all(is_float)
