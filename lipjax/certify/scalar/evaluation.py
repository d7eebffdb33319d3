"""Values and slopes of every node of a scalar function, on boxes or on a ray."""

from __future__ import annotations

from typing import Any

import numpy as np

from lipjax.certify.errors import CertifyError
from lipjax.certify.scalar.choices import Truth, choose, combine, compare
from lipjax.certify.scalar.graph import COMPARISONS, LOGIC, Graph
from lipjax.certify.scalar.rules import Dual, apply_rule
from lipjax.rounding import interval as iv


def evaluate(graph: Graph, ar: Any, x: Any, agreed: dict[int, set[int]]) -> list[Dual | Truth]:
  """The duals, or truths, of all nodes for an input `x` in the arithmetic `ar`.

  `agreed` is what `lipjax.certify.scalar.choices.agreements` finds.
  """
  known: list[Any] = []
  for place, node in enumerate(graph.nodes):
    operands = [known[i] for i in node.inputs]
    match node.name:
      case "input":
        dual = Dual(x, ar.constant(1.0))
      case "truth":
        truth = np.full(ar.bounds(x).lo.shape, node.parameter)
        dual = Truth(truth, ~truth)
      case "constant":
        dual = Dual(ar.constant(node.parameter), ar.constant(0.0))
      case "between":
        shape = ar.bounds(x).lo.shape
        ends = iv.interval(*(np.full(shape, end) for end in node.parameter))
        dual = Dual(ar.step(ar.constant(0.0), ends), ar.constant(0.0))
      case name if name in COMPARISONS:
        dual = compare(ar, node, known)
      case name if name in LOGIC:
        dual = combine(name, operands)
      case "is_finite":  # of real numbers
        dual = Truth(np.ones_like(ar.bounds(x).lo, bool), np.zeros_like(ar.bounds(x).lo, bool))
      case "select_n":
        dual = choose(graph, ar, node, known, agreed[place])
      case _:
        dual = apply_rule(ar, node, operands)
    if isinstance(dual, Dual):
      dual = Dual(ar.grown(*dual), dual.slope)
    known.append(dual)
  return known


def output(duals: list[Dual | Truth]) -> Dual:
  """The dual of the function itself, which is the last node's."""
  if isinstance(duals[-1], Dual):
    return duals[-1]
  msg = "A scalar function returns a float, not a truth value."
  raise CertifyError(msg)
