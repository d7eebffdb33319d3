"""A scalar function enclosed on the cells of the line, from which intervals are looked up."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import DTypeLike

from lipjax.certify.errors import CertifyError
from lipjax.certify.scalar.cells import SlopeCells
from lipjax.certify.scalar.choices import agreements
from lipjax.certify.scalar.evaluation import evaluate, output
from lipjax.certify.scalar.exact import kinks
from lipjax.certify.scalar.graph import Graph
from lipjax.certify.scalar.rules import Boxes, Dual
from lipjax.certify.scalar.tail import Ray
from lipjax.certify.scalar.tracing import graph_of
from lipjax.rounding import interval as iv
from lipjax.rounding.interval import Interval

#: Borders from 0 on: cells grow from 1/64 to a quarter of an octave, and from 2²⁴ to infinity.
GRID = np.concatenate(
  [
    np.arange(0, 4, 1 / 64),
    np.arange(4, 8, 1 / 32),
    8 * 2 ** (np.arange(56) / 8),
    1024 * 2 ** (np.arange(57) / 4),
  ]
)
#: Slopes up to here say which ones are large.
NEAR = 8
#: A cell is halved where its slopes differ far more than a neighbour's: at kinks that `kinks`
#: does not find, jumps and poles. So many rounds, and so many cells in the end.
CUTS, MOST_CELLS = 20, 2048
#: How far the bounds of a cell may be from slopes that are attained, relative to the largest.
TOLERANCE = 5e-4
#: Parts of a cell at first, rounds of halving them, and how many of a cell may be halved.
PARTS, ROUNDS, MOST_OPEN = 4, 10, 16
#: The number of cells is a power of two, and this at least.
LEAST_CELLS = 1024


def slope_cells(
  g: Callable[[jax.Array], jax.Array], *, dtype: DTypeLike = np.float32
) -> SlopeCells:
  """Bounds of the slopes and the values of a scalar function, ready for any intervals.

  Built outside of JAX, once for functions with equal graphs.

  Args:
    g: from an array to an array of the same shape, each entry to its own.
    dtype: the floats in which g computes, float32 by default.

  Returns:
    The cells. A function without finite slopes has them, too, with infinite bounds.

  Raises:
    UnknownPrimitiveError: g holds a primitive whose slopes are not known.
    CertifyError: g is not a function of single numbers, or closes over traced values.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> alpha, beta = slope_cells(jax.nn.relu).between(
    ...   jnp.array([-1.0, 0.01]), jnp.array([1.0, 2.0])
    ... )
    >>> print(alpha, beta)
    [0. 1.] [1. 1.]
  """
  return graph_cells(graph_of(g, dtype))


@functools.lru_cache(maxsize=256)
def graph_cells(graph: Graph) -> SlopeCells:
  """The cells of a graph."""
  # Intervals are infinite, and infinity minus itself is dealt with.
  with np.errstate(all="ignore"):
    return _Line(graph).cells()


@functools.lru_cache(maxsize=256)
def values_on_line(graph: Graph) -> tuple[float, float] | None:
  """Between which values the function of a graph has, if both are finite."""
  agreed = agreements(graph)
  try:
    with np.errstate(all="ignore"):
      borders = np.append(-GRID[:0:-1], GRID)
      boxes = Interval(borders[:-1], borders[1:])
      parts = [output(evaluate(graph, Boxes(boxes), boxes, agreed)).value]
      for side in (-1, 1):
        ray = Ray(float(GRID[-1]), side)
        parts.append(output(evaluate(graph, ray, ray.input(), agreed)).value.bounds)
  except CertifyError:
    return None
  low = min(float(np.min(x.lo)) for x in parts)
  high = max(float(np.max(x.hi)) for x in parts)
  if not (np.isfinite(low) and np.isfinite(high)):
    return None
  return low, high


class _Line:
  """Encloses the slopes and the values of a graph on cells of the line."""

  def __init__(self, graph: Graph):
    self.graph = graph
    self.agreed = agreements(graph)

  def cells(self) -> SlopeCells:
    """The cells."""
    cells, inner = self._cut()
    # The last cell is repeated, at infinity: most functions share one compiled look-up.
    count = cells.lo.size + 1
    last = max(LEAST_CELLS, 1 << count.bit_length()) - count
    borders = np.append(cells.lo, cells.hi[-1])
    unknown = [iv.whole(iv.point(np.zeros(n))) for n in (1, last)]
    at = _joined(unknown[0], self._on(Interval(borders, borders)).value, unknown[1])
    below, above = self._on_ray(borders[-1], -1, 1), self._on_ray(borders[-1], 1, last)
    values, slopes = (_joined(*parts) for parts in zip(below, inner, above, strict=True))
    borders = np.pad(borders, (1, last), constant_values=(-np.inf, np.inf))
    # The values at the borders are nearly exact, and what g changes from there is less than
    # what arithmetic with its terms says; nothing at all where g is monotone.
    left, right = Interval(borders[:-1], borders[:-1]), Interval(borders[1:], borders[1:])
    change = iv.multiply(slopes, iv.hull(iv.point(0.0), iv.subtract(right, left)))
    values = iv.meet(values, iv.add(Interval(at.lo[:-1], at.hi[:-1]), change))
    values = iv.meet(values, iv.subtract(Interval(at.lo[1:], at.hi[1:]), change))
    return SlopeCells(borders, slopes, values, at)

  def _cut(self) -> tuple[Interval, Dual]:
    """The cells between the rays, and what is known on them."""
    borders = self._grid()
    cells = Interval(borders[:-1], borders[1:])
    known = self._enclosed(cells)
    sizes = iv.magnitude(known.slope)[iv.magnitude(cells) <= NEAR]
    least = 0.02 * sizes.max(initial=0, where=np.isfinite(sizes))
    for _ in range(CUTS):
      spread = known.slope.hi - known.slope.lo
      beside = np.pad(spread, 1, constant_values=np.inf)
      is_cut = (spread > least) & (spread > 4 * np.minimum(beside[:-2], beside[2:]))
      if not is_cut.any() or cells.lo.size + is_cut.sum() > MOST_CELLS - 2:
        break
      halves = _halves(cells, is_cut)
      new = self._enclosed(halves)
      order = np.argsort(np.append(cells.lo[~is_cut], halves.lo))
      cells, *known = (
        Interval(*(end[order] for end in _joined(_pick(x, ~is_cut), y)))
        for x, y in zip((cells, *known), (halves, *new), strict=True)
      )
      known = Dual(*known)
    return cells, known

  def _grid(self) -> np.ndarray:
    borders = np.append(-GRID[:0:-1], GRID)
    # Cut at kinks, no cell has one inside, where it would have the slopes of both sides.
    found, pieces = set(), [(borders.min(), borders.max())]
    while pieces:
      lo, hi = pieces.pop()
      new = sorted(kinks(self.graph, lo, hi) - found)
      found.update(new)
      # Some are seen only on one side of others, where all terms are affine.
      ends = [lo, *new, hi]
      pieces += itertools.pairwise(ends) if new else []
    return np.unique(np.append(borders, sorted(found)))

  def _enclosed(self, cells: Interval) -> Dual:
    """The slopes and the values on each of many cells, by bisection where they are extreme."""
    n = cells.lo.size
    ends = np.linspace(cells.lo, cells.hi, PARTS + 1, axis=-1)
    boxes, owner = Interval(ends[:, :-1].ravel(), ends[:, 1:].ravel()), np.arange(n).repeat(PARTS)
    # What is found of each cell, and its largest slope that is surely attained, and least.
    found = Dual(*(Interval(np.full(n, np.inf), np.full(n, -np.inf)) for _ in range(2)))
    attained = Interval(np.full(n, np.inf), np.full(n, -np.inf))
    for left in range(ROUNDS, -1, -1):
      dual = self._on(boxes)
      np.minimum.at(attained.lo, owner, dual.slope.hi)
      np.maximum.at(attained.hi, owner, dual.slope.lo)
      margin = TOLERANCE * iv.magnitude(attained)
      is_open = (dual.slope.lo < (attained.lo - margin)[owner]) & (left > 0)
      is_open |= (dual.slope.hi > (attained.hi + margin)[owner]) & (left > 0)
      # Cells without finite slopes would be cut to pieces, to no avail.
      is_open &= (np.bincount(owner[is_open], minlength=n) <= MOST_OPEN)[owner]
      for x, y in zip(found, dual, strict=True):
        np.minimum.at(x.lo, owner[~is_open], y.lo[~is_open])
        np.maximum.at(x.hi, owner[~is_open], y.hi[~is_open])
      if not is_open.any():
        break
      boxes, owner = _halves(boxes, is_open), np.tile(owner[is_open], 2)
    return _trusted(found)

  def _on(self, boxes: Interval) -> Dual:
    return output(evaluate(self.graph, Boxes(boxes), boxes, self.agreed))

  def _on_ray(self, start: float, side: int, count: int) -> Dual:
    ray = Ray(start, side)
    dual = output(evaluate(self.graph, ray, ray.input(), self.agreed))
    ends = (Interval(*(np.full(count, end) for end in tail.bounds)) for tail in dual)
    return _trusted(Dual(*ends))


def _trusted(known: Dual) -> Dual:
  """Slopes with two finite bounds, which show that g is defined, or with none.

  One-sided ones are of no use: 1/x has negative slopes on both sides of 0, yet not across.
  """
  is_bounded = iv.is_bounded(known.slope)
  return Dual(known.value, iv.choose(is_bounded, known.slope, iv.whole(known.slope)))


def _halves(x: Interval, which: np.ndarray) -> Interval:
  lo, hi = x.lo[which], x.hi[which]
  middle = lo + (hi - lo) / 2
  return Interval(np.append(lo, middle), np.append(middle, hi))


def _pick(x: Interval, which: np.ndarray) -> Interval:
  return Interval(x.lo[which], x.hi[which])


def _joined(*parts: Interval) -> Interval:
  return Interval(*(np.concatenate(ends) for ends in zip(*parts, strict=True)))
