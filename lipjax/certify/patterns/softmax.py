"""Softmax, log-softmax and log-sum-exp, told by which entry stands where."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lipjax.certify.graph import Graph, Node, Params, Static
from lipjax.certify.index_map import Map, along, are_put_back, source_of, uncast


def softmax(graph: Graph, i: int) -> list[Node] | None:
  """``exp(z) / sum(exp(z))``, also of x where z = x - s with s the same along the axes."""
  node = graph.nodes[i]
  if node.name == "mul":
    return _times_inverse(graph, i)
  return _softmax(graph, node, *node.inputs) if node.name == "div" else None


def _times_inverse(graph: Graph, i: int) -> list[Node] | None:
  """``exp(z) * (1 / sum(exp(z)))``, as gradients of log-sum-exp are written."""
  node = graph.nodes[i]
  for top, factor in (node.inputs, node.inputs[::-1]):
    inverse = source_of(graph, factor)
    below = graph.nodes[inverse.source]
    is_inverse = below.name == "div" and graph.scalar(below.inputs[0]) == 1
    if is_inverse and below.shape == () and inverse.is_whole:
      found = _softmax(graph, node, top, below.inputs[1])
      if found is not None:
        return found
  return None


def _softmax(graph: Graph, node: Node, top: int, bottom: int) -> list[Node] | None:
  numerator = uncast(graph, top)
  if graph.nodes[numerator].name != "exp" or graph.nodes[top].shape != node.shape:
    return None
  z = graph.nodes[numerator].inputs[0]
  total = source_of(graph, bottom)
  axes = _axes_of_sum(graph, total.source, z)
  if axes is not None and not _is_masked_alike(graph, total.source, _unshifted(graph, z, axes)):
    return None
  if axes is None or graph.nodes[bottom].shape not in ((), node.shape):
    return None
  if not are_put_back(
    np.broadcast_to(total.places, node.shape), graph.nodes[total.source].shape, axes
  ):
    return None
  return [_pattern("softmax", node, _unshifted(graph, z, axes), axes)]


def log_sum_exp(graph: Graph, i: int) -> list[Node] | None:
  """``log(sum(exp(x - s))) + s``, whatever s, or without any."""
  node = graph.nodes[i]
  if node.name == "log":
    return _log_of_sum(graph, i)
  if node.name not in ("add", "add_any"):
    return None
  for log, shift in (node.inputs, node.inputs[::-1]):
    if graph.nodes[uncast(graph, log)].name != "log" or not graph.nodes[shift].moves:
      continue
    inner = source_of(graph, _without_abs(graph, graph.nodes[uncast(graph, log)].inputs[0]))
    z = _exponent(graph, inner.source)
    if z is None or graph.nodes[z].name != "sub":
      continue
    axes = graph.nodes[inner.source].params["axes"]
    x, s = graph.nodes[z].inputs
    if _unshifted(graph, z, axes) != x or not graph.nodes[s].moves:
      continue
    taken, given = source_of(graph, s), source_of(graph, shift)
    # Every row once, and to each the shift that was taken from it.
    rows = inner.places
    first = along(taken.places, axes).ravel()
    is_once = np.array_equal(np.sort(rows, axis=None), np.arange(first.size))
    is_given = taken.source == given.source and taken.is_whole and given.is_whole
    if is_given and is_once and np.array_equal(first[rows], given.places):
      return [_log_sum(graph, node, inner, x, axes)]
  return None


def _log_of_sum(graph: Graph, i: int) -> list[Node] | None:
  """``log(sum(exp(z)))`` as such, of which softmax is the gradient."""
  node = graph.nodes[i]
  inner = source_of(graph, _without_abs(graph, node.inputs[0]))
  z = _exponent(graph, inner.source)
  is_once = np.array_equal(np.sort(inner.places, None), np.arange(inner.places.size))
  if z is None or not is_once:
    return None
  axes = graph.nodes[inner.source].params["axes"]
  return [_log_sum(graph, node, inner, z, axes)]


def log_softmax(graph: Graph, i: int) -> list[Node] | None:
  """``z - log(sum(exp(z)))``."""
  node = graph.nodes[i]
  if node.name != "sub" or not all(graph.nodes[k].moves for k in node.inputs):
    return None
  z, log = node.inputs
  outer = source_of(graph, log)
  if graph.nodes[outer.source].name != "log" or not outer.is_whole:
    return None
  inner = source_of(graph, _without_abs(graph, graph.nodes[outer.source].inputs[0]))
  exponent = _exponent(graph, inner.source)
  if exponent is None or uncast(graph, exponent) != uncast(graph, z) or not inner.is_whole:
    return None
  axes = graph.nodes[inner.source].params["axes"]
  if not _is_masked_alike(graph, inner.source, _unshifted(graph, z, axes)):
    return None
  rows = inner.places.ravel()[outer.places]
  if not are_put_back(rows, graph.nodes[inner.source].shape, axes):
    return None
  return [_pattern("log_softmax", node, _unshifted(graph, z, axes), axes)]


def _pattern(name: str, node: Node, x: int, axes: tuple[int, ...], **more: Any) -> Node:
  params = Params(axes=tuple(axes), **more)
  return Node(name, (x,), params, node.shape, node.dtype, line=node.line)


def _log_sum(graph: Graph, node: Node, rows: Map, x: int, axes: tuple[int, ...]) -> Node:
  """With the row that each entry is, and the terms' weights."""
  term = _term(graph, rows.source)
  kept = None if term.kept is None else Static(term.kept)
  found = _pattern("log_sum_exp", node, x, axes, rows=Static(rows.places), kept=kept)
  return found if term.weights is None else found._replace(inputs=(x, term.weights))


def _exponent(graph: Graph, total: int) -> int | None:
  """The z of ``sum(exp(z))``, None of others; half precision is summed in single precision.

  Terms may be left out, or have weights: see `_Term`.
  """
  if graph.nodes[total].name != "reduce_sum":
    return None
  term = uncast(graph, _term(graph, total).place)
  return graph.nodes[term].inputs[0] if graph.nodes[term].name == "exp" else None


class _Term(NamedTuple):
  """What is summed.

  Attributes:
    place: of the terms.
    kept: which of them are not left out; None for all.
    weights: a constant that they are multiplied by, nowhere negative; None for none.
  """

  place: int
  kept: np.ndarray | None = None
  weights: int | None = None


def _term(graph: Graph, total: int) -> _Term:
  term = uncast(graph, graph.nodes[total].inputs[0])
  node = graph.nodes[term]
  if node.name == "select_n" and len(node.inputs) == 3 and graph.static(node.inputs[0]) is not None:
    which, cases = node.inputs[0], node.inputs[1:]
    for i, case in enumerate(cases):
      if graph.scalar(cases[1 - i]) == 0:
        kept = np.broadcast_to(np.asarray(graph.static(which)) == bool(i), node.shape)
        return _Term(case, kept=kept)
  if node.name == "mul":
    for case, other in zip(node.inputs, node.inputs[::-1], strict=True):
      if graph.nodes[other].params.get("is_nonnegative") and graph.nodes[case].moves:
        return _Term(case, weights=other)
  return _Term(term)


def _is_masked_alike(graph: Graph, total: int, x: int) -> bool:
  """Whether what a sum leaves out is the exponential of minus infinity, here too."""
  term, node = _term(graph, total), graph.nodes[x]
  if term.kept is None or term.weights is not None:
    return term.weights is None
  if node.name != "select_n" or len(node.inputs) != 3:
    return False
  known = [graph.static(k) for k in node.inputs]
  which, cases = known[0], known[1:]
  for i, case in enumerate(cases):
    if case is not None and which is not None and np.all(case == -np.inf):
      return np.array_equal(np.broadcast_to(which, node.shape) == bool(i), ~term.kept)
  return False


def _axes_of_sum(graph: Graph, total: int, z: int) -> tuple[int, ...] | None:
  """Over which axes a node sums exp(z); None if it is something else."""
  found = _exponent(graph, total)
  is_it = found is not None and uncast(graph, found) == uncast(graph, z)
  return graph.nodes[total].params["axes"] if is_it else None


def _without_abs(graph: Graph, i: int) -> int:
  """A sum of exponentials is its own magnitude."""
  return graph.nodes[i].inputs[0] if graph.nodes[i].name == "abs" else i


def _unshifted(graph: Graph, z: int, axes: tuple[int, ...]) -> int:
  """X where z = x - s with s constant along the axes."""
  node = graph.nodes[z]
  if node.name != "sub":
    return z
  x, s = node.inputs
  is_like = graph.nodes[x].moves and graph.nodes[x].shape == node.shape
  if not is_like or not graph.nodes[s].moves or graph.nodes[s].shape != node.shape:
    return z
  places = source_of(graph, s).places
  return x if np.all(places == along(places, axes)) else z
