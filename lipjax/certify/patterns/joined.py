"""Functions of several arrays that are 1-Lipschitz in all of them together.

The arrays are put into one, so that the norm of the map to that one counts: two halves of one
array, or two projections that see different parts of it, have a smaller one than the root of the
sum of their squares.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import primitives

from lipjax.certify.graph import Graph, Node, Params


def joined(graph: Graph, name: str, places: Sequence[int], node: Node) -> list[Node]:
  """The node as a function of one array, whose first axis says which of the arrays it is."""
  rows, shape = [], (1, *node.shape)
  for k in places:
    params = Params(new_sizes=shape, dimensions=None, sharding=None)
    what = "reshape", (k,), params, shape, graph.nodes[k].dtype, primitives.reshape_p
    rows.append(Node(*what, line=node.line))
  whole = (len(rows), *node.shape)
  what = "concatenate", tuple(~k for k in range(len(rows))), Params(dimension=0), whole
  stack = Node(*what, node.dtype, primitives.concatenate_p, line=node.line)
  function = Node(
    "of_rows", (~len(rows),), Params(how=name), node.shape, node.dtype, line=node.line
  )
  return [*rows, stack, function]


def log_add_exp(graph: Graph, i: int) -> list[Node] | None:
  """``max(a, b) + log1p(exp(-|a - b|))``."""
  node = graph.nodes[i]
  if node.name != "add" or not all(graph.nodes[k].moves for k in node.inputs):
    return None
  a, b = node.inputs
  for top, rest in ((a, b), (b, a)):
    inner = _path(graph, rest, "log1p", "exp", "neg", "abs", "sub")
    if inner is None or graph.nodes[top].name != "max":
      continue
    pair = graph.nodes[inner].inputs
    if sorted(graph.nodes[top].inputs) == sorted(pair) and all(graph.nodes[k].moves for k in pair):
      return joined(graph, "log_add_exp", graph.nodes[top].inputs, node)
  return None


def _path(graph: Graph, i: int, *names: str) -> int | None:
  """The last of nodes with these names, each the first operand of the one before."""
  for k, name in enumerate(names):
    if graph.nodes[i].name != name:
      return None
    i = graph.nodes[i].inputs[0] if k < len(names) - 1 else i
  return i


def hypotenuse(graph: Graph, i: int) -> list[Node] | None:
  """``m sqrt(1 + (l / m)²)`` for the larger and the lesser of two magnitudes; m where that is 0."""
  node = graph.nodes[i]
  if node.name != "select_n" or len(node.inputs) != 3:
    return None
  zero, product, most = node.inputs
  square = _path(graph, _second(graph, product), "sqrt", "add")
  ratio = _path(graph, _second(graph, square), "square", "div")
  if not _is_zero_test(graph, zero, most) or ratio is None or graph.nodes[most].name != "max":
    return None
  least, guarded = graph.nodes[ratio].inputs
  is_it = (
    graph.nodes[product].name == "mul"
    and graph.nodes[product].inputs[0] == most
    and graph.scalar(graph.nodes[square or 0].inputs[0]) == 1
    and graph.nodes[least].name == "min"
    and graph.nodes[least].inputs == graph.nodes[most].inputs
    and all(graph.nodes[k].name == "abs" for k in graph.nodes[most].inputs)
    and graph.nodes[guarded].name == "select_n"
    and graph.nodes[guarded].inputs[1] == most
    and _is_zero_test(graph, graph.nodes[guarded].inputs[0], most)
  )
  if not is_it:
    return None
  inputs = [graph.nodes[k].inputs[0] for k in graph.nodes[most].inputs]
  return joined(graph, "hypotenuse", inputs, node)


def _is_zero_test(graph: Graph, i: int, x: int) -> bool:
  """Whether a node is ``x == 0``."""
  node = graph.nodes[i]
  return node.name == "eq" and node.inputs[0] == x and graph.scalar(node.inputs[1]) == 0


def _second(graph: Graph, i: int | None) -> int:
  """The second operand; of what has none, an input."""
  inputs = graph.nodes[i].inputs if i is not None else ()
  return inputs[1] if len(inputs) > 1 else 0
