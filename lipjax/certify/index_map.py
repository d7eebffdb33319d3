"""Which entry of which node stands where: the one place that follows entries.

What only moves entries (broadcasts, reshapes, permutations, slices, gathers at constant places) is
followed to its source; the answer is an array of places, one for every entry.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from lipjax.certify.graph import Graph, Node, Params

#: What only moves entries of its first operand, the others being known places.
MOVES = ("broadcast_in_dim", "reshape", "transpose", "squeeze", "rev", "slice")
MOVES += ("dynamic_slice", "gather", "split", "unstack", "convert_element_type", "copy", "tile")
#: What is filled in from outside.
NOWHERE = -1


class Map(NamedTuple):
  """Where the entries of a node come from.

  Attributes:
    source: the node that they are entries of.
    places: for each entry its place in the flat source; `NOWHERE` for what is filled in.
  """

  source: int
  places: np.ndarray

  @property
  def is_whole(self) -> bool:
    """Whether every entry is one of the source's."""
    return bool(np.all(self.places != NOWHERE))


def source_of(graph: Graph, i: int, until: int = -1) -> Map:
  """The last node before i that is not only entries of another one, and where they stand in i.

  A node that moves nothing is its own source; the way ends at node `until` in any case.
  """
  path = []
  while i != until and only_moves(graph, i):
    path.append(i)
    i = graph.nodes[i].inputs[0]
  places = np.arange(graph.nodes[i].size).reshape(graph.nodes[i].shape)
  for k in reversed(path):
    places = moved(graph, k, places)
  return Map(i, places)


def uncast(graph: Graph, i: int) -> int:
  """The same numbers in another floating-point type, as they were first."""
  while graph.nodes[i].name in ("convert_element_type", "copy") and only_moves(graph, i):
    i = graph.nodes[i].inputs[0]
  return i


def only_moves(graph: Graph, i: int) -> bool:
  """Whether a node only moves entries, of floating-point numbers that stay such."""
  node = graph.nodes[i]
  if node.name not in MOVES or not node.moves or not node.is_float:
    return False
  first, *others = node.inputs
  if node.name == "convert_element_type" and is_quantizer(node, graph.nodes[first]):
    return False
  return graph.nodes[first].is_float and all(graph.static(k) is not None for k in others)


def is_quantizer(node: Node, before: Node) -> bool:
  """Whether a conversion jumps: to or from fewer than 16 bits."""
  return min(np.dtype(x.dtype).itemsize for x in (node, before)) < 2


def moved(graph: Graph, i: int, places: np.ndarray) -> np.ndarray:
  """What becomes of the first operand's places in a node that moves them."""
  node = graph.nodes[i]
  if node.name in ("convert_element_type", "copy"):
    return places
  by_hand = permuted(node, places)
  if by_hand is not None:
    return by_hand
  others = [graph.static(k) for k in node.inputs[1:]]
  if node.name == "gather":
    node = node._replace(params=Params({**node.params, "fill_value": 0}))
  with jax.ensure_compile_time_eval():
    # Place 0 must not be taken for what a gather fills in.
    return np.asarray(node.bind(places + 1, *others)) - 1


def permuted(node: Node, x: np.ndarray) -> np.ndarray | None:
  """What a node makes of an array if it needs no compiler for it; else None."""
  p: Any = node.params
  match node.name:
    case "broadcast_in_dim":
      shape = [1] * len(node.shape)
      for axis, to in enumerate(p["broadcast_dimensions"]):
        shape[to] = x.shape[axis]
      return np.broadcast_to(x.reshape(shape), node.shape)
    case "reshape":
      x = x if p["dimensions"] is None else np.transpose(x, p["dimensions"])
      return x.reshape(node.shape)
    case "squeeze":
      return x.reshape(node.shape)
    case "transpose":
      return np.transpose(x, p["permutation"])
    case "rev":
      return np.flip(x, p["dimensions"])
    case "slice":
      strides = p["strides"] or (1,) * x.ndim
      ends = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
      return x[tuple(slice(*end) for end in ends)]
  return None


def are_put_back(rows: np.ndarray, reduced: tuple[int, ...], axes: tuple[int, ...]) -> bool:
  """Whether entries that were reduced over axes, by number, stand where they came from."""
  expected = np.expand_dims(np.arange(math.prod(reduced)).reshape(reduced), axes)
  shape = rows.shape
  try:
    return np.array_equal(rows, np.broadcast_to(expected, shape))
  except ValueError:
    return False


def along(places: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
  """The first ones along axes, which are kept."""
  return places[tuple(slice(1 if axis in axes else None) for axis in range(places.ndim))]
