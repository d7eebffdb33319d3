r"""The larger and the lesser of two arrays, in two ways.

Both are 1-Lipschitz in the two arrays together, which is what norms see. And they are
:math:`(a + b \pm |a - b|)/2`, where the magnitude is a function of single entries, the same one for
both: an ellipsoid sees that sorting two numbers, as MaxMin does, is 1-Lipschitz too. What is too
large for one is left alone.
"""

from __future__ import annotations

from jax.extend.core import primitives

from lipjax.certify.bounds.effort import VALUES_UP_TO
from lipjax.certify.graph import Graph, Node, Params
from lipjax.certify.patterns.joined import joined
from lipjax.certify.scalar.graph import Graph as ScalarGraph
from lipjax.certify.scalar.graph import Node as ScalarNode

_MAGNITUDE = ScalarGraph((ScalarNode("input"), ScalarNode("abs", (0,))))


def extremes(graph: Graph, i: int) -> list[Node] | None:
  """The larger, or the lesser, of two arrays, and what is cut off at limits that move."""
  node = graph.nodes[i]
  is_it = node.name in ("max", "min", "clamp") and all(graph.nodes[k].moves for k in node.inputs)
  if not is_it or any(graph.nodes[k].shape != node.shape for k in node.inputs):
    return None
  nodes = joined(graph, node.name, node.inputs, node)
  if node.name == "clamp" or node.size > VALUES_UP_TO:
    return nodes
  by_norms = ~(len(nodes) - 1)
  a, b = node.inputs
  by_difference = _by_difference(nodes, a, b, node, node.name)
  return [*nodes, either(node, by_norms, by_difference)]


def extremes_of_pairs(graph: Graph, i: int) -> list[Node] | None:
  """The same over an axis of two entries, and both of them in order."""
  node = graph.nodes[i]
  if node.name not in ("reduce_max", "reduce_min", "sort") or len(node.inputs) != 1:
    return None
  x = graph.nodes[node.inputs[0]]
  axes = (node.params["dimension"],) if node.name == "sort" else node.params["axes"]
  if len(axes) != 1 or x.shape[axes[0]] != 2 or x.size > 2 * VALUES_UP_TO:
    return None
  (axis,) = axes
  nodes = [node]
  shape = tuple(n for k, n in enumerate(x.shape) if k != axis)
  one = node._replace(shape=shape)
  a, b = (_half(nodes, node.inputs[0], x, axis, k, one) for k in (0, 1))
  if node.name != "sort":
    by_difference = _by_difference(nodes, a, b, one, node.name.removeprefix("reduce_"))
    return [*nodes, either(node, ~0, by_difference)]
  row = (*shape[:axis], 1, *shape[axis:])
  rows = []
  for how in ("min", "max"):
    entry = _by_difference(nodes, a, b, one, how)
    rows.append(_reshaped(nodes, entry, one, row))
  what = "concatenate", tuple(rows), Params(dimension=axis), x.shape, x.dtype
  nodes.append(Node(*what, primitives.concatenate_p, line=node.line))
  return [*nodes, either(node, ~0, ~(len(nodes) - 1))]


def _by_difference(nodes: list[Node], a: int, b: int, node: Node, how: str) -> int:
  """Appends what gives one of the two, and says where it is."""
  like = node.shape, node.dtype
  start, params = len(nodes), Params(factors=(0.5, 0.5 if how == "max" else -0.5))
  nodes += [
    Node("add", (a, b), Params(), *like, primitives.add_p, line=node.line),
    Node("sub", (a, b), Params(), *like, primitives.sub_p, line=node.line),
    Node("scalar", (~(start + 1),), Params(function=_MAGNITUDE), *like, line=node.line),
    Node("combination", (~start, ~(start + 2)), params, *like, line=node.line),
  ]
  return ~(start + 3)


def _half(nodes: list[Node], place: int, x: Node, axis: int, k: int, one: Node) -> int:
  start, limit = [0] * len(x.shape), list(x.shape)
  start[axis], limit[axis] = k, k + 1
  params = Params(start_indices=tuple(start), limit_indices=tuple(limit), strides=None)
  shape = tuple(1 if d == axis else n for d, n in enumerate(x.shape))
  nodes.append(Node("slice", (place,), params, shape, x.dtype, primitives.slice_p, line=one.line))
  return _reshaped(nodes, ~(len(nodes) - 1), one, one.shape)


def _reshaped(nodes: list[Node], place: int, one: Node, shape: tuple[int, ...]) -> int:
  params = Params(new_sizes=shape, dimensions=None, sharding=None)
  what = "reshape", (place,), params, shape, one.dtype, primitives.reshape_p
  nodes.append(Node(*what, line=one.line))
  return ~(len(nodes) - 1)


def either(node: Node, by_norms: int, by_difference: int) -> Node:
  """A node in the one way for norms, in the other one for ellipsoids."""
  operands = by_norms, by_difference
  return Node("either", operands, Params(), node.shape, node.dtype, line=node.line)
