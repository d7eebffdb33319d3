"""Softmax, log-softmax and log-sum-exp, told by which entry stands where."""

from __future__ import annotations

import numpy as np

from lipjax.certify.graph import Graph, Node, Params, Static
from lipjax.certify.index_map import along, are_put_back, source_of, uncast
from lipjax.certify.patterns.joined import joined


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
    if below.name == "div" and graph.scalar(below.inputs[0]) == 1 and below.shape == ():
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
    weights = _weights(graph, inner.source)
    if z is None or graph.nodes[z].name != "sub" or weights is None:
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
    if taken.source == given.source and is_once and np.array_equal(first[rows], given.places):
      return [_pattern("log_sum_exp", node, x, axes, rows)]
  return None


def _log_of_sum(graph: Graph, i: int) -> list[Node] | None:
  """``log(sum(exp(z)))`` as such, of which softmax is the gradient."""
  node = graph.nodes[i]
  inner = source_of(graph, _without_abs(graph, node.inputs[0]))
  z = _exponent(graph, inner.source)
  is_once = np.array_equal(np.sort(inner.places, None), np.arange(inner.places.size))
  if z is None or not is_once or _weights(graph, inner.source) is None:
    return None
  axes = graph.nodes[inner.source].params["axes"]
  return [_pattern("log_sum_exp", node, z, axes, inner.places)]


def log_softmax(graph: Graph, i: int) -> list[Node] | None:
  """``z - log(sum(exp(z)))``."""
  node = graph.nodes[i]
  if node.name != "sub" or not all(graph.nodes[k].moves for k in node.inputs):
    return None
  z, log = node.inputs
  outer = source_of(graph, log)
  if graph.nodes[outer.source].name != "log":
    return None
  inner = source_of(graph, _without_abs(graph, graph.nodes[outer.source].inputs[0]))
  exponent = _exponent(graph, inner.source)
  if exponent is None or uncast(graph, exponent) != uncast(graph, z):
    return None
  axes = graph.nodes[inner.source].params["axes"]
  if not _is_masked_alike(graph, inner.source, _unshifted(graph, z, axes)):
    return None
  rows = inner.places.ravel()[outer.places]
  if not are_put_back(rows, graph.nodes[inner.source].shape, axes):
    return None
  return [_pattern("log_softmax", node, _unshifted(graph, z, axes), axes)]


def _pattern(
  name: str, node: Node, x: int, axes: tuple[int, ...], rows: np.ndarray | None = None
) -> Node:
  """With the row of each entry, where entries are rows."""
  params = Params(axes=tuple(axes)) if rows is None else Params(axes=tuple(axes), rows=Static(rows))
  return Node(name, (x,), params, node.shape, node.dtype, line=node.line)


def _exponent(graph: Graph, total: int) -> int | None:
  """The z of ``sum(exp(z))``, None of others; half precision is summed in single precision.

  Terms may be left out, or have weights: see `_weights`.
  """
  if graph.nodes[total].name != "reduce_sum":
    return None
  term = uncast(graph, _term(graph, total)[0])
  return graph.nodes[term].inputs[0] if graph.nodes[term].name == "exp" else None


def _term(graph: Graph, total: int) -> tuple[int, np.ndarray | None]:
  """What is summed, and by which known numbers it is multiplied; 0 where it is left out."""
  term = uncast(graph, graph.nodes[total].inputs[0])
  node = graph.nodes[term]
  if node.name == "select_n" and len(node.inputs) == 3 and graph.static(node.inputs[0]) is not None:
    which, cases = node.inputs[0], node.inputs[1:]
    for i, case in enumerate(cases):
      if graph.scalar(cases[1 - i]) == 0:
        return case, np.asarray(graph.static(which)) == bool(i)
  if node.name == "mul":
    for case, other in zip(node.inputs, node.inputs[::-1], strict=True):
      if graph.nodes[other].params.get("is_nonnegative") and graph.nodes[case].moves:
        return case, np.full(node.shape, np.nan)  # some numbers, none of them negative
  return term, None


def _weights(graph: Graph, total: int) -> np.ndarray | None:
  """The weights of the terms if none is negative; None of others."""
  weights = _term(graph, total)[1]
  return np.ones(()) if weights is None else weights


def _is_masked_alike(graph: Graph, total: int, x: int) -> bool:
  """Whether what a sum leaves out is the exponential of minus infinity, here too."""
  kept = _term(graph, total)[1]
  if kept is None:
    return True
  if kept.dtype != bool:
    return False
  node = graph.nodes[x]
  if node.name != "select_n" or len(node.inputs) != 3:
    return False
  known = [graph.static(k) for k in node.inputs]
  which, cases = known[0], known[1:]
  for i, case in enumerate(cases):
    if case is not None and which is not None and np.all(case == -np.inf):
      return np.array_equal(np.broadcast_to(which, kept.shape) == bool(i), ~kept)
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
