r"""A choice by the sign of a number between two arrays that differ by a multiple of it.

``where(v @ x > 0, x, x - 2 * (v @ x) * v)``, Householder's activation, does not jump: it is
``x - 2 * min(v @ x, 0) * v``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.extend.core import primitives

from lipjax.certify.graph import Graph, Node, Params, Static
from lipjax.certify.index_map import MOVES, moved, source_of

#: Of a number, with the side of 0 on which they are true.
_SIDES = {"gt": 1, "ge": 1, "lt": -1, "le": -1}


class _Sign(NamedTuple):
  """Of which entry of which array each entry of a condition tells the sign, and which sign."""

  source: int
  places: np.ndarray
  side: int


def choice_by_sign(graph: Graph, i: int) -> list[Node] | None:
  """``where(s > 0, x, x + linear(s))``, or the other way round, without the choice."""
  node = graph.nodes[i]
  if node.name != "select_n" or len(node.inputs) != 3:
    return None
  which, no, yes = node.inputs
  sign = _sign(graph, which) if graph.nodes[which].moves else None
  if sign is None:
    return None
  for base, other, side in ((yes, no, -sign.side), (no, yes, sign.side)):
    found = _difference(graph, base, other)
    path = None if found is None else _path(graph, found, sign)
    if path is not None:
      return _without_choice(graph, other, path, sign.source, side)
  return None


def _sign(graph: Graph, i: int) -> _Sign | None:
  """Of a comparison with 0, and what only moves its truths."""
  path = []
  while graph.nodes[i].name in MOVES:
    path.append(i)
    i = graph.nodes[i].inputs[0]
  side = _SIDES.get(graph.nodes[i].name)
  if side is None:
    return None
  left, right = graph.nodes[i].inputs
  if graph.scalar(left) == 0:
    left, right, side = right, left, -side
  if graph.scalar(right) != 0 or not graph.nodes[left].is_float:
    return None
  source, places = source_of(graph, left)
  for k in reversed(path):
    places = moved(graph, k, places)
  return _Sign(source, places, side)


def _difference(graph: Graph, base: int, other: int) -> int | None:
  """What is added to the base, or taken from it."""
  node = graph.nodes[other]
  if node.name not in ("add", "sub") or base not in node.inputs:
    return None
  left, right = node.inputs
  return right if left == base else left if node.name == "add" else None


def _path(graph: Graph, i: int, sign: _Sign) -> list[int] | None:
  """From a node back to the sign's source, if it is linear in the same entry everywhere."""
  path, moves = [], []
  while i != sign.source:
    node = graph.nodes[i]
    moving = [k for k in node.inputs if graph.nodes[k].moves]
    is_scaled = node.name in ("mul", "neg") or (node.name == "div" and moving == [node.inputs[0]])
    if len(moving) != 1 or not node.is_float or not (is_scaled or node.name in MOVES):
      return None
    moves += [i] * (node.name in MOVES)
    path.append(i)
    (i,) = moving
  places = np.arange(graph.nodes[i].size).reshape(graph.nodes[i].shape)
  for k in reversed(moves):
    places = moved(graph, k, places)
  return path if np.array_equal(places, sign.places) else None


def _without_choice(
  graph: Graph, other: int, path: Sequence[int], source: int, side: int
) -> list[Node]:
  """The other array, made of the source where it has the sign, and else of 0."""
  of, line = graph.nodes[source], graph.nodes[other].line
  zero = Static(np.zeros(of.shape, of.dtype))
  name, primitive = ("max", primitives.max_p) if side > 0 else ("min", primitives.min_p)
  nodes = [
    Node("static", (), Params(value=zero), of.shape, of.dtype, moves=False),
    Node(name, (source, ~0), Params(), of.shape, of.dtype, primitive, line=line),
  ]
  last = source
  for k in (*reversed(path), other):
    # What is not on the path, as the base itself, stays.
    inputs = tuple(~(len(nodes) - 1) if x == last else x for x in graph.nodes[k].inputs)
    nodes.append(graph.nodes[k]._replace(inputs=inputs))
    last = k
  return nodes
