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


def extremes(graph: Graph, i: int) -> list[Node] | None:
  """The larger, or the lesser, of two arrays, and what is cut off at limits that move."""
  node = graph.nodes[i]
  is_it = node.name in ("max", "min", "clamp") and all(graph.nodes[k].moves for k in node.inputs)
  alike = all(graph.nodes[k].shape == node.shape for k in node.inputs)
  return joined(graph, node.name, node.inputs, node) if is_it and alike else None
