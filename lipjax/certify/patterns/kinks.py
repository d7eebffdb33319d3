r"""Functions of one array with a kink at 0: ``relu(x)`` beside ``relu(-x)``, which CReLU is.

Any two of them differ by a multiple and a linear function, :math:`g(x) = \alpha x + \beta f(x)`.
Seen like that by an ellipsoid the two halves of CReLU together are 1-Lipschitz.
"""

from __future__ import annotations

from typing import NamedTuple

from lipjax.certify.bounds.effort import VALUES_UP_TO
from lipjax.certify.graph import Graph, Node, Params, Rewrite
from lipjax.certify.patterns.extremes import either
from lipjax.certify.scalar.rays import Slopes, slopes_beside_zero

#: A smaller factor, or a larger one than its inverse, leaves functions apart.
LEAST = 1e-30


class _Kink(NamedTuple):
  """Which array a node is a function of, and the slopes beside 0."""

  root: int
  slopes: Slopes


def shared_kinks(graph: Graph) -> Rewrite:
  """The rule for a graph: what is not the first such function of an array is known by it too."""
  kinks = {i: kink for i in range(len(graph.nodes)) if (kink := _kink(graph, i)) is not None}
  first: dict[int, int] = {}
  for i, kink in kinks.items():
    first.setdefault(kink.root, i)

  def rule(graph: Graph, i: int) -> list[Node] | None:
    if i not in kinks or first[kinks[i].root] == i or graph.nodes[i].size > VALUES_UP_TO:
      return None
    root, (negative, positive) = kinks[i]
    node, earlier = graph.nodes[i], first[root]
    slopes = kinks[earlier].slopes
    factor = (positive - negative) / (slopes.positive - slopes.negative)
    factors = positive - factor * slopes.positive, factor
    if any(x and not LEAST < abs(x) < 1 / LEAST for x in factors):
      return None
    params = Params(factors=tuple(map(float, factors)))
    by_first = Node("combination", (root, earlier), params, node.shape, node.dtype, line=node.line)
    return [node, by_first, either(node, ~0, ~1)]

  return rule


def _kink(graph: Graph, i: int) -> _Kink | None:
  """Of a scalar function that is linear on both sides of 0; of a negated array as of that array."""
  node = graph.nodes[i]
  slopes = slopes_beside_zero(node.params["function"]) if node.name == "scalar" else None
  if slopes is None or slopes.negative == slopes.positive:
    return None
  (root,) = node.inputs
  while graph.nodes[root].name == "neg":
    (root,), slopes = graph.nodes[root].inputs, slopes.mirrored()
  same = graph.nodes[root].shape == node.shape
  return _Kink(root, slopes) if same else None
