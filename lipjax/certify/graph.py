r"""A traced function as a graph: plain values, parents first, that compare by what they hold.

Nothing in it is computed lazily and nothing remembers: what is found out about a node is in its
`lipjax.certify.facts`. Equal graphs are one key for compiled programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from lipjax.operators.products import compute_dtype

#: How precisely ranges and middles are computed.
_EXACT = {"precision": lax.Precision.HIGHEST, "accuracy": None}


class Static:
  """An array that is known while a function is read; equal to others of the same entries."""

  __slots__ = ("_key", "value")

  def __init__(self, value: Any):
    self.value = np.asarray(value)
    self._key = (self.value.shape, str(self.value.dtype), self.value.tobytes())

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Static) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)


class Params(dict[str, Any]):
  """Parameters of a primitive, which nobody changes: they compare and hash by what they hold."""

  def __hash__(self) -> int:  # type: ignore[override]
    return hash(tuple(sorted(self.items(), key=lambda item: item[0])))


class Node(NamedTuple):
  """One array: an input, a constant, or what a primitive or a pattern makes of earlier ones.

  Attributes:
    name: JAX's primitive's, a pattern's, "input", "array" or "static"; empty for the
      primitives of others.
    inputs: places of the operands in the graph.
    params: of the primitive or the pattern.
    shape: of the array.
    dtype: of the array.
    primitive: what computes it; None for patterns, inputs and constants.
    output: which result of the primitive it is.
    moves: whether it depends on an input; else it is a constant.
    line: where it was written, as `source_line` says it.
  """

  name: str
  inputs: tuple[int, ...] = ()
  params: Params = Params()
  shape: tuple[int, ...] = ()
  dtype: Any = np.dtype(np.float32)
  primitive: Any = None
  output: int = 0
  moves: bool = True
  line: str = ""

  @property
  def size(self) -> int:
    """How many entries."""
    return math.prod(self.shape)

  @property
  def wide(self) -> np.dtype:
    """The dtype that its bounds are computed in."""
    return compute_dtype(self.dtype)

  @property
  def is_float(self) -> bool:
    """Whether it holds floating-point numbers."""
    return bool(jnp.issubdtype(self.dtype, jnp.floating))

  def bind(self, *values: Any) -> Any:
    """The primitive on other values, in full precision whatever was asked for."""
    if self.name.startswith("scatter"):  # whose function is for one dtype
      return self.scattered(getattr(lax, self.name.replace("-", "_")), *values)
    params: dict[str, Any] = {key: x for key, x in self.params.items() if key}
    if self.name:
      params |= {name: how for name, how in _EXACT.items() if name in params}
      if params.get("preferred_element_type") is not None:
        params["preferred_element_type"] = compute_dtype(params["preferred_element_type"])
    results = self.primitive.bind(*values, **self.primitive.get_bind_params(params))
    return results[self.output] if self.primitive.multiple_results else results

  def scattered(self, function: Callable[..., Any], x: Any, at: Any, updates: Any) -> Any:
    """A scattering function at this node's places, of arrays of any dtype."""
    x, updates = (jnp.asarray(y, jnp.result_type(x, updates)) for y in (x, updates))
    return function(x, at, updates, self.params["dimension_numbers"], mode=self.params["mode"])


class Graph(NamedTuple):
  """Nodes, parents first, and which of them are the results."""

  nodes: tuple[Node, ...]
  outputs: tuple[int, ...]

  def static(self, i: int) -> np.ndarray | None:
    """The value of a node that is known while the graph is read."""
    node = self.nodes[i]
    return node.params["value"].value if node.name == "static" else None

  def constant(self, i: int, arrays: Sequence[Any], values: Mapping[int, Any]) -> Any:
    """The value of a node that does not move, from those of its operands."""
    node = self.nodes[i]
    match node.name:
      case "array":
        return arrays[node.params["index"]]
      case "static":
        return node.params["value"].value
    return node.bind(*(jnp.asarray(values[k]) for k in node.inputs))

  def scalar(self, i: int) -> Any:
    """The one value of all entries of a constant, if it has one that is known; else None."""
    value = self.static(i)
    if value is None or value.size == 0 or not np.all(value == value.flat[0]):
      return None
    return value.flat[0]


def constant_value(graph: Graph, arrays: Sequence[Any], i: int) -> Any:
  """What a node that does not move is, or a tracer if that is not known."""
  values = {k: constant_value(graph, arrays, k) for k in graph.nodes[i].inputs}
  traced = next((x for x in values.values() if isinstance(x, Tracer)), None)
  if traced is not None:
    return traced
  with jax.ensure_compile_time_eval():
    return graph.constant(i, arrays, values)


def pruned(nodes: list[Node], outputs: Iterable[int]) -> Graph:
  """The nodes that the outputs depend on, in the same order."""
  outputs = tuple(outputs)
  needed = set(outputs)
  for i in range(len(nodes) - 1, -1, -1):
    if i in needed:
      needed.update(nodes[i].inputs)
  places = {old: new for new, old in enumerate(sorted(needed))}
  kept = tuple(
    nodes[old]._replace(inputs=tuple(places[i] for i in nodes[old].inputs)) for old in places
  )
  return Graph(kept, tuple(places[i] for i in outputs))


#: Of a node in a graph what it is to be rewritten as: nodes in order, whose inputs are places in
#: the graph, or ~k for the k-th of these nodes; or an earlier node's place that it is the same as;
#: None to leave it.
Rewrite = Callable[[Graph, int], "list[Node] | int | None"]


def rewritten(graph: Graph, rules: Iterable[Rewrite]) -> Graph:
  """Every node replaced by what the first rule says that knows it, looking at the graph as it was.

  What only the replaced nodes read is left out.
  """
  rules = tuple(rules)
  nodes: list[Node] = []
  places: list[int] = []
  for i, node in enumerate(graph.nodes):
    results = (rule(graph, i) for rule in rules) if node.moves else ()
    found = next((result for result in results if result is not None), None)
    if isinstance(found, int):
      places.append(places[found])
      continue
    start = len(nodes)
    for new in found or [node]:
      inputs = tuple(places[k] if k >= 0 else start + ~k for k in new.inputs)
      nodes.append(new._replace(inputs=inputs, line=new.line or node.line))
    places.append(len(nodes) - 1)
  return pruned(nodes, [places[i] for i in graph.outputs])


def without_copies(graph: Graph) -> Graph:
  """Nodes that are the same function of the same nodes as one."""
  nodes: list[Node] = []
  found: dict[Node, int] = {}
  places: list[int] = []
  for node in graph.nodes:
    new = node._replace(inputs=tuple(places[k] for k in node.inputs))
    try:
      place = found.setdefault(new._replace(line=""), len(nodes))
    except TypeError:  # parameters of others that do not compare
      place = len(nodes)
    if place == len(nodes):
      nodes.append(new)
    places.append(place)
  return Graph(tuple(nodes), tuple(places[i] for i in graph.outputs))
