"""Layer norm, RMS norm, group norm, and norms of rows, however they are written."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.extend.core import primitives

from lipjax.certify.graph import Graph, Node, Params, Static
from lipjax.certify.index_map import MOVES, moved, only_moves, source_of
from lipjax.certify.patterns.moments import (
  CENTERED,
  Statistic,
  X,
  is_mean_square,
  is_variance,
  statistic,
)


class Rows(NamedTuple):
  r"""Of x by rows, of which c is a row, less its mean if so: what it is divided by.

  Attributes:
    rows: the entries of x, flat, in each row.
    scale: a.
    epsilon: :math:`\varepsilon`.
    is_centered: whether the row's mean is subtracted.
    how: "root" for :math:`\sqrt{a\,\mathrm{mean}(c^2)+\varepsilon}`; of its value s with
      :math:`\varepsilon = 0`, "plus" for :math:`s + \delta` and "max" for
      :math:`\max(s, \delta)`.
    delta: :math:`\delta`.
  """

  rows: Static
  scale: float
  epsilon: float
  is_centered: bool
  how: str = "root"
  delta: float = 0.0

  @property
  def length(self) -> int:
    """Entries in a row."""
    return self.rows.value.shape[1]


class _Root(NamedTuple):
  """A root in a graph, from what is multiplied or divided by.

  Attributes:
    place: of the root.
    places: which of its entries stands where.
    gains: constants that it is multiplied by, and the moves after each.
    how: as in `Rows`.
    delta: as in `Rows`.
  """

  place: int
  places: np.ndarray
  gains: list[tuple[int, list[int]]]
  how: str
  delta: float


def normalization(graph: Graph, i: int) -> list[Node] | None:
  """``c * rsqrt(…)`` or ``c / sqrt(…)``, times constants; c is x, or x less its mean."""
  node = graph.nodes[i]
  if node.name not in ("mul", "div") or not all(graph.nodes[k].moves for k in node.inputs):
    return None
  a, b = node.inputs
  for factor, inverse in [(a, b)] if node.name == "div" else [(a, b), (b, a)]:
    root = _root(graph, inverse, "sqrt" if node.name == "div" else "rsqrt")
    if root is None or (node.name == "div" and root.gains):
      continue
    for x in _candidates(graph, factor):
      what = _match(graph, factor, root, x)
      if what is not None:
        shape, dtype = node.shape, graph.nodes[factor].dtype
        normal = Node("normalized", (x,), Params(what=what), shape, dtype, line=node.line)
        return [normal, *_scaled(graph, root.gains, node)]
  return None


def row_norms(graph: Graph, i: int) -> list[Node] | None:
  """``sqrt(sum(c²) + ε)``, the norm of each row."""
  node = graph.nodes[i]
  if node.name != "sqrt":
    return None
  for x in _under(graph, node.inputs[0]):
    inner = statistic(graph, node.inputs[0], x)
    what = _rows(inner, None)
    if inner is not None and what is not None and inner.rows is not None:
      numbers = {int(row[0]): k for k, row in enumerate(np.sort(what.rows.value, axis=1))}
      which = np.vectorize(numbers.__getitem__, otypes=[int])(inner.rows[inner.places])
      params = Params(what=what, which=Static(which))
      return [Node("row_norms", (x,), params, node.shape, node.dtype, line=node.line)]
  return None


def _root(graph: Graph, i: int, name: str) -> _Root | None:
  """What a node is the root of, through moves, and products with constants."""
  path, gains, moves = [], [], []
  how, delta = "root", 0.0
  while True:
    node = graph.nodes[i]
    moving = [k for k in node.inputs if graph.nodes[k].moves]
    if only_moves(graph, i):
      path.append(i)
      moves.append(i)
    elif node.name == "mul" and len(moving) == 1 and how == "root":
      (constant,) = (k for k in node.inputs if k not in moving)
      gains.append((constant, moves[::-1]))
    elif node.name in ("add", "max") and name == "sqrt" and len(moving) == 1 and how == "root":
      (constant,) = (k for k in node.inputs if k not in moving)
      number = graph.scalar(constant)
      if number is None or not number >= 0:
        return None
      how, delta = "plus" if node.name == "add" else "max", float(number)
    else:
      break
    i = moving[0]
  if graph.nodes[i].name != name:
    return None
  places = np.arange(graph.nodes[i].size).reshape(graph.nodes[i].shape)
  for k in reversed(path):
    places = moved(graph, k, places)
  # What a gather fills in comes from elsewhere.
  return None if np.any(places < 0) else _Root(i, places, gains, how, delta)


def _candidates(graph: Graph, factor: int) -> list[int]:
  """What may be normalized: the factor, or what a mean is subtracted from; also unmoved."""
  node = graph.nodes[factor]
  first = node.inputs[0] if node.name == "sub" else factor
  found = [first, factor, source_of(graph, factor).source, source_of(graph, first).source]
  return [k for k in dict.fromkeys(found) if graph.nodes[k].moves]


def _under(graph: Graph, i: int) -> list[int]:
  """What a sum of squares may be of."""
  found, left = [], [i]
  while left and len(found) < 8:
    k = left.pop(0)
    node = graph.nodes[k]
    if not node.moves:
      continue
    if node.name in ("square", "integer_pow", "mul", "sub"):
      found += _candidates(graph, node.inputs[0])
    if node.name in (*MOVES, "add", "max", "div", "mul", "reduce_sum", "sub"):
      left.extend(node.inputs)
  return list(dict.fromkeys(found))


def _match(graph: Graph, factor: int, root: _Root, x: int) -> Rows | None:
  """By what `x` is normalized in ``factor`` times or over the root."""
  top, below = statistic(graph, factor, x), statistic(graph, graph.nodes[root.place].inputs[0], x)
  if top is None or below is None or below.places is None or top.places is None:
    return None
  if top.polynomial not in (X, CENTERED) or root.places.shape != graph.nodes[factor].shape:
    return None
  below = below._replace(places=below.places.ravel()[root.places])
  what = _rows(below, top.polynomial == CENTERED)
  if what is None or below.rows is None:
    return None
  if top.rows is not None and not np.array_equal(top.rows, below.rows):
    return None
  is_in_place = np.array_equal(top.places.ravel(), np.arange(below.rows.size))
  if not is_in_place or not np.array_equal(below.rows[below.places], below.rows[top.places]):
    return None
  if root.how == "root":
    return what
  return what._replace(how=root.how, delta=root.delta) if what.epsilon == 0 else None


def _rows(s: Statistic | None, is_centered: bool | None) -> Rows | None:
  """The rows of a mean square or a variance; either if `is_centered` is None."""
  if s is None or s.rows is None or s.has_entries or s.places is None or not s.rows.size:
    return None
  square, variance = is_mean_square(s.polynomial), is_variance(s.polynomial)
  found = {True: variance, False: square, None: variance or square}[is_centered]
  if found is None:
    return None
  n = int(np.sum(s.rows == s.rows[0]))
  rows = np.argsort(s.rows, kind="stable").reshape((-1, n))
  centered = variance is not None if is_centered is None else is_centered
  return Rows(Static(rows), float(found[0]), float(found[1]), centered)


def _scaled(graph: Graph, gains: list[tuple[int, list[int]]], node: Node) -> list[Node]:
  """Products with the constants, each moved as the root was after it was multiplied by it."""
  nodes: list[Node] = []
  at = 0  # the k-th new node, the normalized one being the first
  for constant, moves in gains:
    like = graph.nodes[constant]
    place = constant
    wide = np.dtype(node.wide)
    # Not in half precision, where the product is rounded by up to a part in 256.
    nodes.append(_converted(constant, like, wide))
    place = ~len(nodes)
    for k in moves:
      move = graph.nodes[k]
      before = graph.nodes[move.inputs[0]].shape
      nodes.append(_broadcast(place, before, nodes[-1].shape, wide))
      if move.name != "convert_element_type":
        inputs = (~len(nodes), *move.inputs[1:])
        nodes.append(move._replace(inputs=inputs, dtype=wide, moves=False))
      place = ~len(nodes)
    nodes.append(Node("mul", (~at, place), Params(), node.shape, node.dtype, primitives.mul_p))
    at = len(nodes)
  return nodes


def _converted(i: int, like: Node, dtype: np.dtype) -> Node:
  params = Params(new_dtype=dtype, weak_type=False, sharding=None)
  what = "convert_element_type", (i,), params, like.shape, dtype
  return Node(*what, primitives.convert_element_type_p, moves=False)


def _broadcast(i: int, shape: tuple[int, ...], before: tuple[int, ...], dtype: np.dtype) -> Node:
  axes = tuple(range(len(shape) - len(before), len(shape)))
  params = Params(shape=shape, broadcast_dimensions=axes, sharding=None)
  what = "broadcast_in_dim", (i,), params, shape, dtype
  return Node(*what, primitives.broadcast_in_dim_p, moves=False)
