r"""Means and variances, told by what they are and not by how they are written.

Relative to an array x whose entries are partitioned into rows, a node is looked at as a
polynomial with rational coefficients in the entry X, its row's mean M and its row's mean square
S. So ``mean(x²) - mean(x)²`` and ``mean((x - mean(x))²)`` are both :math:`S - M^2`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.graph import LinearPart, Node
from lipjax.certify.interpreter import is_scalar, scalar

#: Exponents of X, M and S to the coefficient.
Polynomial = dict[tuple[int, int, int], Fraction]

X: Polynomial = {(1, 0, 0): Fraction(1)}
CENTERED: Polynomial = {(1, 0, 0): Fraction(1), (0, 1, 0): Fraction(-1)}


class Statistic(NamedTuple):
  """A node as a function of x.

  Attributes:
    polynomial: what each entry is.
    places: the entry of x that each entry belongs to, or any entry of the row it belongs to.
    rows: for each entry of x the row it lies in, as that row's first entry; None if not known.
  """

  polynomial: Polynomial
  places: np.ndarray
  rows: np.ndarray | None = None

  @property
  def has_entries(self) -> bool:
    """Whether X itself occurs."""
    return any(powers[0] for powers in self.polynomial)


def statistic(node: Any, x: Node) -> Statistic | None:
  """What a node is relative to x; None if it is something else."""
  if node is x:
    return Statistic(X, np.arange(math.prod(x.shape)).reshape(x.shape))
  if not isinstance(node, Node):
    if not is_scalar(node):
      return None
    value = float(scalar(node))
    return Statistic(_constant(value), np.array(-1)) if math.isfinite(value) else None
  recipe = node.recipe
  if node.part is None:
    return None
  part = node.part
  is_moved = isinstance(part, LinearPart) and part.is_selection and len(node.parents) == 1
  if is_moved and recipe is not None and recipe.name == "convert_element_type":
    return statistic(node.parents[0], x)
  if is_moved and (recipe is None or len(recipe.operands) == 1):
    return _moved(node.parents[0], cast("LinearPart", part).apply, x)
  if recipe is None:
    return None
  operands = [statistic(operand, x) for operand in recipe.operands]
  known = [operand for operand in operands if operand is not None]
  if len(known) < len(operands) or not known:
    return None
  if recipe.name == "reduce_sum":
    return _summed(known[0], recipe.params["axes"], x)
  if recipe.name in ("square", "integer_pow") and recipe.params.get("y", 2) == 2:
    return known[0]._replace(polynomial=_times(known[0].polynomial, known[0].polynomial))
  if recipe.name == "max":
    # What is never negative is its own maximum with 0.
    numbers = [s for s in known if s.polynomial in ({}, _constant(0.0))]
    others = [s for s in known if is_variance(s.polynomial) is not None]
    return others[0] if len(numbers) == len(others) == 1 else None
  if recipe.name in ("add", "sub", "mul", "div"):
    return _combined(recipe.name, *known)
  return None


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


def _moved(source: Node, apply: Callable[..., jax.Array], x: Node) -> Statistic | None:
  within = statistic(source, x)
  if within is None:
    return None
  with jax.ensure_compile_time_eval():
    places = np.broadcast_to(within.places, source.shape)
    # Entry 0 must not be taken for what a gather fills in.
    moved = np.asarray(apply(jnp.asarray(places + 1))) - 1
  if within.places.ndim and np.any(moved < 0):
    return None
  return within._replace(places=moved)


def _summed(s: Statistic, axes: tuple[int, ...], x: Node) -> Statistic | None:
  """A sum over rows: X becomes nM and X² nS."""
  n = math.prod(s.places.shape[axis] for axis in axes) if s.places.ndim else 0
  if not s.has_entries or not n or any(powers[0] > 2 for powers in s.polynomial):
    return None
  members = np.moveaxis(s.places, axes, range(-len(axes), 0)).reshape((-1, n))
  first = np.min(members, axis=1)
  rows = np.full(math.prod(x.shape), -1)
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
  if name == "div" and (set(b.polynomial) != {(0, 0, 0)} or b.places.ndim):
    return None
  polynomial = {
    "add": lambda: _plus(a.polynomial, b.polynomial, 1),
    "sub": lambda: _plus(a.polynomial, b.polynomial, -1),
    "mul": lambda: _times(a.polynomial, b.polynomial),
    "div": lambda: {powers: value / number for powers, value in a.polynomial.items()},
  }[name]()
  if not a.places.ndim or not b.places.ndim:
    return (a if a.places.ndim else b)._replace(polynomial=polynomial)
  return _joined(a, b, polynomial)


def _joined(a: Statistic, b: Statistic, polynomial: Polynomial) -> Statistic | None:
  """Entry by entry, if entries of both belong to the same row, and to the same entry of x."""
  rows = a.rows if a.rows is not None else b.rows
  if a.rows is not None and b.rows is not None and not np.array_equal(a.rows, b.rows):
    return None
  left, right = np.broadcast_arrays(a.places, b.places)
  if a.has_entries and b.has_entries:
    is_same = np.array_equal(left, right)
  else:
    is_same = rows is not None and np.array_equal(rows[left], rows[right])
  places = left if a.has_entries else right
  return Statistic(polynomial, places, rows) if is_same else None
