r"""Means and variances, told by what they are and not by how they are written.

Relative to an array x whose entries are partitioned into rows, a node is looked at as a
polynomial with rational coefficients in the entry X, its row's mean M and its row's mean square
S. So ``mean(x²) - mean(x)²`` and ``mean((x - mean(x))²)`` are both :math:`S - M^2`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from lipjax.certify.graph import Graph
from lipjax.certify.index_map import NOWHERE, source_of

#: Exponents of X, M and S to the coefficient.
Polynomial = dict[tuple[int, int, int], Fraction]

X: Polynomial = {(1, 0, 0): Fraction(1)}
CENTERED: Polynomial = {(1, 0, 0): Fraction(1), (0, 1, 0): Fraction(-1)}


class Statistic(NamedTuple):
  """A node as a function of x.

  Attributes:
    polynomial: what each entry is.
    places: the entry of x that each entry belongs to, or any entry of the row it belongs to;
      None for a number.
    rows: for each entry of x the row it lies in, as that row's first entry; None if not known.
  """

  polynomial: Polynomial
  places: np.ndarray | None
  rows: np.ndarray | None = None

  @property
  def has_entries(self) -> bool:
    """Whether X itself occurs."""
    return any(powers[0] for powers in self.polynomial)


def statistic(graph: Graph, i: int, x: int) -> Statistic | None:
  """What node i is relative to x; None if it is something else."""
  node = graph.nodes[i]
  if i == x:
    return Statistic(X, np.arange(node.size).reshape(node.shape))
  if not node.moves:
    number = graph.scalar(i)
    if number is None or not math.isfinite(float(number)):
      return None
    return Statistic(_constant(float(number)), None)
  entries = source_of(graph, i, until=x)
  if entries.source != i:
    return _moved(statistic(graph, entries.source, x), entries.places)
  if node.name not in _KNOWN:
    return None
  operands = [statistic(graph, k, x) for k in node.inputs]
  known = [operand for operand in operands if operand is not None]
  if len(known) < len(operands):
    return None
  match node.name:
    case "reduce_sum":
      return _summed(known[0], node.params["axes"], graph.nodes[x].size)
    case "square" | "integer_pow" if node.params.get("y", 2) == 2:
      return known[0]._replace(polynomial=_times(known[0].polynomial, known[0].polynomial))
    case "max":
      # What is never negative is its own maximum with 0.
      numbers = [s for s in known if s.polynomial in ({}, _constant(0.0))]
      others = [s for s in known if is_variance(s.polynomial) is not None]
      return others[0] if len(numbers) == len(others) == 1 else None
    case "add" | "sub" | "mul" | "div":
      return _combined(node.name, *known)
  return None


_KNOWN = frozenset(["reduce_sum", "square", "integer_pow", "max", "add", "sub", "mul", "div"])


def is_variance(p: Polynomial) -> tuple[Fraction, Fraction] | None:
  """The a and ε of a(S - M²) + ε, or None."""
  a, rest = p.get((0, 0, 1), Fraction(0)), dict(p)
  epsilon = rest.pop((0, 0, 0), Fraction(0))
  is_it = a > 0 and rest == {(0, 0, 1): a, (0, 2, 0): -a}
  return (a, epsilon) if is_it and epsilon >= 0 else None


def is_mean_square(p: Polynomial) -> tuple[Fraction, Fraction] | None:
  """The a and ε of aS + ε, or None."""
  a, rest = p.get((0, 0, 1), Fraction(0)), dict(p)
  epsilon = rest.pop((0, 0, 0), Fraction(0))
  return (a, epsilon) if a > 0 and rest == {(0, 0, 1): a} and epsilon >= 0 else None


def _constant(value: float) -> Polynomial:
  return {(0, 0, 0): Fraction(value)} if value else {}


def _times(p: Polynomial, q: Polynomial) -> Polynomial:
  result: Polynomial = defaultdict(Fraction)
  for a, u in p.items():
    for b, v in q.items():
      result[(a[0] + b[0], a[1] + b[1], a[2] + b[2])] += u * v
  return {powers: value for powers, value in result.items() if value}


def _plus(p: Polynomial, q: Polynomial, sign: int) -> Polynomial:
  result: Polynomial = defaultdict(Fraction, p)
  for powers, value in q.items():
    result[powers] += sign * value
  return {powers: value for powers, value in result.items() if value}


def _moved(within: Statistic | None, places: np.ndarray) -> Statistic | None:
  """The same of entries that were moved, but for those that come from elsewhere."""
  if within is None or within.places is None or np.any(places == NOWHERE):
    return None
  return within._replace(places=within.places.ravel()[places])


def _summed(s: Statistic, axes: tuple[int, ...], size: int) -> Statistic | None:
  """A sum over rows: X becomes nM and X² nS."""
  if s.places is None:
    return None
  n = math.prod(s.places.shape[axis] for axis in axes)
  if not s.has_entries or not n or any(powers[0] > 2 for powers in s.polynomial):
    return None
  members = np.moveaxis(s.places, axes, range(-len(axes), 0)).reshape((-1, n))
  first = np.min(members, axis=1)
  rows = np.full(size, -1)
  rows[members] = first[:, None]
  is_partition = np.array_equal(np.sort(members, axis=None), np.arange(rows.size))
  if not is_partition or (s.rows is not None and not np.array_equal(s.rows, rows)):
    return None
  swap = {0: (0, 0), 1: (1, 0), 2: (0, 1)}
  result: Polynomial = defaultdict(Fraction)
  for (i, j, k), value in s.polynomial.items():
    result[(0, j + swap[i][0], k + swap[i][1])] += n * value
  shape = [d for axis, d in enumerate(s.places.shape) if axis not in axes]
  return Statistic(dict(result), first.reshape(shape), rows)


def _combined(name: str, a: Statistic, b: Statistic) -> Statistic | None:
  number = b.polynomial.get((0, 0, 0), Fraction(0))
  if name == "div" and (set(b.polynomial) != {(0, 0, 0)} or b.places is not None):
    return None
  polynomial = {
    "add": lambda: _plus(a.polynomial, b.polynomial, 1),
    "sub": lambda: _plus(a.polynomial, b.polynomial, -1),
    "mul": lambda: _times(a.polynomial, b.polynomial),
    "div": lambda: {powers: value / number for powers, value in a.polynomial.items()},
  }[name]()
  if a.places is None or b.places is None:
    return (b if a.places is None else a)._replace(polynomial=polynomial)
  return _joined(a, b, polynomial)


def _joined(a: Statistic, b: Statistic, polynomial: Polynomial) -> Statistic | None:
  """Entry by entry, if entries of both belong to the same row, and to the same entry of x."""
  rows = a.rows if a.rows is not None else b.rows
  if a.rows is not None and b.rows is not None and not np.array_equal(a.rows, b.rows):
    return None
  left, right = (np.asarray(s.places) for s in (a, b))
  if left.shape != right.shape:
    return None
  if a.has_entries and b.has_entries:
    is_same = np.array_equal(left, right)
  else:
    is_same = rows is not None and np.array_equal(rows[left], rows[right])
  places = left if a.has_entries else right
  return Statistic(polynomial, places, rows) if is_same else None
