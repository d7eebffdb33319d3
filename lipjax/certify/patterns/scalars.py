"""Functions of single entries, put together: ``x * sigmoid(x)`` is one function, not a product."""

from __future__ import annotations

import functools
import itertools
from typing import Any

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Graph, Node, Params, pruned
from lipjax.certify.index_map import is_quantizer
from lipjax.certify.register import RULES
from lipjax.certify.scalar.graph import NAMES, build
from lipjax.certify.scalar.graph import Graph as ScalarGraph
from lipjax.certify.scalar.search import slopes_on_line

#: So many earlier arrays are tried, of which a function may have bounded slopes.
BASES = 6

#: Linear in each operand: by themselves they are a scaling or a sum.
LINEAR = frozenset(["add", "add_any", "sub", "neg", "mul", "div", "convert_element_type"])
#: Of entries at the same place, but with values that are no numbers.
TRUTHS = frozenset(["lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "xor", "is_finite"])
#: Primitives without slopes of their own, which raise by themselves.
_MORE = frozenset(["rem", "nextafter"])

ENTRYWISE = (NAMES | _MORE) - frozenset(["broadcast_in_dim", "reshape", "squeeze"])


def fused(graph: Graph, arrays: list[Any]) -> Graph:
  """Every function of the entries of one earlier array as one node, "scalar".

  That array is the last one that all operands are functions of.
  """
  links = _links(graph)
  nodes = list(graph.nodes)
  for i, base in enumerate(links):
    if base is not None and _is_function(graph, links, i, base):
      nodes[i] = _scalar(graph, arrays, links, i)
  return pruned(nodes, graph.outputs)


def _scalar(graph: Graph, arrays: list[Any], links: list[int | None], i: int) -> Node:
  """As a function of the nearest array of which its slopes are bounded everywhere; or any."""
  node, bases, base = graph.nodes[i], [], links[i]
  while base is not None and len(bases) < BASES:
    if graph.nodes[base].is_float:
      bases.append(base)
    base = links[base]
  if not bases:  # of truth values, or whole numbers
    return node
  functions = ((base, build(graph, arrays, base, i)) for base in bases)
  nearest = next(functions)
  # What has jumps has no slopes from anywhere.
  candidates = itertools.chain([nearest], functions) if node.is_float else ()
  has_slopes = lambda pair: _has_slopes(pair[1])
  base, function = next(filter(has_slopes, candidates), nearest)
  params = Params(function=function)
  return Node("scalar", (base,), params, node.shape, node.dtype, line=node.line)


# A search that fails is not repeated either.
@functools.lru_cache(maxsize=512)
def _has_slopes(function: ScalarGraph) -> bool:
  try:
    slopes_on_line(function)
  except CertifyError:
    return False
  return True


def _links(graph: Graph) -> list[int | None]:
  """For each node the last earlier one whose entries it is a function of, one by one."""
  links: list[int | None] = []
  for node in graph.nodes:
    moving = list(dict.fromkeys(k for k in node.inputs if graph.nodes[k].moves))
    is_entrywise = node.moves and moving and _is_entrywise(graph, node, moving)
    links.append(_last_common(links, moving) if is_entrywise else None)
  return links


def _is_entrywise(graph: Graph, node: Node, moving: list[int]) -> bool:
  if node.primitive in RULES or node.name not in ENTRYWISE:
    return False
  if node.name == "select_n" and not graph.nodes[node.inputs[0]].moves:
    return graph.scalar(node.inputs[0]) is not None
  if node.name == "convert_element_type" and node.is_float and graph.nodes[moving[0]].is_float:
    return not is_quantizer(node, graph.nodes[moving[0]])
  return all(graph.nodes[k].shape == node.shape for k in moving)


def _last_common(links: list[int | None], places: list[int]) -> int | None:
  """The last of the nodes that all of these are functions of, themselves included."""
  common: set[int] | None = None
  for place in places:
    chain: list[int] = []
    k: int | None = place
    while k is not None:
      chain.append(k)
      if len(places) == 1:
        break
      k = links[k]
    common = set(chain) if common is None else common & set(chain)
  return max(common) if common else None


def _is_function(graph: Graph, links: list[int | None], i: int, base: int) -> bool:
  """Whether a node is best looked at as a scalar function of its base."""
  node = graph.nodes[i]
  moving = [k for k in node.inputs if graph.nodes[k].moves]
  if node.name in TRUTHS:
    return False
  if node.name == "convert_element_type":
    return not graph.nodes[moving[0]].is_float and graph.nodes[moving[0]].name in TRUTHS
  if node.name in LINEAR:
    if node.name == "div" and graph.nodes[node.inputs[1]].moves:
      return True
    if len(moving) < 2 or not graph.nodes[node.inputs[-1]].moves:
      return False
    return node.name == "mul" or any(_is_bent(graph, links, k, base) for k in moving)
  return True


def _is_bent(graph: Graph, links: list[int | None], i: int, base: int) -> bool:
  """Whether something on the way from the base is not linear."""
  left, seen = [i], set()
  while left:
    k = left.pop()
    if k == base or k in seen or not graph.nodes[k].moves:
      continue
    seen.add(k)
    moving = [j for j in graph.nodes[k].inputs if graph.nodes[j].moves]
    is_product = graph.nodes[k].name in ("mul", "div") and len(moving) > 1
    if graph.nodes[k].name not in LINEAR or is_product:
      return True
    left.extend(moving)
  return False
